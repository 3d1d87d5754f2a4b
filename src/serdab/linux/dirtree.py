# SPDX-License-Identifier: Apache-2.0
"""Goes through whole trees that others write, with one descriptor, however deep they are.

A walk that keeps a descriptor per level runs out of them, one that joins names is led elsewhere or
meets PATH_MAX. Here one directory is open: down is openat(2) with O_NOFOLLOW, up is ``..``, which
must be the very directory that was left on the way down. Nothing recurses.

Above: ``dirfd`` (removal), ``sefs.imagewalk``, ``instance``. Below: the kernel.

Security: a directory that somebody moves while we are below it is noticed on the way up, and the
walk ends there; it never goes on in the place that the directory was moved to.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, final

from serdab.errors import UsageError
from serdab.linux.identity import identity

if TYPE_CHECKING:
    from serdab.linux.dirfd import DirFd

_LISTABLE: Final = (
    os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
)
_CHANGED: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.ENOENT})


@final
class Descent:
    """One open directory that moves about in a tree; paths are relative to its top."""

    def __init__(self, top: DirFd) -> None:
        self._label = top.path
        self._names: list[str] = []
        self.fd = os.open(".", _LISTABLE, dir_fd=top.fd)
        self._identities = [identity(self.fd)]

    def go(self, path: str) -> int:
        """Make the directory at ``path`` the open one; return its descriptor, which stays ours.

        Raises:
            UsageError: somebody renames directories on the way.
            OSError: as open(2).
        """
        names = path.split("/") if path else []
        common = 0
        for mine, wanted in zip(self._names, names, strict=False):
            if mine != wanted:
                break
            common += 1
        while len(self._names) > common:
            self.up()
        for name in names[common:]:
            self.down(name)
        return self.fd

    def down(self, name: str) -> int:
        """Go into a directory of this one; raises as :meth:`go`."""
        try:
            fd = os.open(name, _LISTABLE, dir_fd=self.fd)
        except OSError as exc:
            label = self.label(name)
            if exc.errno in _CHANGED:
                raise _moved(label) from exc
            raise type(exc)(exc.errno, exc.strerror, label) from exc
        self._replace(fd)
        self._names.append(name)
        self._identities.append(identity(fd))
        return fd

    def up(self) -> str:
        """Go back to the directory that this one was entered from; return its name there."""
        fd = os.open("..", _LISTABLE, dir_fd=self.fd)
        if identity(fd) != self._identities[-2]:
            os.close(fd)
            raise _moved(self.label())
        self._replace(fd)
        self._identities.pop()
        return self._names.pop()

    def depth(self) -> int:
        """Return how many directories the open one is below the top."""
        return len(self._names)

    def label(self, name: str = "") -> str:
        """Return what messages call something in the open directory."""
        return "/".join((self._label, *self._names, *((name,) if name else ())))

    def _replace(self, fd: int) -> None:
        os.close(self.fd)
        self.fd = fd

    def close(self) -> None:
        """Close it; harmless afterwards."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _moved(label: str) -> UsageError:
    return UsageError(
        "the tree changed while it was gone through",
        subject=label,
        expected="the directory that was there a moment ago",
        found="another, or none",
        hint="try again when nobody renames in it",
    )


def walk(top: DirFd) -> Iterator[tuple[int, list[os.DirEntry[str]]]]:
    """Yield (descriptor, sorted entries) of each directory of a tree, one before what is in it.

    Raises:
        UsageError: directories are renamed meanwhile.
        OSError: one cannot be read.
    """
    here = Descent(top)
    try:
        pending: list[list[str]] = []
        while True:
            entries = listing(here.fd)
            yield here.fd, entries
            pending.append(
                [entry.name for entry in reversed(entries) if entry.is_dir(follow_symlinks=False)]
            )
            while not pending[-1]:
                pending.pop()
                if not pending:
                    return
                here.up()
            here.down(pending[-1].pop())
    finally:
        here.close()


def listing(fd: int) -> list[os.DirEntry[str]]:
    """Return the entries of an open directory, sorted by the bytes of their names."""
    with os.scandir(fd) as entries:
        return sorted(entries, key=lambda entry: os.fsencode(entry.name))


def remove(parent_fd: int, name: str, label: str) -> None:
    """Remove a directory with all that is in it, never anything behind a link.

    Raises:
        UsageError: directories are renamed meanwhile.
        OSError: something cannot be removed.
    """
    from serdab.linux.dirfd import DirFd

    with DirFd(os.open(name, _LISTABLE, dir_fd=parent_fd), label) as top:
        here = Descent(top)
        try:
            pending = [_empty(here)]
            while pending:
                if pending[-1]:
                    here.down(pending[-1].pop())
                    pending.append(_empty(here))
                    continue
                pending.pop()
                if pending:
                    left = here.up()
                    os.rmdir(left, dir_fd=here.fd)
        finally:
            here.close()
    os.rmdir(name, dir_fd=parent_fd)


def _empty(here: Descent) -> list[str]:
    """Remove what is no directory; return the directories."""
    directories = []
    for entry in listing(here.fd):
        if entry.is_dir(follow_symlinks=False):
            directories.append(entry.name)
            continue
        with contextlib.suppress(FileNotFoundError):
            os.unlink(entry.name, dir_fd=here.fd)
    return directories
