# SPDX-License-Identifier: Apache-2.0
"""Opens absolute paths, and those that begin with ``..``: component by component.

A link is followed only in a directory that nobody but root and the caller can write, and that
lies in no *closed* directory: an instance (its storage, and programs through /host, write there)
or a directory that programs are shown. Everything else on the way must be a plain directory.

Above: ``instance``, ``libos``, ``cli``. Below: the kernel. Paths below an instance go through
``dirfd`` instead.

Security: what was decided about is the descriptor that is returned, and each directory was judged
by its own descriptor while the next component was opened from it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection

from serdab.config.names import CONFIG, DESCRIPTOR
from serdab.errors import UsageError
from serdab.linux.dirfd import DirFd, word_for
from serdab.linux.identity import Identity, identity
from serdab.linux.whereabouts import MountTable, Where, leads_nowhere, open_if_there, untold

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

MAX_LINKS: Final = 40  # as path_resolution(7)
_PROC_SUPER_MAGIC: Final = 0x9FA0
_HERE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def is_instance(fd: int) -> bool:
    """Return whether a directory is an instance at this moment: by configuration or descriptor.

    A link in place of ``build/`` does not make us look, or wait, elsewhere.

    Raises:
        Error: that cannot be told.
    """
    here = DirFd(fd, "")  # borrowed
    for name in (CONFIG, DESCRIPTOR):
        try:
            if here.exists(name):
                return True
        except OSError as exc:
            # Nobody says that it is none: it could not be looked at.
            raise untold(os.path.join(os.readlink(f"/proc/self/fd/{fd}"), name), exc) from exc
    return False


class Walk:
    """A walk from the root of the file system; ``closed`` are identities of closed directories.

    ``anywhere``: links where others write are followed, too, but for those in closed directories:
    for what a person names who says what of the host is to be copied.
    """

    def __init__(self, closed: Collection[Identity] = (), *, anywhere: bool = False) -> None:
        self._closed = frozenset(closed)
        self._anywhere = anywhere
        self._links = 0

    def directory(self, path: str, *, base: DirFd | None = None) -> DirFd:
        """Open a directory; a relative path begins at ``base`` (None: the current directory).

        Raises:
            UsageError: there is none, or the way to it leads through a link where others write.
        """
        try:
            fd = self._open(path, base)
        except OSError as exc:
            raise _refused(path, "a path to something", os.strerror(exc.errno or 0)) from exc
        try:
            opened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise _refused(path, "a directory", os.strerror(exc.errno or 0)) from exc
        finally:
            os.close(fd)
        return DirFd(opened, path)

    def way(self, path: str, *, base: DirFd | None = None) -> list[int]:
        """Open what is there, and each directory on the way; return the descriptors (O_PATH).

        The first is the root, the last what was named, of any kind; they are the caller's.

        Raises:
            UsageError: as :meth:`directory`.
        """
        try:
            return self._walk(path, base)
        except OSError as exc:
            raise _refused(path, "a path to something", os.strerror(exc.errno or 0)) from exc

    def make(self, path: str, *, base: DirFd | None = None, mode: int = 0o755) -> DirFd:
        """Open a directory, made with those before it where they are missing.

        Raises:
            UsageError: as :meth:`directory`.
            OSError: one cannot be made.
        """
        try:
            return self.directory(path, base=base)
        except UsageError as exc:
            above, name = os.path.split(path.rstrip("/"))
            is_missing = isinstance(exc.__cause__, FileNotFoundError)
            if not is_missing or name in ("", ".", ".."):
                raise
        with self.make(above or ".", base=base, mode=mode) as parent:
            made = parent.make(name, mode=mode)
        made.path = path
        return made

    def parent(self, path: str, *, base: DirFd | None = None) -> tuple[DirFd, str]:
        """Open the directory that a path names something in; return it and the name.

        Raises:
            UsageError: as :meth:`directory`, or the path ends in no name.
        """
        above, name = os.path.split(path.rstrip("/"))
        if name in ("", ".", ".."):
            raise _refused(path, "a path that ends in a name", name or "none")
        directory = self.directory(above or ".", base=base)
        directory.path = above  # so that messages say what the user said
        return directory, name

    def file(self, path: str, flags: int = os.O_RDONLY) -> int:
        """Open a file that the command line names; it may be a pipe, so its kind is not judged.

        Raises:
            OSError: there is none, or it cannot be opened.
            UsageError: the way to it leads through a link where others write, or it is a FIFO or
                device that others put there.
        """
        fd = self.end(path)
        try:
            return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_NOCTTY)
        finally:
            os.close(fd)

    def end(self, path: str) -> int:
        """Open what a path names with O_PATH; raises as :meth:`file`."""
        return self._open(path, None, last_may_be_magic=True)

    def _open(self, path: str, base: DirFd | None, *, last_may_be_magic: bool = False) -> int:
        stack = self._walk(path, base, last_may_be_magic=last_may_be_magic)
        opened = stack.pop()
        for fd in stack:
            os.close(fd)
        return opened

    def _walk(self, path: str, base: DirFd | None, *, last_may_be_magic: bool = False) -> list[int]:
        if "\0" in path or not path:
            raise _refused(path.replace("\0", "?"), "a path", "none")
        self._links = 0
        stack: list[int] = []
        try:
            if path.startswith("/"):
                stack.append(os.open("/", _HERE | os.O_DIRECTORY))
            else:
                stack += _way_to(os.curdir if base is None else base.fd)
            self._follow(stack, path, path, last_may_be_magic=last_may_be_magic)
        except BaseException:
            for fd in stack:
                os.close(fd)
            raise
        return stack

    def _follow(self, stack: list[int], way: str, path: str, *, last_may_be_magic: bool) -> None:
        """Walk ``way`` from the top of the stack: the directories from the root down."""
        names = [name for name in way.split("/") if name not in ("", ".")]
        for number, name in enumerate(names):
            if name == "..":
                if len(stack) > 1:
                    os.close(stack.pop())
                continue
            fd = os.open(name, _HERE, dir_fd=stack[-1])
            mode = os.fstat(fd).st_mode
            is_last = number == len(names) - 1
            if not stat.S_ISLNK(mode):
                # Owned by the stack before it is judged: whatever is raised, it is closed.
                stack.append(fd)
                if not is_last and not stat.S_ISDIR(mode):
                    raise _refused(path, "directories on the way", f"{word_for(mode)} at {name}")
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    self._check_special(stack, name, path)
                continue
            try:
                self._check_link(stack, name, path)
                target = os.readlink("", dir_fd=fd)
                if is_last and last_may_be_magic and _is_magic(fd):
                    # /dev/stdin, or a shell's <(command): a descriptor of the caller's own.
                    magic = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=stack[-1])
                    stack.append(magic)
                    continue
            finally:
                os.close(fd)
            if target.startswith("/"):
                while len(stack) > 1:
                    os.close(stack.pop())
            self._follow(stack, target, path, last_may_be_magic=last_may_be_magic and is_last)

    def _check_link(self, stack: list[int], name: str, path: str) -> None:
        self._count_link()
        if not self._anywhere and _others_write(os.fstat(stack[-1])):
            raise _refused(
                path, "no link where others than root and the caller can write", f"one at {name}"
            )
        if self._is_closed(stack):
            raise _refused(
                path, "no link in an instance or in what programs are shown", f"one at {name}"
            )

    def _count_link(self) -> None:
        self._links += 1
        if self._links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def _check_special(self, stack: list[int], name: str, path: str) -> None:
        """Refuse a FIFO, socket or device on top of the stack that others may have put there.

        It would let them say how long this takes, and what is read when.
        """
        status = os.fstat(stack[-1])
        is_ours = status.st_uid in (0, os.geteuid())
        if self._is_closed(stack[:-1]) or not (is_ours or not _others_write(os.fstat(stack[-2]))):
            raise _refused(path, "a file", f"{word_for(status.st_mode)} at {name}")

    def _is_closed(self, stack: list[int]) -> bool:
        if any(self._closes(fd) for fd in stack):
            return True
        # A mount may show a part of a closed directory without what lies above it there.
        return len(stack) > 1 and any(map(self._is_closed_path, _other_paths(stack[-1])))

    def _closes(self, fd: int) -> bool:
        return identity(fd) in self._closed or is_instance(fd)

    def _is_closed_path(self, path: bytes) -> bool:
        at = b"/"
        for part in path.split(b"/"):
            at = os.path.join(at, part)
            fd = open_if_there(at, flags=os.O_DIRECTORY | os.O_NOFOLLOW)
            if fd is None:
                return False  # another mount lies over it by now
            try:
                if self._closes(fd):
                    return True
            finally:
                os.close(fd)
        return False


class _Trace(Walk):
    """A walk that follows every link there is, and remembers where each lies."""

    def __init__(self, table: MountTable) -> None:
        super().__init__(anywhere=True)
        self._table = table
        self.places: list[Where] = []

    def _check_link(self, stack: list[int], name: str, path: str) -> None:
        self._count_link()
        self.places.append(self._table.of(stack[-1]).join(os.fsencode(name)))

    def _check_special(self, stack: list[int], name: str, path: str) -> None:
        return  # nothing is opened


def trace(table: MountTable, path: str) -> list[Where]:
    """Return where the links on a path lie, and what it names: nothing is opened or judged.

    Raises:
        Error: the way cannot be told.
    """
    walk = _Trace(table)
    try:
        fd = walk.end(path)
    except OSError as exc:
        if not leads_nowhere(exc):
            raise untold(path, exc) from exc
        if exc.errno == errno.EACCES:
            return walk.places  # whoever wants to open it says so
        return [*walk.places, *table.named(os.fsencode(os.path.join(os.getcwd(), path)))]
    try:
        return [*walk.places, table.of(fd)]
    finally:
        os.close(fd)


def _other_paths(fd: int) -> list[bytes]:
    with MountTable() as table:
        here = os.readlink(b"/proc/self/fd/%d" % fd)
        return [path for path in table.names(table.of(fd)) if path != here]


def _others_write(status: os.stat_result) -> bool:
    return status.st_uid not in (0, os.geteuid()) or bool(status.st_mode & _OTHERS_WRITE)


def _way_to(start: str | int) -> list[int]:
    """Return descriptors of all directories from the root down to ``start``."""
    if isinstance(start, str):
        fd = os.open(start, _HERE | os.O_DIRECTORY)
    else:
        fd = os.open(".", _HERE | os.O_DIRECTORY, dir_fd=start)
    stack = [fd]
    try:
        while True:
            above = os.open("..", _HERE | os.O_DIRECTORY, dir_fd=stack[0])
            if identity(above) == identity(stack[0]):
                os.close(above)  # the root is its own parent
                return stack
            stack.insert(0, above)
    except BaseException:
        for each in stack:
            os.close(each)
        raise


def _is_magic(fd: int) -> bool:
    from serdab.linux.files import filesystem_magic

    return filesystem_magic(fd) == _PROC_SUPER_MAGIC


def _refused(path: str, expected: str, found: str) -> UsageError:
    return UsageError(
        "this path is not to be followed",
        subject=path,
        expected=expected,
        found=found,
        hint="name the real path, or move what it names out of reach of others",
    )
