# SPDX-License-Identifier: Apache-2.0
"""What is noted of reads, and what the kernel is asked for: by a kernel that is a dictionary."""

from __future__ import annotations

import errno
import os
import stat
import struct

import pytest

from serdab.errors import FsError
from serdab.fuse import unwritten
from serdab.fuse.abi import NOTIFY_RETRIEVE, Opcode
from serdab.fuse.insteps import InSteps
from serdab.fuse.unwritten import UNIT, Asking, Unwritten
from serdab.vfs.api import ROOT_INO, SetAttr
from serdab.vfs.memfs import CHUNK_BYTES, MemFs
from tests.unit.fuse.peer import Peer

PAGE = os.sysconf("SC_PAGE_SIZE")


class Kernel:
    """Pages of one file, and how often it was asked."""

    def __init__(self, pages: dict[int, bytes]) -> None:
        self.pages = pages
        self.asked = 0

    def answer(self, asking: Asking) -> int:
        held: bytes | None = None
        while True:
            try:
                wanted = next(asking) if held is None else asking.send(held)
            except StopIteration as end:
                return int(end.value)
            if not isinstance(wanted, tuple):
                held = None
                continue
            offset, size = wanted
            assert offset % PAGE == 0
            assert 0 < size <= UNIT
            self.asked += 1
            held = b""
            while offset // PAGE in self.pages and len(held) < size:
                held += self.pages[offset // PAGE].ljust(PAGE, b"\0")
                offset += PAGE


@pytest.fixture
def file() -> tuple[MemFs, int]:
    fs = MemFs()
    ino = fs.mknod(ROOT_INO, b"f", stat.S_IFREG, 0, 0, 0).ino
    fs.setattr(ino, SetAttr(size=64 * UNIT))
    return fs, ino


def test_it_asks_only_of_what_was_read(file: tuple[MemFs, int]) -> None:
    fs, ino = file
    held = Unwritten(fs, InSteps(fs).lseek)
    assert not held.may_hold(ino)
    held.note(ino, 5 * UNIT, PAGE)
    held.note(ino, 9 * UNIT, PAGE)
    kernel = Kernel({9 * UNIT // PAGE: b"x", 20 * UNIT // PAGE: b"never read"})
    assert kernel.answer(held.seek(ino, 0, os.SEEK_DATA)) == 9 * UNIT
    assert kernel.asked == UNIT // PAGE + 1
    # Nothing of the first part is in memory: that is not asked for again.
    assert kernel.answer(held.seek(ino, 0, os.SEEK_DATA)) == 9 * UNIT
    assert kernel.asked == UNIT // PAGE + 2
    assert kernel.answer(held.seek(ino, 9 * UNIT, os.SEEK_HOLE)) == 9 * UNIT + PAGE


def test_data_on_both_sides_is_one_range_with_what_lies_between(file: tuple[MemFs, int]) -> None:
    fs, ino = file
    held = Unwritten(fs, InSteps(fs).lseek)
    held.note(ino, 0, 3 * CHUNK_BYTES)
    for chunk in (0, 2):
        fs.write(ino, chunk * CHUNK_BYTES, memoryview(bytes(CHUNK_BYTES)), kill_suidgid=False)
    between = range(CHUNK_BYTES // PAGE, 2 * CHUNK_BYTES // PAGE)
    kernel = Kernel(dict.fromkeys(between, b"x"))
    assert kernel.answer(held.seek(ino, 0, os.SEEK_HOLE)) == 3 * CHUNK_BYTES
    del kernel.pages[between[3]]
    assert kernel.answer(held.seek(ino, 0, os.SEEK_HOLE)) == between[3] * PAGE
    assert kernel.answer(held.seek(ino, between[3] * PAGE, os.SEEK_DATA)) == between[4] * PAGE


def test_errors_are_those_of_the_file_system(file: tuple[MemFs, int]) -> None:
    fs, ino = file
    held = Unwritten(fs, InSteps(fs).lseek)
    held.note(ino, 0, PAGE)
    for offset, whence in ((0, os.SEEK_DATA), (64 * UNIT, os.SEEK_DATA), (64 * UNIT, os.SEEK_HOLE)):
        with pytest.raises(FsError) as caught:
            Kernel({0: b"\0"}).answer(held.seek(ino, offset, whence))
        assert caught.value.errno == errno.ENXIO


def test_what_is_noted_is_bounded(file: tuple[MemFs, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unwritten, "MAX_UNITS", 10)
    fs, ino = file
    held = Unwritten(fs, InSteps(fs).lseek)
    for unit in range(64):
        held.note(ino, unit * UNIT, PAGE)
    # Beyond the bound the whole file may have been stored into.
    kernel = Kernel({40 * UNIT // PAGE: b"x"})
    assert kernel.answer(held.seek(ino, 39 * UNIT, os.SEEK_DATA)) == 40 * UNIT
    held.forget(ino)
    held.note(ino, 7 * UNIT, PAGE)
    assert kernel.answer(held.seek(ino, 39 * UNIT, os.SEEK_HOLE)) == 39 * UNIT
    with pytest.raises(FsError):
        kernel.answer(held.seek(ino, 39 * UNIT, os.SEEK_DATA))


def test_a_question_waits_for_the_kernel_and_others_are_served(file: tuple[MemFs, int]) -> None:
    fs, ino = file
    with Peer(fs) as peer:
        read = struct.pack("=QQIIQII", 0, 0, PAGE, 0, 0, 0, 0)
        assert peer.call(Opcode.READ, ino, read) == (0, bytes(PAGE))
        body = struct.pack("=QQII", 0, 0, os.SEEK_DATA, 0)
        peer.socket.send(peer.pack(Opcode.LSEEK, ino, body, unique=1000))
        note = peer.socket.recv(100)
        assert struct.unpack("=IiQQQQII", note) == (
            48, NOTIFY_RETRIEVE, 0, 1000, ino, 0, UNIT, 0,
        )  # fmt: skip
        peer.assert_alive()
        held = struct.pack("=QQIIQQ", 0, 0, 2 * PAGE, 0, 0, 0) + bytes(PAGE) + b"x".ljust(PAGE)
        peer.socket.send(peer.pack(Opcode.NOTIFY_REPLY, ino, held, unique=1000))
        assert peer.receive(1000) == (0, struct.pack("=Q", PAGE))
        # Nobody asked for this one.
        peer.socket.send(peer.pack(Opcode.NOTIFY_REPLY, ino, held, unique=1000))
        peer.assert_alive()


def test_a_question_that_fails_is_answered_with_its_error(file: tuple[MemFs, int]) -> None:
    fs, ino = file
    with Peer(fs) as peer:
        read = struct.pack("=QQIIQII", 0, 0, PAGE, 0, 0, 0, 0)
        assert peer.call(Opcode.READ, ino, read) == (0, bytes(PAGE))
        body = struct.pack("=QQII", 0, 0, os.SEEK_DATA, 0)
        peer.socket.send(peer.pack(Opcode.LSEEK, ino, body, unique=1000))
        assert len(peer.socket.recv(100)) == 48
        short = struct.pack("=QQIIQQ", 0, 0, 2 * PAGE, 0, 0, 0) + b"less"
        peer.socket.send(peer.pack(Opcode.NOTIFY_REPLY, ino, short, unique=1000))
        assert peer.receive(1000) == (errno.EINVAL, b"")
        peer.assert_alive()
        peer.socket.send(peer.pack(Opcode.LSEEK, ino, body, unique=1002))
        assert len(peer.socket.recv(100)) == 48
        held = struct.pack("=QQIIQQ", 0, 0, UNIT - UNIT, 0, 0, 0)
        for _ in range(UNIT // PAGE):
            peer.socket.send(peer.pack(Opcode.NOTIFY_REPLY, ino, held, unique=1002))
        while True:
            length, error, unique = struct.unpack_from("=IiQ", peer.socket.recv(100))
            if unique == 1002:
                break
        assert (length, -error) == (16, errno.ENXIO)
