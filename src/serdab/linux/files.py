# SPDX-License-Identifier: Apache-2.0
"""Calls on files and directories that the standard library lacks or gives less of.

openat2(2) confines a path, renameat2(2) takes flags, fallocate(2) modes; getdents64(2) tells the
position of each entry, which os.scandir hides; fchownat(2) and utimensat(2) work on a bare O_PATH
descriptor.

Above: ``vfs.hostfs``. Below: ``linux.libc``.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from enum import IntFlag
from struct import Struct
from typing import Any, Final, final

from serdab.linux.libc import check, libc

_SYS_OPENAT2: Final = 437  # the same on every architecture: numbers are shared since Linux 5.1
_OPEN_HOW: Final = Struct("=QQQ")
_DIRENT64: Final = Struct("=QqHB")  # struct linux_dirent64 up to its name
_TIMES: Final = Struct("=qqqq")
_AT_EMPTY_PATH: Final = 0x1000
_UTIME_NOW: Final = 0x3FFFFFFF
_UTIME_OMIT: Final = 0x3FFFFFFE
_SECOND: Final = 1_000_000_000

_long = ctypes.c_long
_int = ctypes.c_int
_off_t = ctypes.c_int64


def _declare(name: str, result: Any, *arguments: Any) -> Any:
    # A prototype of our own, since attributes of ``libc`` are shared by all who use it.
    return ctypes.CFUNCTYPE(result, *arguments, use_errno=True)((name, libc))


_openat2 = _declare("syscall", _long, _long, _int, ctypes.c_char_p, ctypes.c_char_p, _long)
_renameat2 = _declare(
    "renameat2", _int, _int, ctypes.c_char_p, _int, ctypes.c_char_p, ctypes.c_uint
)
_fchownat = _declare(
    "fchownat", _int, _int, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32, _int
)
_utimensat = _declare("utimensat", _int, _int, ctypes.c_char_p, ctypes.c_char_p, _int)
_fallocate = _declare("fallocate64", _int, _int, _int, _off_t, _off_t)
_syncfs = _declare("syncfs", _int, _int)
_fstatfs = _declare("fstatfs", _int, _int, ctypes.c_void_p)
_getdents = _declare("getdents64", ctypes.c_ssize_t, _int, ctypes.c_void_p, ctypes.c_size_t)


@final
class Resolve(IntFlag):
    """``RESOLVE_*`` of openat2(2)."""

    NO_XDEV = 1
    NO_MAGICLINKS = 2
    NO_SYMLINKS = 4
    BENEATH = 8
    IN_ROOT = 16


#: Never out of a directory, never through a link.
CONFINED: Final = Resolve.BENEATH | Resolve.NO_SYMLINKS | Resolve.NO_MAGICLINKS


def openat2(dir_fd: int, path: bytes, flags: int, resolve: Resolve) -> int:
    """openat2(2); always close-on-exec."""
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, 0, int(resolve))
    return int(check(_openat2(_SYS_OPENAT2, dir_fd, path, how, len(how)), "openat2"))


def filesystem_magic(fd: int) -> int:
    """Return ``f_type`` of fstatfs(2): which kind of file system a descriptor lies on."""
    result = (ctypes.c_long * 32)()  # struct statfs has 15 words at most; f_type is the first
    check(_fstatfs(fd, result), "fstatfs")
    return int(result[0]) & 0xFFFFFFFF


def renameat2(dir_fd: int, name: bytes, new_dir_fd: int, new_name: bytes, flags: int) -> None:
    """renameat2(2)."""
    check(_renameat2(dir_fd, name, new_dir_fd, new_name, flags), "renameat2")


def chown_at(fd: int, uid: int, gid: int) -> None:
    """Change the owner of what an O_PATH descriptor refers to, be it a symbolic link."""
    check(_fchownat(fd, b"", uid & 0xFFFFFFFF, gid & 0xFFFFFFFF, _AT_EMPTY_PATH), "fchownat")


def set_times(fd: int, atime_ns: int | None, mtime_ns: int | None, *, now: int) -> None:
    """Set times of what an O_PATH descriptor refers to; None leaves one, ``now`` is the present."""
    times = _TIMES.pack(*_timespec(atime_ns, now), *_timespec(mtime_ns, now))
    check(_utimensat(fd, b"", times, _AT_EMPTY_PATH), "utimensat")


def _timespec(stamp_ns: int | None, now: int) -> tuple[int, int]:
    if stamp_ns is None:
        return 0, _UTIME_OMIT
    return (0, _UTIME_NOW) if stamp_ns == now else divmod(stamp_ns, _SECOND)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    check(_fallocate(fd, mode, offset, length), "fallocate")


def next_data(fd: int, start: int, size: int) -> int:
    """Return where a file of ``size`` bytes has content from ``start`` on; its size if it has none.

    All is content where the file system does not know (lseek(2): EINVAL).
    """
    return _next(fd, start, size, os.SEEK_DATA, start)


def next_hole(fd: int, start: int, size: int) -> int:
    """Return where a file of ``size`` bytes has a hole from ``start`` on; its size if it has none.

    Its end is taken for one, too, if the file was cut meanwhile.
    """
    return _next(fd, start, size, os.SEEK_HOLE, size)


def _next(fd: int, start: int, size: int, whence: int, unknown: int) -> int:
    if start >= size:
        return size
    try:
        return min(os.lseek(fd, start, whence), size)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return size
        if exc.errno != errno.EINVAL:
            raise
        return unknown


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    check(_syncfs(fd), "syncfs")


def list_from(fd: int, position: int) -> Iterator[tuple[int, bytes, int, int]]:
    """Yield (position after it, name, inode number, DT_* type) of entries after a position."""
    os.lseek(fd, position, os.SEEK_SET)
    buf = ctypes.create_string_buffer(32768)
    while count := check(_getdents(fd, buf, len(buf)), "getdents64"):
        raw, at = buf.raw[:count], 0
        while at < count:
            ino, after, record_bytes, dtype = _DIRENT64.unpack_from(raw, at)
            name = raw[at + 19 : at + record_bytes]
            yield after, name[: name.index(0)], ino, dtype
            at += record_bytes
        os.lseek(fd, after, os.SEEK_SET)
