# SPDX-License-Identifier: Apache-2.0
"""Carries the plan of a BOM out, step by step, or only tells the steps.

Files that are the same by size and time are left alone, so that a second run changes nothing and
the next build finds nothing to seal. Above: ``bom``. Below: ``bomplan``, ``intree``, ``ldcache``.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import BufferedReader
from typing import Final

from serdab.errors import Error, MeasurementMismatch, UsageError
from serdab.instance import ldcache
from serdab.instance.bomplan import Plan, PlannedFile, Say
from serdab.instance.intree import Spot, Tree
from serdab.instance.owners import Owner, store_owners
from serdab.linux.dirfd import DirFd
from serdab.linux.files import next_data, next_hole

_OPEN_DIRECTORIES: Final = ("/tmp", "/var/tmp")  # noqa: S108 - names inside the tree
_LD_CACHE: Final = "/etc/ld.so.cache"
_MAX_CACHE_BYTES: Final = 64 << 20


class Steps:
    """Carries a plan out in a tree, or, without one, only tells it.

    ``beside`` is the directory that the tree lies in, under ``name``.
    """

    def __init__(
        self, tree: Tree | None, beside: DirFd | None, name: str, tell: Say | None
    ) -> None:
        self._tree = tree
        self._beside = beside
        self._name = name
        self._tell = tell
        self.copied_bytes = 0

    def do_listed(self, plan: Plan) -> None:
        """Make directories and links, copy directories and files."""
        for path, mode in plan.directories.items():
            self._step(f"directory {path}", partial(_directory, path=path, mode=mode))
        for path, target in plan.links.items():
            self._step(f"link {path} -> {target}", partial(_link, path=path, target=target))
        for path, item in plan.files.items():
            self._step(f"file {path} from {item.source}", partial(self._file, path=path, item=item))

    def do_owners(self, plan: Plan) -> None:
        """Note declared owners beside the tree, for the build to seal."""
        for path, declared in plan.owners.items():
            if self._tell is not None and declared is not None:
                self._tell(f"owner {declared[0]}:{declared[1]} of {path}")
        if self._tree is None or self._beside is None:
            return
        changes: dict[str, Owner | None] = {}
        for path, owner in plan.owners.items():
            # The tree's own name for it: links above it may lead elsewhere.
            with self._tree.place(path) as spot:
                changes[spot.path or "."] = owner
        store_owners(self._beside, self._name, changes)

    def do_libraries(self, plan: Plan) -> None:
        """Copy what was found for programs and extend the loaders' configuration."""
        for path, target in plan.library_links.items():
            self._step(f"link {path} -> {target}", partial(_link, path=path, target=target))
        for path, source in plan.libraries.items():
            self._step(
                f"library {path} from {source}",
                partial(self._file, path=path, item=PlannedFile(source)),
            )
        if plan.cached:
            self._step(f"extend {_LD_CACHE}", partial(_extend_cache, wanted=plan.cached))
        for path, directories in plan.musl_paths.items():
            self._step(f"extend {path}", partial(_extend_musl, path=path, directories=directories))

    def _step(self, description: str, action: Callable[[Tree], None]) -> None:
        if self._tell is not None:
            self._tell(description)
        if self._tree is not None:
            action(self._tree)

    def _file(self, tree: Tree, *, path: str, item: PlannedFile) -> None:
        with tree.place(path) as spot:
            there = spot.status()
            if there is not None and stat.S_ISDIR(there.st_mode):
                raise _in_the_way(spot.label, "a file, or nothing")
            reader = item.open()
            if reader is None:
                raise _in_the_way(item.source, "a file")
            with reader:
                status = os.fstat(reader.fileno())
                if item.digest:
                    _check_digest(reader, item)
                mode = stat.S_IMODE(status.st_mode)
                if there is not None and _is_same(there, status):
                    if stat.S_IMODE(there.st_mode) != mode:
                        _change_mode(spot, mode)
                    return
                _replace(spot, reader.fileno(), status, mode)
        self.copied_bytes += status.st_size


