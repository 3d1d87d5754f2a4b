# SPDX-License-Identifier: Apache-2.0
"""Seccomp actions and the user notification protocol (seccomp_unotify(2)).

Above: ``libos.intake``. The listener descriptor comes from the launcher; it is only received from
and answered on here.

Security: arguments are copied out of the caller's memory once, and the notification is checked
again (``is_alive``) after the caller's /proc files were opened and before what was read is
used; without that the thread id could belong to somebody else by then.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Final

from serdab.linux.process import file_access_as

RET_KILL_PROCESS: Final = 0x80000000
RET_ERRNO: Final = 0x00050000
RET_USER_NOTIF: Final = 0x7FC00000
RET_ALLOW: Final = 0x7FFF0000

ARCH_X86_64: Final = 0xC000003E
ARCH_AARCH64: Final = 0xC00000B7
ARCH_I386: Final = 0x40000003

#: struct seccomp_notif: id, pid, flags, then struct seccomp_data.
_NOTIF: Final = struct.Struct("<QIIiIQ6Q")
#: struct seccomp_notif_resp: id, val, error, flags.
_RESPONSE: Final = struct.Struct("<QqiI")
_EMPTY: Final = bytes(_NOTIF.size)

_RECEIVE: Final = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
_SEND: Final = 0xC0182101  # SECCOMP_IOCTL_NOTIF_SEND
_ID_VALID: Final = 0x40082102  # SECCOMP_IOCTL_NOTIF_ID_VALID

_PATH_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Notification:
    """A call that waits for an answer. ``thread`` is a thread id in our pid namespace."""

    id: int
    thread: int
    number: int
    arguments: tuple[int, ...]


class Listener:
    """The descriptor on which the calls of a program arrive and are answered.

    Threads: any. Closed, it has no callers left, and a descriptor of that number may be another's:
    the lock keeps the two apart.
    """

    __slots__ = ("_is_open", "_lock", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._is_open = True
        self._lock = _thread.allocate_lock()

    def receive(self) -> Notification | None:
        """Return the next waiting call; None if its caller died in between.

        Preconditions: there was one, or this waits for it; nobody closes meanwhile.
        """
        try:
            raw = fcntl.ioctl(self.fd, _RECEIVE, _EMPTY)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        id_, thread, _flags, number, _arch, _ip, *arguments = _NOTIF.unpack(raw)
        return Notification(id_, thread, number, tuple(arguments))

    def is_alive(self, id_: int) -> bool:
        """Return whether the caller still waits in this very call."""
        return self._control(_ID_VALID, id_.to_bytes(8, "little"))

    def answer(self, id_: int, *, error: int = 0, value: int = 0) -> bool:
        """Answer with an errno or a value; return False if nobody waits any more."""
        return self._control(_SEND, _RESPONSE.pack(id_, value, -error, 0))

    def _control(self, request: int, raw: bytes) -> bool:
        with self._lock:
            if not self._is_open:
                return False
            try:
                fcntl.ioctl(self.fd, request, raw)
            except OSError as exc:
                # ENOENT: gone. EINPROGRESS: it was answered already and has not gone on yet.
                if exc.errno in (errno.ENOENT, errno.EINPROGRESS):
                    return False
                raise
        return True

    def close(self) -> None:
        """Release the descriptor: its last caller is gone."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                os.close(self.fd)


class Memory:
    """Reads the memory of a thread that waits for an answer.

    SAFETY: opened first, checked with ``Listener.is_alive`` afterwards; from then on the descriptor
    stays bound to that address space, whoever gets the thread id later.
    """

    __slots__ = ("_fd", "_owner")

    def __init__(self, thread: int, owner: tuple[int, int]) -> None:
        """``owner``: user and group whom the caller's user namespace knows, see ``_part``."""
        self._owner = owner
        self._fd = os.open(f"/proc/{thread}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes.

        Raises:
            OSError: EFAULT, part of it is not the caller's memory.
        """
        if not 0 < address < 1 << 63 or address + length > 1 << 63:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        out = b""
        while len(out) < length:
            part = self._part(address + len(out), length - len(out))
            if not part:
                raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
            out += part
        return out

    def _part(self, address: int, length: int) -> bytes:
        """Read once.

        A page of a file that is not in memory yet is asked for in our name, and a FUSE mount of a
        user namespace answers nobody whom that namespace does not know (fuse_get_req() in Linux
        6.18): the second attempt is made as somebody it knows.
        """
        try:
            return os.pread(self._fd, length, address)
        except OSError as exc:
            if exc.errno != errno.EIO:  # how /proc/PID/mem says "nothing mapped there"
                raise
        try:
            with file_access_as(*self._owner):
                return os.pread(self._fd, length, address)
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT)) from None

    def text(self, address: int, limit: int = _PATH_MAX) -> bytes:
        """Return the bytes before the next NUL.

        Raises:
            OSError: EFAULT; ENAMETOOLONG, no NUL within ``limit`` bytes.
        """
        out = b""
        while len(out) < limit:
            # Never across a page border that need not be mapped.
            step = min(4096 - (address + len(out)) % 4096, limit - len(out))
            part = self.read(address + len(out), step)
            end = part.find(b"\0")
            if end >= 0:
                return out + part[:end]
            out += part
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))

    def close(self) -> None:
        """Release the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
