# SPDX-License-Identifier: Apache-2.0
"""No request holds the others up: whatever one asks for, between its steps the others are served.

Each case sends one request that means much work and, behind it, another client's that makes a file.
The file is there before the work is done, and the session never does more than STEP_CALLS calls
before it looks for the next request, which stands for about 20 ms.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from serdab.crypto.hashes import name_hash
from serdab.fuse.abi import Opcode
from serdab.fuse.session import Session
from serdab.keys import Key
from serdab.sefs.keyspace import T_ORPHAN, key
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.volume import Volume, open_volume_in
from serdab.vfs.api import ROOT_INO, SetAttr
from serdab.vfs.filecontent import COPY_BYTES, SHARED_CHUNKS
from serdab.vfs.union import Union
from tests.harness.work import Work, counting
from tests.unit.fuse.peer import Peer

KEY: Final = Key(b"bounded requests")
CHUNK: Final = 4096
GROUP: Final = 64 * CHUNK
STEP_CALLS: Final = 20_000
MANY: Final = 400
"""Groups of extents, names, attributes: enough for some steps of each."""

Ask = tuple[int, int, bytes]


def volume(host: MemoryDir, lower: Volume | None = None) -> Volume:
    return open_volume_in(host, key=KEY, lower=lower, create=True, chunk_size=CHUNK)


def mounted(host: MemoryDir | None = None) -> Union:
    fs = Union(volume(host or MemoryDir()), None)
    for name in (b"large", b"small"):
        fs.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, 0, 0, 0)
    return fs


def large() -> Union:
    """A sparse file with a chunk in each of many groups."""
    host = MemoryDir()
    fs = mounted(host)
    scatter(fs, find(fs, b"large"), bytes(CHUNK))
    fs.close()
    return Union(volume(host), None)  # which knows nothing of any file yet


def unsaved() -> Union:
    """The same, in memory only."""
    fs = mounted()
    scatter(fs, find(fs, b"large"), b"x")
    return fs


def scatter(fs: Union, ino: int, part: bytes) -> None:
    fs.setattr(ino, SetAttr(size=1 << 40))
    for group in range(MANY):
        fs.write(ino, group * 100 * GROUP, memoryview(part), kill_suidgid=False)


def dense() -> Union:
    """A file without holes, of many groups."""
    fs = mounted()
    ino = find(fs, b"large")
    for part in range(80 * GROUP >> 20):
        fs.write(ino, part << 20, memoryview(bytes([part]) * (1 << 20)), kill_suidgid=False)
    return fs


def hollow() -> Union:
    """Half a terabyte of nothing, then a chunk."""
    fs = mounted()
    data = memoryview(b"end".ljust(CHUNK))
    fs.write(find(fs, b"large"), 1 << 39, data, kill_suidgid=False)
    return fs


def content(fs: Union, ino: int) -> bytes:
    with memoryview(bytearray(fs.getattr(ino).size)) as view:
        fs.read_into(ino, 0, view)
        return bytes(view)


def whited_out() -> Union:
    """A union whose directories have whiteouts, and one name behind them in ``listed``."""
    below = MemoryDir()
    fs = Union(volume(below), None)
    names = [b"%d" % number for number in range(2 * MANY)]
    for directory in (b"empty", b"listed"):
        parent = fs.mkdir(ROOT_INO, directory, 0o755, 0, 0).ino
        for name in names:
            fs.mknod(parent, name, stat.S_IFREG | 0o644, 0, 0, 0)
    fs.mkdir(ROOT_INO, b"moved", 0o755, 0, 0)
    fs.close()
    lower = volume(below)
    fs = Union(volume(MemoryDir(), lower), lower)
    for directory in (b"empty", b"listed"):
        parent = fs.lookup(ROOT_INO, directory).ino
        for entry in list(fs.readdir(parent, 2)):
            fs.unlink(parent, entry.name)
    last = max((b"%d" % number for number in range(10**4)), key=name_hash)
    fs.mknod(parent, last, stat.S_IFREG | 0o644, 0, 0, 0)
    return fs


def with_attributes() -> Union:
    fs = Union(volume(MemoryDir()), None)
    ino = fs.mknod(ROOT_INO, b"large", stat.S_IFREG | 0o644, 0, 0, 0).ino
    for number in range(MANY):
        fs.setxattr(ino, b"user.%d" % number, b"x", 0)
    return fs


def find(fs: Union, name: bytes) -> int:
    return next(e.ino for e in fs.readdir(ROOT_INO, 0) if e.name == name)


def setattr_size(size: int) -> bytes:
    return struct.pack("=IIQQQ56x", 1 << 3, 0, 0, size, 0)


def fallocate(mode: int) -> bytes:
    return struct.pack("=QQQI4x", 0, 0, 1 << 41, mode)


def seek(whence: int) -> bytes:
    return struct.pack("=QQII", 0, 0, whence, 0)


def copy(into: int) -> bytes:
    return struct.pack("=QQQQQQQ", 0, 0, into, 0, 0, 1 << 63, 0)


LATER: dict[str, tuple[Callable[[], Union], Callable[[Union], Ask]]] = {
    "truncate to nothing": (
        large, lambda fs: (Opcode.SETATTR, find(fs, b"large"), setattr_size(0)),
    ),
    "truncate in the middle": (
        large, lambda fs: (Opcode.SETATTR, find(fs, b"large"), setattr_size(30 * GROUP + 7)),
    ),
    "punch": (large, lambda fs: (Opcode.FALLOCATE, find(fs, b"large"), fallocate(3))),
    "zero": (large, lambda fs: (Opcode.FALLOCATE, find(fs, b"large"), fallocate(16))),
    "getattr": (large, lambda fs: (Opcode.GETATTR, find(fs, b"large"), bytes(16))),
    "getattr of much in memory": (
        unsaved, lambda fs: (Opcode.GETATTR, find(fs, b"large"), bytes(16))
    ),
    "lookup": (large, lambda _: (Opcode.LOOKUP, ROOT_INO, b"large\0")),
    "chmod": (
        large,
        lambda fs: (Opcode.SETATTR, find(fs, b"large"), struct.pack("=I64xI16x", 1, 0o600)),
    ),
    "rmdir": (whited_out, lambda _: (Opcode.RMDIR, ROOT_INO, b"empty\0")),
    "rename over whiteouts": (
        whited_out, lambda _: (Opcode.RENAME, ROOT_INO, struct.pack("=Q", 1) + b"moved\0empty\0"),
    ),
    "readdir": (
        whited_out,
        lambda fs: (Opcode.READDIR, find(fs, b"listed"), struct.pack("=QQI20x", 0, 2, 4096)),
    ),
    "listxattr": (
        with_attributes, lambda fs: (Opcode.LISTXATTR, find(fs, b"large"), struct.pack("=II", 0, 0))
    ),
    "seek for a hole": (dense, lambda fs: (Opcode.LSEEK, find(fs, b"large"), seek(os.SEEK_HOLE))),
}  # fmt: skip
"""Answered when all is done, and others before that."""

AT_ONCE: dict[str, tuple[Callable[[], Union], Callable[[Union], Ask]]] = {
    "unlink": (large, lambda _: (Opcode.UNLINK, ROOT_INO, b"large\0")),
    "rename over it": (
        large, lambda _: (Opcode.RENAME, ROOT_INO, struct.pack("=Q", 1) + b"small\0large\0")
    ),
    "copy": (
        dense,
        lambda fs: (Opcode.COPY_FILE_RANGE_64, find(fs, b"large"), copy(find(fs, b"small"))),
    ),
    "copy of a hole": (
        hollow,
        lambda fs: (Opcode.COPY_FILE_RANGE_64, find(fs, b"large"), copy(find(fs, b"small"))),
    ),
    "read": (
        dense,
        lambda fs: (Opcode.READ, find(fs, b"large"), struct.pack("=QQI20x", 0, 0, 1 << 17)),
    ),
}  # fmt: skip
"""Answered after a bounded piece of work; what is left of it is a chore."""


def make_a_file(name: bytes) -> bytes:
    return struct.pack("=IIII", stat.S_IFREG, 0, 0, 0) + name + b"\0"


@pytest.fixture
def work() -> Iterator[Work]:
    with counting() as counted:
        yield counted


@pytest.mark.parametrize("case", LATER)
def test_another_client_is_served_between_the_steps(case: str, work: Work) -> None:
    make, ask = LATER[case]
    fs = make()
    peer = Peer(fs)
    peer.send_raw(peer.pack(*ask(fs), unique=3))
    peer.send_raw(peer.pack(Opcode.MKNOD, ROOT_INO, make_a_file(b"new"), unique=5))
    with peer:
        first, second = (struct.unpack_from("=IiQ", peer.socket.recv(1 << 20)) for _ in range(2))
        assert (first[1:], second[1:]) == ((0, 5), (0, 3))
        while fs.chores:
            peer.assert_alive()
    assert work.most < STEP_CALLS
    assert not peer.log
    fs.close()


@pytest.mark.parametrize("case", AT_ONCE)
def test_what_is_answered_at_once_is_a_bounded_piece(case: str, work: Work) -> None:
    make, ask = AT_ONCE[case]
    fs = make()
    request = ask(fs)
    with Peer(fs) as peer:
        error, _ = peer.call(*request)
        assert error == 0
        while fs.chores:
            peer.assert_alive()
    assert work.most < STEP_CALLS
    assert not peer.log
    fs.close()


def test_what_was_open_without_a_name_is_freed_in_steps(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FORGET has no answer, and comes when the kernel likes; so has a batch of many."""
    pieces: list[int] = []
    do_chore = Session._do_chore
    monkeypatch.setattr(Session, "_do_chore", lambda it: (pieces.append(1), do_chore(it)))
    fs = large()
    with Peer(fs) as peer:
        peer.call(Opcode.LOOKUP, ROOT_INO, b"large\0")
        ino = find(fs, b"large")
        fs.unlink(ROOT_INO, b"large")
        others = [fs.tmpfile(ROOT_INO, stat.S_IFREG, 0, 0).ino for _ in range(1000)]
        work.reset()
        peer.send_raw(peer.pack(Opcode.FORGET, ino, struct.pack("=Q", 1)))
        pairs = b"".join(struct.pack("=QQ", other, 1) for other in others)
        head = struct.pack("=II", len(others), 0)
        peer.send_raw(peer.pack(Opcode.BATCH_FORGET, 0, head + pairs))
        peer.assert_alive()
        while fs.chores or fs._orphans:
            peer.assert_alive()
    assert work.most < STEP_CALLS
    assert isinstance(fs._upper, Volume)
    # The session may have had the last one in its hands when we looked.
    for chore in list(fs.chores):
        list(chore)
    assert len(pieces) > 1
    fs.fsync(ROOT_INO, datasync=False)
    assert not list(fs._upper.current_items.scan(key(0, T_ORPHAN)))
    fs.close()


