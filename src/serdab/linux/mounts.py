# SPDX-License-Identifier: Apache-2.0
"""Mounting and unmounting by path: mount(2), umount2(2).

Above: ``fuse.mounting``. Below: ``linux.libc``.
"""

from __future__ import annotations

import ctypes
import os
from enum import IntFlag
from typing import final

from serdab.linux.libc import check, libc

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
