# SPDX-License-Identifier: Apache-2.0
"""Mounting, unmounting and confined path resolution: mount(2), umount2(2), openat2(2).

Above: ``fuse.mounting``, ``vfs.hostfs``. Below: ``linux.libc``.
"""

from __future__ import annotations

import ctypes
import os
from enum import IntFlag
from struct import Struct
from typing import Final, final

from serdab.linux.libc import check, libc

_SYS_OPENAT2: Final = 437  # the same on every architecture (numbers are shared since 5.1)
_OPEN_HOW: Final = Struct("=QQQ")

libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
libc.mount.restype = ctypes.c_int
libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
libc.umount2.restype = ctypes.c_int
libc.renameat2.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)
libc.renameat2.restype = ctypes.c_int
_openat2 = ctypes.CFUNCTYPE(
    ctypes.c_long,
    ctypes.c_long,
    ctypes.c_long,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_size_t,
    use_errno=True,
)(("syscall", libc))


@final
class MountFlag(IntFlag):
    """``MS_*`` of mount(2)."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    REMOUNT = 32
    NOATIME = 1024
    BIND = 4096


@final
class UmountFlag(IntFlag):
    """``MNT_*`` and ``UMOUNT_*`` of umount2(2)."""

    FORCE = 1
    DETACH = 2
    EXPIRE = 4
    NOFOLLOW = 8


@final
class Resolve(IntFlag):
    """``RESOLVE_*`` of openat2(2)."""

    NO_XDEV = 1
    NO_MAGICLINKS = 2
    NO_SYMLINKS = 4
    BENEATH = 8
    IN_ROOT = 16


def mount(source: str, target: str, fstype: str, flags: MountFlag, options: str) -> None:
    """mount(2)."""
    check(
        libc.mount(
            source.encode(), os.fsencode(target), fstype.encode(), int(flags), options.encode()
        ),
        f"mount {target}",
    )


def umount(target: str, flags: UmountFlag) -> None:
    """umount2(2)."""
    check(libc.umount2(os.fsencode(target), int(flags)), f"unmount {target}")


def openat2(dir_fd: int, path: bytes, flags: int, resolve: Resolve, *, mode: int = 0) -> int:
    """openat2(2); always close-on-exec."""
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, int(resolve))
    return int(check(_openat2(_SYS_OPENAT2, dir_fd, path, how, len(how)), "openat2"))


def renameat2(dir_fd: int, name: bytes, new_dir_fd: int, new_name: bytes, flags: int) -> None:
    """renameat2(2)."""
    check(libc.renameat2(dir_fd, name, new_dir_fd, new_name, flags), "renameat2")
