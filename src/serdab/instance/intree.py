# SPDX-License-Identifier: Apache-2.0
"""Paths inside a tree that will become a root: links mean what they will mean inside.

Filling ``image/`` must never write through ``image/lib -> /usr/lib`` into the host, and others may
rename and link in the tree while it is filled. So every path is resolved from the tree's descriptor
with the tree as its root: component by component by openat(2) with O_NOFOLLOW, a link's target
walked from where it stands, ``..`` back to a descriptor that is held, and no further than the top.
That is openat2(2)'s RESOLVE_IN_ROOT, which cannot make what is missing on the way.

Above: ``bom``, ``elf``, ``libraries``. Below: ``linux.dirfd``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import Final, Protocol, final

from serdab.errors import UsageError
from serdab.linux.dirfd import DirFd, word_for
from serdab.linux.outside import MAX_LINKS, Walk
from serdab.linux.whereabouts import NOTHING, leads_nowhere
from serdab.structs import frozen

#: What open(2) says, besides, of a socket, a device without a driver, a name that no file can have.
_NO_FILE: Final = NOTHING | {errno.ENXIO, errno.ENODEV, errno.ENAMETOOLONG}
_HERE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class Files(Protocol):
    """Where programs and libraries are looked for, by absolute paths."""

    def exists(self, path: str) -> bool:
        """Return whether anything is there, links followed."""
        ...

    def open(self, path: str) -> BufferedReader | None:
        """Open a regular file for reading, links followed; None if there is none."""
        ...

    def real(self, path: str) -> str:
        """Return where ``path`` leads, without links; itself if nothing is there."""
        ...


@final
class HostFiles:
    """Those of this machine, as its own programs find them."""

    def exists(self, path: str) -> bool:
        """See :class:`Files`."""
        return os.path.exists(path)

    def open(self, path: str) -> BufferedReader | None:
        """See :class:`Files`."""
        return open_host_file(path)

    def real(self, path: str) -> str:
        """See :class:`Files`."""
        return os.path.realpath(path)


def require_way(path: str) -> None:
    """Refuse a path of the host that leads through a link in an instance, if anything is there.

    Raises:
        UsageError: a program of the instance may have put it there.
        OSError: that cannot be told.
    """
    try:
        os.close(Walk(anywhere=True).file(path, os.O_PATH))
    except OSError as exc:
        if not leads_nowhere(exc):
            raise _named(exc, path) from exc


def open_host_file(path: str) -> BufferedReader | None:
    """Open a regular file of the host; None if there is none, or something else.

    Raises:
        OSError: it cannot be read, or whether it is there cannot be told.
        UsageError: the way leads through a link in an instance: a program may have put it there.
    """
    try:
        fd = Walk(anywhere=True).file(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as exc:
        if exc.errno in _NO_FILE:
            return None
        raise _named(exc, path) from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return open(fd, "rb")


def _named(exc: OSError, path: str) -> OSError:
    return type(exc)(exc.errno, exc.strerror, path)


@final
class NoFiles:
    """A tree that does not exist yet."""

    def exists(self, path: str) -> bool:
        """See :class:`Files`."""
        return False

    def open(self, path: str) -> BufferedReader | None:
        """See :class:`Files`."""
        return None

    def real(self, path: str) -> str:
        """See :class:`Files`."""
        return path


@final
@frozen
class Spot:
    """A name in an open directory of the tree: nothing is followed from here on.

    ``path`` is relative to the tree, with the links on the way resolved. ``label``: for messages.
    """

    fd: int
    name: str
    path: str
    label: str

    def status(self) -> os.stat_result | None:
        """Return the status of what is there, a link's own; None if nothing is."""
        try:
            return os.stat(self.name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self) -> BufferedReader | None:
        """Open the regular file that is there; None if it is something else, or nothing.

        Raises:
            OSError: it cannot be read, or whether it is there cannot be told.
        """
        try:
            fd = os.open(self.name, _READ, dir_fd=self.fd)
        except OSError as exc:
            if exc.errno in _NO_FILE:
                return None
            raise _named(exc, self.label) from exc
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        return open(fd, "rb")

    def open_directory(self) -> DirFd | None:
        """Open the directory that is there; None if it is something else."""
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            return DirFd(os.open(self.name, flags, dir_fd=self.fd), self.label)
        except NotADirectoryError:
            return None