def test_copies_are_short_and_go_on(work: Work) -> None:
    fs = dense()
    ino, into = find(fs, b"large"), find(fs, b"small")
    size = fs.getattr(ino).size
    # Shared in whole chunks; copied where the two do not lie alike.
    for start, most in ((0, SHARED_CHUNKS * CHUNK), (1, COPY_BYTES)):
        done = calls = 0
        while count := fs.copy_file_range(ino, start + done, into, done, 1 << 63):
            assert count <= most
            done, calls = done + count, calls + 1
        assert done == size - start
        assert calls == -(-done // most)
        assert content(fs, into)[:done] == content(fs, ino)[start:]
    fs.close()


def test_a_sparse_copy_takes_what_the_file_takes() -> None:
    fs = mounted()
    ino, into = find(fs, b"large"), find(fs, b"small")
    scatter(fs, ino, bytes(2 * CHUNK))
    done = calls = 0
    while count := fs.copy_file_range(ino, done, into, done, 1 << 63):
        done, calls = done + count, calls + 1
    assert done == 1 << 40
    assert calls == 2 * MANY
    assert fs.getattr(into).blocks == fs.getattr(ino).blocks == MANY * 2 * CHUNK >> 9
    fs.close()


def test_a_hole_is_copied_in_one_and_stays_one() -> None:
    fs = hollow()
    ino, into = find(fs, b"large"), find(fs, b"small")
    assert fs.copy_file_range(ino, 0, into, 0, 1 << 63) == 1 << 39
    inode = fs.getattr(into)
    assert (inode.size, inode.blocks) == (1 << 39, 0)
    assert fs.copy_file_range(ino, 1 << 39, into, 1 << 39, 1 << 63) == CHUNK
    assert fs.getattr(into).blocks == CHUNK >> 9
    assert fs.copy_file_range(ino, 0, into, 0, 1 << 63) == SHARED_CHUNKS * CHUNK, (
        "over what is there"
    )
    fs.close()
