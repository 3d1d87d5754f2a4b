# SPDX-License-Identifier: Apache-2.0
"""Hears when a file system is shut down: detached everywhere, and nobody is in it (inotify(7)).

A mount that was taken off lazily lives on for whoever has a file of it open, in no table of
mounts. A watch on its root holds the inode, not the mount, and the kernel takes it off with
IN_UNMOUNT when the file system itself ends.

Above: ``libos.ramfs``. Below: ``linux.libc``.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final, final

from serdab.linux.libc import check, libc

_CLOEXEC_NONBLOCK: Final = os.O_CLOEXEC | os.O_NONBLOCK
_IN_DELETE_SELF: Final = 0x400  # one event must be asked for; IN_UNMOUNT comes unasked
_IN_UNMOUNT: Final = 0x2000
_EVENT: Final = struct.Struct("=iIII")  # struct inotify_event without its name
_READ_BYTES: Final = 65536


@final
class Shutdowns:
    """The watches of one process."""

    def __init__(self) -> None:
        """Begin; raises OSError where the user has too many (``fs.inotify.max_user_instances``)."""
        self._fd = check(libc.inotify_init1(_CLOEXEC_NONBLOCK), "inotify_init1")

    def fileno(self) -> int:
        """Return the descriptor that is readable when :meth:`read` has something."""
        return self._fd

    def watch(self, root_fd: int) -> int:
        """Watch the file system whose root is open; return the number :meth:`read` will give."""
        path = ctypes.create_string_buffer(f"/proc/self/fd/{root_fd}".encode("ascii"))
        return check(
            libc.inotify_add_watch(self._fd, path, ctypes.c_uint32(_IN_DELETE_SELF)),
            "inotify_add_watch",
        )

    def read(self) -> list[int]:
        """Return the numbers of those that were shut down since the last time."""
        try:
            raw = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return []
        found, at = [], 0
        while at < len(raw):
            number, mask, _, name_bytes = _EVENT.unpack_from(raw, at)
            at += _EVENT.size + name_bytes
            if mask & _IN_UNMOUNT:
                found.append(number)
        return found

    def close(self) -> None:
        os.close(self._fd)
