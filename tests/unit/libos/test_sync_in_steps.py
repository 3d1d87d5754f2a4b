# SPDX-License-Identifier: Apache-2.0
"""A program's sync(2), which reaches the server beside /dev/fuse: others are served meanwhile."""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from serdab.errors import FsError
from serdab.fuse.abi import Opcode
from serdab.libos.channel import Channel
from serdab.libos.fsserver import _Server
from serdab.libos.orders import Opened
from serdab.vfs.api import ROOT_INO, Inode
from serdab.vfs.memfs import MemFs
from serdab.vfs.steps import Steps


class _Slow(MemFs):
    """A sync of it lasts until somebody asks for the root so often; counted are those begun."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = self.begun = 0

    def getattr(self, ino: int) -> Inode:
        self.looks += 1
        return super().getattr(ino)

    def syncfs_steps(self) -> Steps[None]:
        self.begun += 1
        until = self.looks + 3
        while self.looks < until:
            yield None
        if self.begun == 2:
            raise FsError(errno.ENOSPC)


class _Served:
    """A server, what stands in for its kernel process, and for /dev/fuse."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.settimeout(20)
        self.channel = Channel(ours)
        self.other_end = Channel(theirs)
        server = _Server(self.other_end)
        self.fs = _Slow()
        server._opened = Opened(self.fs)
        self.thread = threading.Thread(target=server.run, daemon=True)
        self.thread.start()
        self.channel.send({"op": "serve"}, (device.fileno(),))
        device.close()

    def look(self) -> None:
        head = struct.pack("=IIQQIIIHH", 56, Opcode.GETATTR, 2, ROOT_INO, 0, 0, 1, 0, 0)
        self.kernel.send(head + bytes(16))
        assert len(self.kernel.recv(1 << 20)) == 120

    def hear(self) -> object:
        message = self.channel.receive()
        assert message is not None
        return message[0]


@pytest.fixture
def served() -> Iterator[_Served]:
    served = _Served()
    yield served
    served.kernel.close()
    served.thread.join(20)
    assert not served.thread.is_alive()
    for end in (served.channel, served.other_end):
        end.close()


def test_others_are_served_while_a_sync_lasts(served: _Served) -> None:
    served.channel.send({"op": "sync"})
    while not served.fs.begun:
        served.look()
    for _ in range(3):
        served.look()
    assert served.hear() == {"op": "synced", "errno": 0}


def test_who_asks_while_one_lasts_gets_one_that_began_later(served: _Served) -> None:
    served.channel.send({"op": "sync"})
    while not served.fs.begun:
        served.look()
    for _ in range(2):
        served.channel.send({"op": "sync"})
    answers: list[object] = []
    while len(answers) < 3:
        served.look()
        while select.select((served.channel,), (), (), 0)[0]:
            answers.append(served.hear())
    assert answers[:2] == [{"op": "synced", "errno": code} for code in (0, errno.ENOSPC)]
    assert served.fs.begun <= 3


def test_the_end_of_the_session_leaves_those_who_wait_to_the_end(served: _Served) -> None:
    served.channel.send({"op": "sync"})
    while not served.fs.begun:
        served.look()
    served.kernel.close()
    assert served.hear() == {"op": "closed", "problem": ""}
