# SPDX-License-Identifier: Apache-2.0
"""Requests in steps: who is answered when, and what becomes of them when something comes between.

"Another client" is always a GETATTR of the root.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterator

import pytest

from serdab.errors import FsError
from serdab.fuse import parked
from serdab.fuse.abi import Opcode
from serdab.linux.process import is_being_killed
from serdab.vfs.memfs import MemFs
from serdab.vfs.steps import Chores, Steps, Unfinished
from tests.unit.fuse.peer import Peer


class _Slow(MemFs):
    """fallocate(2) takes as many steps as its offset says; ``done`` notes each."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []
        self.chores: Chores = deque()
        self.stepwise = False
        self.ending: Exception | None = None

    def fallocate_steps(self, ino: int, mode: int, offset: int, length: int) -> Steps[None]:
        try:
            for step in range(offset):
                self.done.append(f"{offset}.{step}")
                yield None
            if self.ending is not None:
                raise self.ending
        except GeneratorExit:
            self.done.append("given up")
            raise

    def lseek_steps(self, ino: int, offset: int, whence: int) -> Steps[int]:
        if "found" not in self.done:
            raise Unfinished(self._find_out())
        while True:
            self.done.append("sought")
            yield None

    def readlink(self, ino: int) -> bytes:
        self.done.append("asked")
        if "found" not in self.done:
            raise Unfinished(self._find_out())
        return b"target"

    def _find_out(self) -> Iterator[None]:
        for _ in range(3):
            yield
        self.done.append("found")


def fallocate(steps: int) -> bytes:
    return struct.pack("=QQQI4x", 0, steps, 5, 0)


def ask(peer: Peer, *requests: tuple[int, bytes]) -> None:
    """Send requests before the session begins, numbered 2, 4 and so on."""
    for number, (opcode, body) in enumerate(requests):
        peer.send_raw(peer.pack(opcode, 1, body, unique=2 * number + 2))


def answers(peer: Peer, count: int) -> list[tuple[int, int]]:
    """Return (number, errno) in the order of the answers."""
    heads = (struct.unpack_from("=IiQ", peer.socket.recv(1 << 16)) for _ in range(count))
    return [(unique, -error) for _, error, unique in heads]


GETATTR = (int(Opcode.GETATTR), bytes(16))


def test_others_are_answered_first_and_all_get_their_turn() -> None:
    fs = _Slow()
    peer = Peer(fs)
    ask(peer, (Opcode.FALLOCATE, fallocate(9)), (Opcode.FALLOCATE, fallocate(4)), GETATTR)
    with peer:
        assert answers(peer, 3) == [(6, 0), (4, 0), (2, 0)]
    assert fs.done.index("9.8") > fs.done.index("4.3")
    assert len(fs.done) == 13


def test_one_step_is_done_between_two_requests_of_others() -> None:
    fs = _Slow()
    peer = Peer(fs)
    ask(peer, (Opcode.FALLOCATE, fallocate(5)), *[GETATTR] * 9)
    with peer:
        found = [unique for unique, _ in answers(peer, 10)]
    assert found.index(2) == 4, "the first step at once, then one before each of the others"


def test_what_fails_in_a_later_step_is_told() -> None:
    fs = _Slow()
    fs.ending = FsError(errno.ENOSPC)
    with Peer(fs) as peer:
        assert peer.call(Opcode.FALLOCATE, 1, fallocate(3))[0] == errno.ENOSPC
        fs.ending = ZeroDivisionError("a defect")
        assert peer.call(Opcode.FALLOCATE, 1, fallocate(3))[0] == errno.EIO
        peer.assert_alive()
        assert len(peer.log) == 1


def test_a_request_is_asked_again_when_the_file_system_knows() -> None:
    fs = _Slow()
    peer = Peer(fs)
    ask(peer, (Opcode.READLINK, b""), GETATTR)
    with peer:
        assert answers(peer, 1) == [(4, 0)]
        error, body = peer.receive(2)
        assert (error, body) == (0, b"target")
    assert fs.done == ["asked", "found", "asked"]


def test_chores_are_done_while_nobody_waits_and_a_bad_one_is_the_last_of_its_kind() -> None:
    fs = _Slow()

    def bad() -> Iterator[None]:
        yield
        raise FsError(errno.EIO)

    def good() -> Iterator[None]:
        for step in range(6):
            fs.done.append(str(step))
            yield

    fs.chores.extend((bad(), good()))
    with Peer(fs) as peer:
        peer.assert_alive()
        while fs.chores:
            peer.assert_alive()
    assert len(fs.done) == 6
    assert not peer.log, "an errno is the file system's to tell"


