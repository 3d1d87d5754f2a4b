# SPDX-License-Identifier: Apache-2.0
"""Copies the memory of other processes (process_vm_readv(2)), a page at a time.

Above: ``libos.intake``, ``libos.notify``. Below: ``libc``.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import Final

from serdab.linux.libc import libc
from serdab.linux.process import file_access_as

_PAGE: Final = mmap.PAGESIZE
_NOTHING: Final = bytes(_PAGE)
_PATH_MAX: Final = 4096
_USER_END: Final = 1 << 63
_NOWHERE: Final = 1 << 64  # no address is beside it


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Memory:
    """Reads the memory of a thread that waits in a system call. For one thread of ours at a time.

    The strings of a call mostly lie side by side: a page that was copied is not copied again.

    SAFETY: a thread id names a thread, not a call. What was read counts once
    ``Listener.is_alive`` has said afterwards that the call still waits.
    """

    __slots__ = ("_arguments", "_from", "_owner", "_page", "_start", "_thread")

    def __init__(self, owner: tuple[int, int]) -> None:
        """``owner``: user and group whom the caller's user namespace knows, see ``_copy``."""
        self._owner = owner
        self._page = bytearray(_PAGE)
        self._start = _NOWHERE
        self._thread = ctypes.c_int(0)
        self._from = _IoVec(0, _PAGE)
        into = _IoVec(ctypes.addressof((ctypes.c_char * _PAGE).from_buffer(self._page)), _PAGE)
        one, no_flags = ctypes.c_ulong(1), ctypes.c_ulong(0)
        self._arguments = (
            self._thread, ctypes.byref(into), one, ctypes.byref(self._from), one, no_flags,
        )  # fmt: skip

    def turn_to(self, thread: int) -> None:
        """Read the memory of this thread from now on."""
        self._thread.value = thread

    def forget(self) -> None:
        """Forget what was copied: there may be a key in it."""
        if self._start != _NOWHERE:
            self._start = _NOWHERE
            self._page[:] = _NOTHING

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes.

        Raises:
            OSError: EFAULT, part of it is not the caller's memory; ESRCH, there is no such thread
                any more; EPERM, its memory is closed to us (ptrace(2)).
        """
        at = self._hold(address)
        out = bytes(self._page[at : at + length])
        while len(out) < length:
            at = self._hold(address + len(out))
            out += self._page[at : at + length - len(out)]
        return out

    def text(self, address: int, limit: int = _PATH_MAX) -> bytes:
        """Return the bytes before the next NUL.

        Raises:
            OSError: ENAMETOOLONG, no NUL within ``limit`` bytes; or as :meth:`read` does.
        """
        out = b""
        while len(out) < limit:
            at = self._hold(address + len(out))
            end = self._page.find(0, at, at + limit - len(out))
            if end >= 0:
                return out + self._page[at:end]
            out += self._page[at : at + limit - len(out)]
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))

    def _hold(self, address: int) -> int:
        """Have the page in which ``address`` lies; return where in it."""
        at = address - self._start
        if 0 <= at < _PAGE:
            return at
        if not 0 < address < _USER_END:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        self._start = _NOWHERE  # should it fail
        at = address % _PAGE
        self._copy(address - at)
        self._start = address - at
        return at

    def _copy(self, start: int) -> None:
        """Copy a page.

        One of a file that is not in memory yet is asked for in our name, and a FUSE mount of a user
        namespace answers nobody whom that namespace does not know (fuse_get_req() in Linux 6.18):
        the second attempt is made as somebody it knows.
        """
        self._from.base = start
        if libc.process_vm_readv(*self._arguments) == _PAGE:
            return
        code = ctypes.get_errno()
        if code == errno.EFAULT:
            with file_access_as(*self._owner):
                if libc.process_vm_readv(*self._arguments) == _PAGE:
                    return
                code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