def _directory(tree: Tree, *, path: str, mode: int | None) -> None:
    with tree.place(path, follow_last=True) as spot:
        is_new = spot.status() is None
        if is_new:
            os.mkdir(spot.name, dir_fd=spot.fd)
        found = spot.open_directory()
        if found is None:
            raise _in_the_way(spot.label, "a directory")
        if mode is None and is_new:
            mode = 0o1777 if path in _OPEN_DIRECTORIES else 0o755
        with found:
            if mode is not None and stat.S_IMODE(os.fstat(found.fd).st_mode) != mode:
                os.fchmod(found.fd, mode)


def _link(tree: Tree, *, path: str, target: str) -> None:
    with tree.place(path) as spot:
        there = spot.status()
        if there is not None and stat.S_ISLNK(there.st_mode):
            if os.readlink(spot.name, dir_fd=spot.fd) == target:
                return
            os.unlink(spot.name, dir_fd=spot.fd)
        elif there is not None:
            # An empty directory of a skeleton gives way, as rsync(1) has it.
            try:
                os.rmdir(spot.name, dir_fd=spot.fd)
            except OSError:
                raise _in_the_way(spot.label, "a link, or nothing") from None
        os.symlink(target, spot.name, dir_fd=spot.fd)


def _check_digest(reader: BufferedReader, item: PlannedFile) -> None:
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


def _change_mode(spot: Spot, mode: int) -> None:
    file = spot.open()
    if file is None:
        raise _in_the_way(spot.label, "a file, or nothing")
    with file:
        os.fchmod(file.fileno(), mode)


def _replace(spot: Spot, source: int, status: os.stat_result, mode: int) -> None:
    """Copy into a new file and rename it over: never through a link, never half."""
    with _written_anew(spot) as fd:
        os.ftruncate(fd, status.st_size)  # holes stay holes
        at = next_data(source, 0, status.st_size)
        while at < status.st_size:
            os.lseek(fd, at, os.SEEK_SET)
            end = min(next_hole(source, at, status.st_size), at + (1 << 30))
            done = os.sendfile(fd, source, at, end - at)
            at = next_data(source, at + done, status.st_size) if done else status.st_size
        if os.fstat(source).st_size < status.st_size:
            raise UsageError(
                "a file shrank while it was copied",
                stage="copy-bom",
                subject=spot.label,
                hint="copy it when nobody writes to it",
            )
        os.fchmod(fd, mode)
        os.utime(fd, ns=(status.st_mtime_ns, status.st_mtime_ns))


@contextmanager
def _written_anew(spot: Spot) -> Iterator[int]:
    """Yield the descriptor of a new file, which then takes the place of what is there."""
    temporary = f"{spot.name}.serdab-new"
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=spot.fd)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=spot.fd)
    try:
        with open(fd, "wb"):
            yield fd
        os.rename(temporary, spot.name, src_dir_fd=spot.fd, dst_dir_fd=spot.fd)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=spot.fd)
        raise


def _extend_cache(tree: Tree, *, wanted: dict[tuple[str, int], str]) -> None:
    with tree.place(_LD_CACHE) as spot:
        raw = _content(spot)
        entries: dict[tuple[str, int], str] = {}
        if raw is not None:
            entries = {(name, flags): path for name, path, flags in ldcache.parse(raw)}
        entries.update(wanted)
        _write(spot, ldcache.dump([(name, path, flags) for (name, flags), path in entries.items()]))


def _extend_musl(tree: Tree, *, path: str, directories: list[str]) -> None:
    with tree.place(path) as spot:
        raw = _content(spot)
        # The file replaces the built-in path, so it starts with it.
        lines = ["/lib", "/usr/local/lib", "/usr/lib"]
        if raw is not None:
            text = raw.decode("utf-8", "surrogateescape")
            lines = [line for line in text.replace(":", "\n").splitlines() if line]
        lines += [directory for directory in directories if directory not in lines]
        _write(spot, ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))


def _content(spot: Spot) -> bytes | None:
    """Return what a regular file holds; None if there is none."""
    file = spot.open()
    if file is None:
        return None
    with file:
        return file.read(_MAX_CACHE_BYTES)


def _write(spot: Spot, content: bytes) -> None:
    if _content(spot) == content:
        return
    with _written_anew(spot) as fd:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fchmod(fd, 0o644)
        # A time of its own would make two equal trees differ.
        os.utime(fd, (0, 0))


def _is_same(there: os.stat_result, status: os.stat_result) -> bool:
    """Return whether the file is there already, as far as size and time tell."""
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