def test_the_end_of_a_session_gives_up_what_is_parked() -> None:
    fs = _Slow()
    peer = Peer(fs)
    ask(peer, (Opcode.FALLOCATE, fallocate(10**9)), GETATTR)
    with peer:
        assert answers(peer, 1) == [(4, 0)]
    assert fs.done[-1] == "given up"


class TestInterrupt:
    def test_a_caller_that_is_being_killed_is_let_go(self, monkeypatch: pytest.MonkeyPatch) -> None:
        killed = {7}
        monkeypatch.setattr(parked, "is_being_killed", killed.__contains__)
        fs = _Slow()
        peer = Peer(fs)
        request = bytearray(peer.pack(Opcode.FALLOCATE, 1, fallocate(10**9), unique=2))
        request[32:36] = (7).to_bytes(4, "little")
        peer.send_raw(bytes(request))
        peer.send_raw(peer.pack(Opcode.INTERRUPT, 0, struct.pack("=Q", 2), unique=3))
        with peer:
            assert answers(peer, 1) == [(2, errno.EINTR)]
            peer.assert_alive()
        assert fs.done[-1] == "given up"

    def test_one_that_only_got_a_signal_is_served_to_the_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looked: list[int] = []
        monkeypatch.setattr(parked, "is_being_killed", looked.append)
        peer = Peer(_Slow())
        ask(peer, (Opcode.FALLOCATE, fallocate(8)), (Opcode.INTERRUPT, struct.pack("=Q", 2)))
        with peer:
            assert answers(peer, 1) == [(2, 0)]
        assert len(looked) > 5, "a signal that kills may follow, and is not told again"

    def test_one_that_came_before_the_request_was_asked_again_counts(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The kernel tells of the first signal only."""
        fs = _Slow()
        monkeypatch.setattr(parked, "is_being_killed", lambda pid: pid and "sought" in fs.done)
        peer = Peer(fs)
        lseek = struct.pack("=QQI4x", 0, 0, os.SEEK_HOLE)
        request = bytearray(peer.pack(Opcode.LSEEK, 1, lseek, unique=2))
        request[32:36] = (7).to_bytes(4, "little")
        peer.send_raw(bytes(request))
        peer.send_raw(peer.pack(Opcode.INTERRUPT, 0, struct.pack("=Q", 2), unique=3))
        with peer:
            assert answers(peer, 1) == [(2, errno.EINTR)]
            peer.assert_alive()

    def test_of_a_request_that_was_answered_nothing_is_said(self) -> None:
        with Peer(_Slow()) as peer:
            peer.send_raw(peer.pack(Opcode.INTERRUPT, 0, struct.pack("=Q", 2), unique=3))
            peer.assert_alive()
            peer.send_raw(peer.pack(Opcode.INTERRUPT, 0, b"", unique=5))
            assert answers(peer, 1) == [(5, errno.EINVAL)]
            assert len(peer.log) == 1


def test_who_is_being_killed_is_told_from_who_only_got_a_signal() -> None:
    """One that is stopped leaves a signal waiting; one that SIGKILL ended keeps that one."""
    pause = [sys.executable, "-c", "import signal; signal.pause()"]
    with subprocess.Popen(pause) as process:
        try:
            assert not is_being_killed(process.pid)
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            process.send_signal(signal.SIGUSR1)
            assert not is_being_killed(process.pid)
        finally:
            process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_being_killed(process.pid)
    assert not is_being_killed(process.pid), "no such thread"
    assert not is_being_killed(0), "a caller that this PID namespace does not know"


def test_what_waits_for_a_descriptor_sleeps_until_it_is_readable() -> None:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    class Waiting(_Slow):
        def fallocate_steps(self, ino: int, mode: int, offset: int, length: int) -> Steps[None]:
            self.done.append("asked")
            yield fd
            self.done.append("woken")
            yield fd
            self.done.append("woken again")

    fs = Waiting()
    peer = Peer(fs)
    ask(peer, (Opcode.FALLOCATE, fallocate(1)), (Opcode.FALLOCATE, fallocate(2)), GETATTR)
    with peer:
        assert answers(peer, 1) == [(6, 0)]
        assert fs.done == ["asked", "asked"]
        os.eventfd_write(fd, 1)
        while fs.done.count("woken") < 2:
            peer.assert_alive()
        assert "woken again" not in fs.done
        os.eventfd_write(fd, 1)
        assert sorted(answers(peer, 2)) == [(2, 0), (4, 0)]
    os.close(fd)
