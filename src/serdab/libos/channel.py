# SPDX-License-Identifier: Apache-2.0
"""A channel between two of Serdab's own processes: records and descriptors over SOCK_SEQPACKET.

Above: ``kernel``, ``fsserver``, ``pal``. Below: ``messages``. What is too long for a datagram (the
arguments of a big command line) travels in a sealed file in memory.

The sockets come from ``_socket``: the module ``socket`` around it brings enumerations that cost
more time at start-up than everything here.
"""

from __future__ import annotations

import _socket
import array
import os
import select

from serdab.errors import FormatError
from serdab.libos.messages import Value, dump, parse_record
from serdab.linux.process import sealed_file

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

_INLINE_BYTES: Final = 32 << 10
_MAX_FDS: Final = 64
_DIRECT: Final = b"\0"
_IN_FILE: Final = b"\1"
_MAX_FILE_BYTES: Final = 64 << 20


def socket_pair() -> tuple[_socket.socket, _socket.socket]:
    """Return two connected ends, close-on-exec."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)


def send_raw(end: _socket.socket, payload: bytes, fds: tuple[int, ...] = ()) -> None:
    """Send one datagram with descriptors; they stay the caller's."""
    extra = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    end.sendmsg([payload], extra, _socket.MSG_NOSIGNAL)


def receive_raw(end: _socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Return one datagram and its descriptors (close-on-exec); ``b""`` at end of file."""
    try:
        payload, extra, flags, _ = _next_datagram(end, size)
    except ConnectionResetError:
        # The peer went away and left something of ours unread. Linux says so once, before what the
        # peer had sent until then (__skb_try_recv_datagram() in 6.18): that is still to be read,
        # and may be all that tells how it ended.
        payload, extra, flags, _ = _next_datagram(end, size)
    fds = array.array("i")
    for level, kind, content in extra:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
        try:
            # Descriptors that find no number are left out, as too many are (recvmsg(2)): whether
            # it was our limit is told by the next one.
            os.close(os.dup(end.fileno()))
        finally:
            close_all(fds)
        raise FormatError("a message between processes was cut off")
    return payload, list(fds)


def _next_datagram(
    end: _socket.socket, size: int
) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
    return end.recvmsg(size, _socket.CMSG_SPACE(_MAX_FDS * 4), _socket.MSG_CMSG_CLOEXEC)


def close_all(fds: list[int] | array.array[int] | tuple[int, ...]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


class Channel:
    """One end. ``closed`` turns true once the peer is gone."""

    __slots__ = ("_end",)

    def __init__(self, end: _socket.socket) -> None:
        self._end = end

    def fileno(self) -> int:
        """Return the descriptor, for polling."""
        return self._end.fileno()

    def send(self, record: dict[str, Value], fds: tuple[int, ...] = ()) -> None:
        """Send a record; descriptors stay the caller's.

        Raises:
            OSError: EPIPE, the peer is gone.
        """
        raw = dump(record)
        if len(raw) <= _INLINE_BYTES:
            send_raw(self._end, _DIRECT + raw, fds)
            return
        file = sealed_file("message", raw)
        try:
            send_raw(self._end, _IN_FILE, (file, *fds))
        finally:
            os.close(file)

    def has_room(self, patience_s: float) -> bool:
        """Return whether a record could be sent without waiting for the peer, now or soon."""
        poll = select.poll()
        poll.register(self._end.fileno(), select.POLLOUT)
        return bool(poll.poll(patience_s * 1000))

    def receive_within(self, patience_s: float) -> tuple[dict[str, Value], list[int]] | None:
        """Return the next record as :meth:`receive` does.

        Raises:
            TimeoutError: nothing came in time: the peer is stopped, or stuck.
        """
        poll = select.poll()
        poll.register(self._end.fileno(), select.POLLIN)
        if not poll.poll(patience_s * 1000):
            raise TimeoutError
        return self.receive()

    def receive(self) -> tuple[dict[str, Value], list[int]] | None:
        """Return the next record and its descriptors, which are the caller's; None at the end."""
        payload, fds = receive_raw(self._end, _INLINE_BYTES + 1)
        if not payload:
            close_all(fds)
            return None
        try:
            if payload[:1] == _DIRECT:
                return parse_record(payload[1:]), fds
            if payload[:1] == _IN_FILE and fds:
                return self._from_file(fds)
            raise FormatError("a message between processes is of an unknown kind")
        except BaseException:
            close_all(fds)
            raise

    def _from_file(self, fds: list[int]) -> tuple[dict[str, Value], list[int]]:
        size = os.fstat(fds[0]).st_size
        if size > _MAX_FILE_BYTES:
            raise FormatError("a message between processes is too long")
        raw = os.pread(fds[0], size, 0)
        record = parse_record(raw)
        os.close(fds.pop(0))
        return record, fds

    def close(self) -> None:
        """Close this end."""
        self._end.close()
