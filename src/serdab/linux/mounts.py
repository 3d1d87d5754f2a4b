# SPDX-License-Identifier: Apache-2.0
"""Mounting and unmounting by path: mount(2), umount2(2), and the table of mounts (proc(5)).

Above: ``fuse.mounting``, ``libos.mounts``. Below: ``linux.libc``.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from enum import IntFlag
from typing import Final, final

from serdab.linux.libc import check, libc
from serdab.structs import frozen

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
libc.syncfs.argtypes = (ctypes.c_int,)
libc.syncfs.restype = ctypes.c_int

_OCTAL: Final = re.compile(r"\\([0-7]{3})")


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


def syncfs(fd: int) -> None:
    """syncfs(2): hand over what the kernel has not written yet of the file system of ``fd``."""
    check(libc.syncfs(fd), "syncfs")


@frozen
class Mount:
    """One line of /proc/self/mountinfo. ``device`` is the ``st_dev`` of what is mounted, ``source``
    the name that who mounted it gave it.
    """

    device: int
    target: str
    fstype: str
    source: str
    options: tuple[str, ...]

    @property
    def identity(self) -> tuple[int, str]:
        """What tells one file system from others, if its source does.

        The device number alone does not: it is the lowest that is free, so the next mount gets the
        one of a file system that is gone.
        """
        return self.device, self.source


def mounts_at(target: str) -> list[Mount]:
    """Return what is mounted at a path without asking those file systems; the last is on top."""
    return [item for item in _table() if item.target == target]


def masks_of_proc() -> tuple[str, ...]:
    """Return what is mounted over parts of /proc, as engines do to hide or protect them.

    The kernel lets nobody mount a new proc in a user namespace that would show what these hide
    (user_namespaces(7)). What lies on a directory that is always empty hides nothing.
    """
    places = {item.target for item in _table() if item.target.startswith("/proc/")}
    return tuple(sorted(places - {"/proc/sys/fs/binfmt_misc", "/proc/fs/nfsd"}))


def mounts_of(identity: tuple[int, str]) -> list[Mount]:
    """Return where a file system is mounted."""
    return [item for item in _table() if item.identity == identity]


def is_mounted(fd: int, pid: int) -> bool:
    """Return whether the mount that an open file lies in is in the tree of a process.

    Preconditions: the process has the root of its mount namespace as its own.
    """
    # Of a mount that was detached proc_pid_exe(5) and the like show what is left of the path.
    number = _info(fd, b"mnt_id:")
    with open(f"/proc/{pid}/mountinfo", "rb") as table:
        return any(line.split(None, 1)[0] == number for line in table)


def devices_in(pid: int) -> frozenset[int]:
    """Return the device number of each mount in the tree of a process, in the kernel's own form.

    Preconditions: as for :func:`is_mounted`.
    """
    with open(f"/proc/{pid}/mountinfo", "rb") as table:
        numbers = [line.split(None, 3)[2].split(b":") for line in table]
    return frozenset(int(major) << 20 | int(minor) for major, minor in numbers)


def inode_of(fd: int) -> int:
    """Return the number of the inode of an open file without asking its file system."""
    return int(_info(fd, b"ino:"))


def _info(fd: int, name: bytes) -> bytes:
    """Return a field of proc_pid_fdinfo(5)."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        return next(line.split()[1] for line in file if line.startswith(name))


def _table() -> Iterator[Mount]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split()
            major, minor = fields[2].split(":")
            tail = fields.index("-")
            yield Mount(
                os.makedev(int(major), int(minor)),
                _plain(fields[4]),
                fields[tail + 1],
                _plain(fields[tail + 2]),
                tuple(fields[tail + 3].split(",")),
            )


def _plain(word: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), word)
