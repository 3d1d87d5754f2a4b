# SPDX-License-Identifier: Apache-2.0
"""Carries the plan of a BOM out, step by step, or only tells the steps.

Files that are the same by size and time are left alone, so that a second run changes nothing and
the next build finds nothing to seal. Above: ``bom``. Below: ``bomplan``, ``intree``, ``ldcache``.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import Final

from serdab.errors import Error, MeasurementMismatch, UsageError
from serdab.instance import ldcache
from serdab.instance.bomplan import Plan, PlannedFile, Say
from serdab.instance.intree import place, resolve
from serdab.instance.owners import Owner, store_owners

_OPEN_DIRECTORIES: Final = ("/tmp", "/var/tmp")  # noqa: S108 - names inside the tree
_LD_CACHE: Final = "/etc/ld.so.cache"


class Steps:
    """Carries a plan out, or only tells it."""

    def __init__(self, root: str, tell: Say | None, *, dry_run: bool) -> None:
        self._root = root
        self._tell = tell
        self._dry_run = dry_run
        self.copied_bytes = 0

    def do_listed(self, plan: Plan) -> None:
        """Make directories and links, copy directories and files."""
        for path, mode in plan.directories.items():
            self._step(f"directory {path}", partial(self._directory, path, mode))
        for path, target in plan.links.items():
            self._step(f"link {path} -> {target}", partial(self._link, path, target))
        for path, item in plan.files.items():
            self._step(f"file {path} from {item.source}", partial(self._file, path, item))

    def do_owners(self, plan: Plan) -> None:
        """Note declared owners beside the tree, for the build to seal."""
        for path, declared in plan.owners.items():
            if self._tell is not None and declared is not None:
                self._tell(f"owner {declared[0]}:{declared[1]} of {path}")
        if self._dry_run:
            return
        changes: dict[str, Owner | None] = {}
        for path, owner in plan.owners.items():
            # The tree's own name for it: links above it may lead elsewhere.
            host = place(self._root, path)
            changes[os.path.relpath(host, self._root)] = owner
        store_owners(self._root, changes)

    def do_libraries(self, plan: Plan) -> None:
        """Copy what was found for programs and extend the loaders' configuration."""
        for path, source in plan.libraries.items():
            self._step(
                f"library {path} from {source}", partial(self._file, path, PlannedFile(source))
            )
        if plan.cached:
            self._step(f"extend {_LD_CACHE}", lambda: self._extend_cache(plan.cached))
        for path, directories in plan.musl_paths.items():
            self._step(f"extend {path}", partial(self._extend_musl, path, directories))

    def _step(self, description: str, action: Callable[[], None]) -> None:
        if self._tell is not None:
            self._tell(description)
        if not self._dry_run:
            action()

    def _directory(self, path: str, mode: int | None) -> None:
        host = resolve(self._root, path)
        if host is None:
            host = place(self._root, path)
            if not os.path.isdir(host):
                os.mkdir(host)
            default = 0o1777 if path in _OPEN_DIRECTORIES else 0o755
            os.chmod(host, default if mode is None else mode)
            return
        if not os.path.isdir(host):
            raise _in_the_way(host, "a directory")
        if mode is not None and stat.S_IMODE(os.stat(host).st_mode) != mode:
            os.chmod(host, mode)

    def _link(self, path: str, target: str) -> None:
        host = place(self._root, path)
        if os.path.islink(host):
            if os.readlink(host) == target:
                return
            os.unlink(host)
        elif os.path.lexists(host):
            # An empty directory of a skeleton gives way, as rsync(1) has it.
            try:
                os.rmdir(host)
            except OSError:
                raise _in_the_way(host, "a link, or nothing") from None
        os.symlink(target, host)

    def _file(self, path: str, item: PlannedFile) -> None:
        host = place(self._root, path)
        if os.path.isdir(host) and not os.path.islink(host):
            raise _in_the_way(host, "a file, or nothing")
        with open(item.source, "rb") as reader:
            status = os.fstat(reader.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _in_the_way(item.source, "a file")
            if item.digest:
                found = hashlib.file_digest(reader, "sha256").hexdigest().upper()
                if found != item.digest:
                    raise MeasurementMismatch(
                        "a file has another hash than the BOM declares",
                        stage="copy-bom",
                        subject=item.source,
                        expected=item.digest,
                        found=found,
                        hint="correct the BOM if the file is the right one",
                    )
                reader.seek(0)
            mode = stat.S_IMODE(status.st_mode)
            if _is_same(host, status):
                if stat.S_IMODE(os.lstat(host).st_mode) != mode:
                    os.chmod(host, mode)
                return
            self._replace(host, reader.fileno(), status, mode)

    def _replace(self, host: str, source: int, status: os.stat_result, mode: int) -> None:
        """Copy into a new file and rename it over: never through a link, never half."""
        temporary = f"{host}.serdab-new"
        if os.path.lexists(temporary):
            os.unlink(temporary)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as writer:
                left = status.st_size
                while left > 0:
                    done = os.sendfile(fd, source, None, min(left, 1 << 30))
                    if done == 0:
                        raise UsageError(
                            "a file shrank while it was copied",
                            stage="copy-bom",
                            subject=host,
                            hint="copy it when nobody writes to it",
                        )
                    left -= done
                os.fchmod(writer.fileno(), mode)
            os.utime(temporary, ns=(status.st_mtime_ns, status.st_mtime_ns))
            os.rename(temporary, host)
        except BaseException:
            os.unlink(temporary)
            raise
        self.copied_bytes += status.st_size

    def _extend_cache(self, wanted: dict[tuple[str, int], str]) -> None:
        host = place(self._root, _LD_CACHE)
        entries: dict[tuple[str, int], str] = {}
        if os.path.isfile(host):
            with open(host, "rb") as file:
                entries = {(name, flags): path for name, path, flags in ldcache.parse(file.read())}
        entries.update(wanted)
        self._write(
            host, ldcache.dump([(name, path, flags) for (name, flags), path in entries.items()])
        )

    def _extend_musl(self, path: str, directories: list[str]) -> None:
        host = place(self._root, path)
        # The file replaces the built-in path, so it starts with it.
        lines = ["/lib", "/usr/local/lib", "/usr/lib"]
        if os.path.isfile(host):
            with open(host, encoding="utf-8") as file:
                lines = [line for line in file.read().replace(":", "\n").splitlines() if line]
        lines += [directory for directory in directories if directory not in lines]
        self._write(host, ("\n".join(lines) + "\n").encode())

    def _write(self, host: str, content: bytes) -> None:
        if os.path.isfile(host) and not os.path.islink(host):
            with open(host, "rb") as file:
                if file.read() == content:
                    return
        if os.path.lexists(host):
            os.unlink(host)
        with open(host, "xb") as file:
            file.write(content)
        os.chmod(host, 0o644)
        # A time of its own would make two equal trees differ.
        os.utime(host, (0, 0))


def _is_same(host: str, status: os.stat_result) -> bool:
    """Return whether the file is there already, as far as size and time tell."""
    try:
        there = os.lstat(host)
    except FileNotFoundError:
        return False
    return (
        stat.S_ISREG(there.st_mode)
        and there.st_nlink == 1
        and there.st_size == status.st_size
        and there.st_mtime_ns == status.st_mtime_ns
    )


def _in_the_way(path: str, expected: str) -> Error:
    return Error(
        "something else is in the way",
        stage="copy-bom",
        subject=path,
        expected=expected,
        found="something else",
        hint="remove it from the tree, or name another target in the BOM",
    )
