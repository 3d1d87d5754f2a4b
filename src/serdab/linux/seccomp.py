# SPDX-License-Identifier: Apache-2.0
"""Seccomp actions and the user notification protocol (seccomp_unotify(2)).

Above: ``libos.intake``. The listener descriptor comes from the launcher; it is only received from
and answered on here.

Security: arguments are copied out of the caller's memory once (``linux.memory``), and the
notification is checked again (``is_alive``) after that and before what was read is used; without
that the thread id could have been somebody else's by then.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import os
import struct
from typing import Final, NamedTuple

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
_SET_FLAGS: Final = 0x40082104  # SECCOMP_IOCTL_NOTIF_SET_FLAGS
_SYNC_WAKE_UP: Final = 1


class Notification(NamedTuple):
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
        try:
            # The caller waits while we work: to wake us on its processor is a third faster.
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # Linux before 6.6
                raise

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
        fields = _NOTIF.unpack(raw)
        return Notification(fields[0], fields[1], fields[3], fields[6:])

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
