# SPDX-License-Identifier: Apache-2.0
"""Host directories and files, trusted for nothing: the only door from the store to the host.

It is the seam where tests inject faults: ``MemoryDir`` is its twin in memory (and the storage of
layers that end with a boot stage).

Above: everything in ``sefs``. Below: the kernel: open(2), flock(2), pread(2), pwrite(2).

Security:
    1. Names inside are opened with O_NOFOLLOW and O_NONBLOCK; only regular files with one link
       pass: a symlink, FIFO, device or hard link that an enemy put there is refused, left alone.
    2. Files are read with pread into private buffers, never mapped: bytes cannot change after
       they were verified, and a shrinking file is a short read, not a signal.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from typing import Final, Protocol, final

from serdab.errors import BusyError, FormatError, UsageError

MAX_FILE_BYTES: Final = 1 << 46
_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class File(Protocol):
    """A host file; offsets and sizes in bytes."""

    def pread_into(self, buf: memoryview, offset: int) -> int:
        """Fill ``buf``; return the count, short only at the end of the file."""
        ...

    def pwrite(self, raw: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of ``raw``."""
        ...

    def sync(self) -> None:
        """fdatasync(2)."""
        ...

    def flusher(self) -> Callable[[], None]:
        """Return what does as ``sync`` does, once, in any thread, if this is closed meanwhile too.

        Whoever asks for it calls it.
        """
        ...

    def size(self) -> int: ...

    def truncate(self, size: int) -> None: ...

    def allocate(self, size: int) -> None:
        """posix_fallocate(3): have the host set aside the first ``size`` bytes."""
        ...

    def close(self) -> None: ...


class Dir(Protocol):
    """A host directory."""

    label: str

    def open(self, name: str, *, write: bool = False, create: bool = False) -> File:
        """Open a regular file; ``create`` makes a new one and refuses an existing one."""
        ...

    def subdir(self, name: str, *, create: bool = False) -> Dir: ...

    def names(self) -> list[str]: ...

    def unlink(self, name: str) -> None: ...

    def rename(self, old: str, new: str) -> None: ...

    def sync(self) -> None:
        """fsync(2) of the directory."""
        ...

    def lock(self, *, exclusive: bool) -> None:
        """Hold the directory until it is closed.

        Raises:
            BusyError: another process holds it.
        """
        ...

    def free_bytes(self) -> tuple[int, int]:
        """Return (total, available) bytes of the file system underneath."""
        ...

    def close(self) -> None: ...


def read_exact(file: File, length: int, offset: int) -> bytes:
    """Return ``length`` bytes, or fewer at the end of the file."""
    buf = bytearray(length)
    count = file.pread_into(memoryview(buf), offset)
    return bytes(buf[:count]) if count < length else bytes(buf)


@final
class HostFile:
    """A file descriptor and nothing else."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pread_into(self, buf: memoryview, offset: int) -> int:
        count = os.preadv(self._fd, [buf], offset)
        total = count
        while total < len(buf) and count:
            count = os.preadv(self._fd, [buf[total:]], offset + total)
            total += count
        return total

    def pwrite(self, raw: bytes | bytearray | memoryview, offset: int) -> None:
        count = os.pwrite(self._fd, raw, offset)
        if count < len(raw):
            view = memoryview(raw)
            while count < len(raw):
                count += os.pwrite(self._fd, view[count:], offset + count)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def flusher(self) -> Callable[[], None]:
        fd = os.dup(self._fd)

        def flush() -> None:
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)

        return flush

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def allocate(self, size: int) -> None:
        os.posix_fallocate(self._fd, 0, size)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@final
class HostDir:
    """A directory descriptor; every name is resolved in it and nowhere else."""

    __slots__ = ("_fd", "label")

    def __init__(self, fd: int, label: str) -> None:
        self._fd = fd
        self.label = label

    @classmethod
    def at(cls, path: os.PathLike[str]) -> HostDir:
        """Open a directory that the user named (links on the way to it are the user's)."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UsageError("no such host directory", subject=os.fspath(path)) from None
        except NotADirectoryError:
            raise UsageError("not a directory", subject=os.fspath(path)) from None
        return cls(fd, os.fspath(path))

    def open(self, name: str, *, write: bool = False, create: bool = False) -> HostFile:
        flags = _FLAGS | (os.O_RDWR if write or create else os.O_RDONLY)
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        try:
            fd = os.open(name, flags, 0o600, dir_fd=self._fd)
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise FormatError(
                    "host file is not a regular file", subject=f"{self.label}/{name}"
                ) from None
            raise
        status = os.fstat(fd)
        problem = ""
        if not stat.S_ISREG(status.st_mode):
            problem = "host file is not a regular file"
        elif status.st_nlink != 1:
            problem = "host file has more than one name"
        elif status.st_size > MAX_FILE_BYTES:
            problem = "host file of an absurd size"
        if problem:
            os.close(fd)
            raise FormatError(problem, subject=f"{self.label}/{name}")
        return HostFile(fd)

    def subdir(self, name: str, *, create: bool = False) -> HostDir:
        if create:
            try:
                os.mkdir(name, 0o700, dir_fd=self._fd)
            except FileExistsError:
                pass
            else:
                os.fsync(self._fd)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _FLAGS, dir_fd=self._fd)
        except OSError as exc:
            if exc.errno in (errno.ENOTDIR, errno.ELOOP):
                raise FormatError(
                    "host directory is not a directory", subject=f"{self.label}/{name}"
                ) from None
            raise
        return HostDir(fd, f"{self.label}/{name}")

    def names(self) -> list[str]:
        return sorted(os.listdir(self._fd))

    def unlink(self, name: str) -> None:
        os.unlink(name, dir_fd=self._fd)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def sync(self) -> None:
        os.fsync(self._fd)

    def lock(self, *, exclusive: bool) -> None:
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                "in use by another process",
                subject=self.label,
                hint="stop the program or unmount the volume that uses it",
            ) from None

    def free_bytes(self) -> tuple[int, int]:
        status = os.fstatvfs(self._fd)
        return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
