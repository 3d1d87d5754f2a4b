# SPDX-License-Identifier: Apache-2.0
"""Where a file lies in its own file system, whatever mount it was reached by.

A bind mount gives a directory a second path; its device and inode number tell the directory itself,
but not what lies below one that is hidden. proc_pid_mountinfo(5) tells which part of which file
system each mount shows, so two paths can be brought to the same one.

Above: ``outside``, ``vfs.secondnames``, ``libos.ground``, ``libos.hostdirs``, ``instance.reach``.

Security:
    1. What is asked is a descriptor: its mount is proc_pid_fdinfo(5)'s, its path there the
       kernel's of this moment.
    2. Not covered: two file systems that show the same files (the layers of an overlayfs, a
       network share and what it shares). And a process in a chroot does not hear of the mount that
       its root lies on: a path on that mount is then compared with others on it only.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator

from serdab.errors import Error
from serdab.structs import frozen

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final, Self, final
else:

    def final(decorated):  # noqa: ANN001, ANN201 - typing's, which does nothing at run time
        return decorated


_HERE: Final = os.O_PATH | os.O_CLOEXEC
#: What open(2) says where nothing is.
NOTHING: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


@frozen
class Where:
    """A place: the file system (``major:minor`` of mountinfo), and the path from its own root."""

    device: bytes
    path: bytes

    def is_below(self, other: Where) -> bool:
        """Return whether it is the other place, or lies below it."""
        return self.device == other.device and is_below(self.path, other.path)

    def below(self, other: Where) -> bytes:
        """Return the path from another place to this one; empty if it is the same.

        Preconditions: ``is_below(other)``.
        """
        return self.path[len(other.path.rstrip(b"/")) :].strip(b"/")

    def join(self, relative: bytes) -> Where:
        """Return the place at a path below this one."""
        return Where(self.device, os.path.join(self.path, relative)) if relative else self


def is_below(path: bytes, directory: bytes) -> bool:
    """Return whether a path is another one, or leads below it."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


@frozen
class Mounted:
    """A mount: what it shows, and where."""

    shows: Where
    target: bytes


@final
class MountTable:
    """The mounts of this process's namespace; it owns a descriptor of the kernel's list."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)
        self._lines: dict[int, bytes] = {}
        self._read()

    def _read(self) -> None:
        os.lseek(self._fd, 0, os.SEEK_SET)
        parts = []
        while part := os.read(self._fd, 1 << 16):
            parts.append(part)
        lines = b"".join(parts).splitlines()
        # Taken apart when they are asked for: a host may have thousands.
        self._lines = {int(line[: line.index(b" ")]): line for line in lines}

    def _now(self) -> dict[int, bytes]:
        # The kernel says so when something was mounted or unmounted since the list was read.
        if self._poll.poll(0):
            self._read()
        return self._lines

    def of(self, fd: int) -> Where:
        """Return where what a descriptor stands for lies."""
        path = os.readlink(b"/proc/self/fd/%d" % fd)
        number = _mount_id(fd)
        if number not in self._now():
            self._read()  # a line may be missed while others come and go
        line = self._lines.get(number)
        mount = None if line is None else _parse(line)
        if mount is None or not is_below(path, mount.target):
            return Where(b"mount %d" % number, path)
        return mount.shows.join(path[len(mount.target.rstrip(b"/")) :].strip(b"/"))

    def named(self, path: bytes) -> frozenset[Where]:
        """Return where an absolute path leads, links followed, and where it would without the last
        mount on it. What is not there yet lies where it would be made.

        Raises:
            Error: that cannot be told.
        """
        found = set()
        fd = open_if_there(path)
        if fd is not None:
            found.add(self._of_once(fd))
        there, missing = path, b""
        while there != b"/":
            there, name = os.path.split(there)
            missing = os.path.join(name, missing) if missing else name
            fd = open_if_there(there)
            if fd is not None:
                found.add(self._of_once(fd).join(missing))
                break
        return frozenset(found)

    def _of_once(self, fd: int) -> Where:
        try:
            return self.of(fd)
        finally:
            os.close(fd)

    def names(self, where: Where) -> Iterator[bytes]:
        """Yield the paths by which a place is reached."""
        device = b" %s " % where.device
        for line in self._now().values():
            if device in line and where.is_below((mount := _parse(line)).shows):
                yield os.path.join(mount.target, where.below(mount.shows)).rstrip(b"/") or b"/"

    def mounted_below(self, path: bytes) -> Iterator[Mounted]:
        """Yield the mounts below a path, but for one on it."""
        for mount in map(_parse, self._now().values()):
            if mount.target != path and is_below(mount.target, path):
                yield mount

    def shown_in(self, fd: int) -> Iterator[Where]:
        """Yield where a directory lies, and all that is mounted below it."""
        yield self.of(fd)
        for mount in self.mounted_below(os.readlink(b"/proc/self/fd/%d" % fd)):
            yield mount.shows

    def close(self) -> None:
        """Close it; harmless afterwards."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_if_there(path: bytes, *, dir_fd: int | None = None, flags: int = 0) -> int | None:
    """Open a path with O_PATH; None if nothing is there.

    Raises:
        Error: whether something is there cannot be told.
    """
    try:
        return os.open(path, _HERE | flags, dir_fd=dir_fd)
    except OSError as exc:
        if exc.errno in NOTHING:
            return None
        raise untold(path, exc) from exc


def leads_nowhere(failure: Exception) -> bool:
    """Return whether a failure says that nobody gets anywhere by a path: nothing is there, a link
    is not followed, or it is closed to us. That we ran out of descriptors, or the disk fails, says
    nothing about it.
    """
    cause = failure if isinstance(failure, OSError) else failure.__cause__
    return not isinstance(cause, OSError) or cause.errno in NOTHING | {errno.EACCES}


def untold(path: bytes | str, cause: OSError) -> Error:
    """Return the refusal where it cannot be told what must not be shown."""
    return Error(
        "it cannot be told what must not be shown to programs",
        subject=os.fsdecode(path),
        expected="a file, a directory, or nothing",
        found=os.strerror(cause.errno or 0),
        hint="make it readable for who runs the instance, or take it out of the way",
    )


def _mount_id(fd: int) -> int:
    info = os.open(b"/proc/self/fdinfo/%d" % fd, os.O_RDONLY | os.O_CLOEXEC)
    try:
        raw = os.read(info, 4096)
    finally:
        os.close(info)
    at = raw.index(b"mnt_id:")
    return int(raw[at + 7 :].split(b"\n", 1)[0])


def _parse(line: bytes) -> Mounted:
    _, _, device, root, target, _ = line.split(b" ", 5)
    return Mounted(Where(device, _plain(root)), _plain(target))


def _plain(escaped: bytes) -> bytes:
    first, *rest = escaped.split(b"\\")
    return first + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in rest)
