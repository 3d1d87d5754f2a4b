# SPDX-License-Identifier: Apache-2.0
"""What is much to flush is flushed while others are served; the commit follows, and hears of a
failure. The host here is one whose flushes wait until they are let go, or fail."""

from __future__ import annotations

import copy
import errno
import os
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from serdab.errors import FsError
from serdab.fuse.abi import Opcode
from serdab.keys import Key
from serdab.sefs.hostdir import HostFile
from serdab.sefs.limits import DEFAULT_LIMITS
from serdab.sefs.memorydir import MemoryDir, MemoryFile
from serdab.sefs.volume import open_volume_in
from serdab.structs import replace
from serdab.vfs.api import ROOT_INO
from serdab.vfs.steps import finish
from serdab.vfs.union import Union
from tests.unit.fuse.peer import Peer

KEY: Final = Key(b"flushed beside..")
LIMITS: Final = replace(DEFAULT_LIMITS, beside_bytes=64 << 10)
FSYNC: Final = struct.pack("=QII", 0, 0, 0)


class _Gate:
    """Flushes in advance wait here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: int = 0) -> None:
        self.open = threading.Event()
        self.count = 0
        self._error = error
        monkeypatch.setattr(MemoryFile, "flusher", lambda _: self._flush)

    def _flush(self) -> None:
        self.count += 1
        assert self.open.wait(60)
        if self._error:
            raise OSError(self._error, os.strerror(self._error))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> _Gate:
    return _Gate(monkeypatch)


def begun(host: MemoryDir) -> tuple[Union, int]:
    """A volume whose log is open, and a file with much that is not durable."""
    fs = Union(open_volume_in(host, key=KEY, create=True, limits=LIMITS), None)
    ino = fs.mknod(ROOT_INO, b"file", stat.S_IFREG | 0o644, 0, 0, 0).ino
    fs.syncfs()
    fs.write(ino, 0, memoryview(bytes([7]) * (1 << 20)), kill_suidgid=False)
    return fs, ino


def test_others_are_served_while_the_host_flushes(gate: _Gate) -> None:
    host = MemoryDir()
    fs, ino = begun(host)
    with Peer(fs) as peer:
        peer.send_raw(peer.pack(Opcode.FSYNC, ino, FSYNC, unique=1000))
        peer.send_raw(peer.pack(Opcode.FSYNC, ROOT_INO, FSYNC, unique=1002))
        for number in range(20):
            body = struct.pack("=IIII", stat.S_IFREG, 0, 0, 0) + b"%d\0" % number
            assert peer.call(Opcode.MKNOD, ROOT_INO, body)[0] == 0
        gate.open.set()
        heads = [struct.unpack_from("=IiQ", peer.socket.recv(100)) for _ in range(2)]
    assert sorted(head[1:] for head in heads) == [(0, 1000), (0, 1002)]
    assert gate.count == 1
    killed = copy.deepcopy(host)
    killed.close()
    again = Union(open_volume_in(killed, key=KEY), None)
    assert len(list(again.readdir(ROOT_INO, 2))) == 21, "what came in between is in the commit too"
    with memoryview(bytearray(1 << 20)) as view:
        again.read_into(again.lookup(ROOT_INO, b"file").ino, 0, view)
        assert view == bytes([7]) * (1 << 20)
    again.close()
    fs.close()


def test_little_is_flushed_by_the_commit_alone(gate: _Gate) -> None:
    fs, ino = begun(MemoryDir())
    fs.syncfs()
    fs.write(ino, 5, memoryview(b"little"), kill_suidgid=False)
    finish(fs.fsync_steps(ino, datasync=True))
    assert not gate.count
    fs.close()


@pytest.mark.parametrize("is_given_up", [False, True])
def test_a_flush_that_failed_is_heard(
    monkeypatch: pytest.MonkeyPatch, *, is_given_up: bool
) -> None:
    """The host does not tell again: without this the commit would find all well."""
    gate = _Gate(monkeypatch, errno.EIO)
    fs, ino = begun(MemoryDir())
    steps = fs.fsync_steps(ino, datasync=True)
    assert next(steps) is not None
    gate.open.set()
    if is_given_up:
        steps.close()
    commit: Callable[[], object] = fs.syncfs if is_given_up else lambda: finish(steps)
    with pytest.raises(FsError) as caught:
        commit()
    assert caught.value.errno == errno.EIO
    with pytest.raises(FsError) as caught:
        fs.write(ino, 0, memoryview(b"x"), kill_suidgid=False)
    assert caught.value.errno == errno.EROFS
    with pytest.raises(FsError):
        fs.close()


def test_a_close_waits_for_the_flush_that_was_begun(gate: _Gate) -> None:
    fs, ino = begun(MemoryDir())
    steps = fs.fsync_steps(ino, datasync=True)
    assert next(steps) is not None
    gate.open.set()
    fs.close()
    steps.close()


def test_a_descriptor_that_was_closed_is_flushed_all_the_same(tmp_path: Path) -> None:
    """A segment may end while its flush is under way; its number may be another file's then."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    before = len(os.listdir("/proc/self/fd"))
    file = HostFile(fd)
    flush = file.flusher()
    file.close()
    flush()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        flush()
