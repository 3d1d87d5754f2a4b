# SPDX-License-Identifier: Apache-2.0
"""A kernel made of a socket: the real session reads requests from it and answers into it."""

from __future__ import annotations

import socket
import struct
import threading
from types import TracebackType

from serdab.fuse.abi import Opcode
from serdab.fuse.session import Session, SessionOptions
from serdab.vfs.api import FileSystem
from serdab.vfs.memfs import MemFs


class Peer:
    """One end of a SOCK_SEQPACKET pair, which keeps the borders of messages as the device does."""

    def __init__(self, fs: FileSystem | None = None, options: SessionOptions | None = None) -> None:
        self.fs = fs or MemFs()
        self.log: list[str] = []
        self.socket, self._device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.socket, self._device):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
        self.socket.settimeout(20)
        self.session = Session(self._device.fileno(), self.fs, options=options, log=self.log.append)
        self._thread = threading.Thread(target=self.session.run, daemon=True)
        self._unique = 1

    def __enter__(self) -> Peer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()
        self._thread.join(20)
        alive = self._thread.is_alive()
        self.session.stop()
        self._thread.join(20)
        self._device.close()
        assert not alive, "the session did not end when its device was closed"

    def pack(
        self, opcode: int, nodeid: int, body: bytes = b"", *, unique: int = 0, uid: int = 0
    ) -> bytes:
        head = struct.pack(
            "=IIQQIIIHH", 40 + len(body), opcode, unique or self._unique, nodeid, uid, 0, 1, 0, 0
        )
        return head + body

    def call(
        self, opcode: int, nodeid: int, body: bytes = b"", *, uid: int = 0
    ) -> tuple[int, bytes]:
        """Send a request; return (errno, body of the reply)."""
        self._unique += 2
        unique = self._unique
        self.socket.send(self.pack(opcode, nodeid, body, uid=uid))
        return self.receive(unique)

    def receive(self, unique: int) -> tuple[int, bytes]:
        """Return the reply to one request; replies to others before it are dropped."""
        while True:
            reply = self.socket.recv(2 << 20)
            if not reply:
                raise ConnectionError("the session has ended")
            length, error, answered = struct.unpack_from("=IiQ", reply)
            assert length == len(reply)
            if answered == unique:
                return -error, reply[16:]

    def send_raw(self, message: bytes) -> None:
        self.socket.send(message)

    def assert_alive(self) -> None:
        error, body = self.call(Opcode.GETATTR, 1, bytes(16))
        assert error == 0
        assert len(body) == 104