@final
class Tree:
    """Paths in the tree whose top is open as ``top``, which stays the caller's."""

    def __init__(self, top: DirFd) -> None:
        self._top = top

    def exists(self, path: str) -> bool:
        """See :class:`Files`."""
        with self.find(path) as spot:
            return spot is not None and spot.status() is not None

    def open(self, path: str) -> BufferedReader | None:
        """See :class:`Files`."""
        with self.find(path) as spot:
            return None if spot is None else spot.open()

    def real(self, path: str) -> str:
        """See :class:`Files`."""
        with self.find(path) as spot:
            return path if spot is None else f"/{spot.path}"

    @contextmanager
    def find(self, path: str) -> Iterator[Spot | None]:
        """Yield where ``path`` leads, links followed; None where the way to it ends."""
        with self._walk(path, follow_last=True, create=False) as spot:
            yield spot

    @contextmanager
    def place(self, path: str, *, follow_last: bool = False) -> Iterator[Spot]:
        """Yield the place of ``path``, its parents made as directories.

        The last component is not followed unless asked for, so that a link there can be replaced.

        Raises:
            UsageError: links lead in circles, or a file stands where a directory is needed.
        """
        with self._walk(path, follow_last=follow_last, create=True) as spot:
            if spot is None:
                raise UsageError(
                    "a path in the tree goes in circles",
                    subject=path,
                    expected="links that end somewhere",
                    found="links that point to each other",
                    hint="remove one of them from the tree",
                )
            yield spot

    @contextmanager
    def _walk(self, path: str, *, follow_last: bool, create: bool) -> Iterator[Spot | None]:
        fds: list[int] = []
        names: list[str] = []
        try:
            yield self._resolve(fds, names, path, follow_last=follow_last, create=create)
        finally:
            for fd in fds:
                os.close(fd)

    def _resolve(
        self, fds: list[int], names: list[str], path: str, *, follow_last: bool, create: bool
    ) -> Spot | None:
        """Walk; ``fds`` are the directories of ``names``, open for whoever takes the result."""
        pending = _parts(path)
        links = 0
        while pending:
            part = pending.pop(0)
            if part == "..":
                if fds:
                    os.close(fds.pop())
                    names.pop()
                continue
            above = fds[-1] if fds else self._top.fd
            if not pending and not follow_last:
                return self._spot(above, [*names, part])
            try:
                fd = _enter(above, part, make=create and bool(pending))
            except FileNotFoundError:
                return None if pending else self._spot(above, [*names, part])
            fds.append(fd)
            mode = os.fstat(fd).st_mode
            if stat.S_ISLNK(mode):
                links += 1
                if links > MAX_LINKS:
                    return None
                target = os.readlink("", dir_fd=fd)
                os.close(fds.pop())
                if target.startswith("/"):
                    while fds:
                        os.close(fds.pop())
                    names.clear()
                pending = _parts(target) + pending
                continue
            if not pending:
                return self._spot(above, [*names, part])
            if not stat.S_ISDIR(mode):
                if not create:
                    return None
                raise UsageError(
                    "a file stands where a directory is needed",
                    subject=self._top.name("/".join([*names, part])),
                    expected="a directory",
                    found=word_for(mode),
                    hint="remove it from the tree, or name another target",
                )
            names.append(part)
        return Spot(fds[-1] if fds else self._top.fd, ".", "/".join(names), self._label(names))

    def _spot(self, fd: int, names: list[str]) -> Spot:
        return Spot(fd, names[-1], "/".join(names), self._label(names))

    def _label(self, names: list[str]) -> str:
        return self._top.name("/".join(names))


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _enter(above: int, name: str, *, make: bool) -> int:
    try:
        return os.open(name, _HERE, dir_fd=above)
    except FileNotFoundError:
        if not make:
            raise
    try:
        os.mkdir(name, 0o755, dir_fd=above)
    except FileExistsError:
        return os.open(name, _HERE, dir_fd=above)  # somebody was faster: a link is seen as one
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        os.fchmod(fd, 0o755)
    except BaseException:
        os.close(fd)
        raise
    return fd
