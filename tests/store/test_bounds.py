# SPDX-License-Identifier: Apache-2.0
"""Every bound of docs/format.md is checked where it is written: at the bound and below what is
written is read, above it nothing is written and the volume goes on."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest

from serdab.errors import FormatError, FsError, UsageError
from serdab.keys import Key
from serdab.sefs import intentlog, segment
from serdab.sefs import keyspace as ks
from serdab.sefs.anchor import MAX_SOURCE, AnchorState, check_slot, volume_keys
from serdab.sefs.intentlog import Commit, LogWriter, log_cipher, read_log, size_of
from serdab.sefs.limits import DEFAULT_LIMITS, VolumeLimits
from serdab.sefs.memorydir import MemoryDir, MemoryFile
from serdab.sefs.page import MAX_LEVEL
from serdab.sefs.segment import MAX_SEGMENT, MAX_STORED
from serdab.sefs.volume import Volume, open_volume_in
from serdab.vfs.api import ROOT_INO, SetAttr
from serdab.vfs.union import Union
from tests.property.fsops import picture

KEY = Key(b"at the bounds of")
KEYS = volume_keys(KEY, bytes(16), ks.V2)
AROUND = pytest.mark.parametrize("by", [-1, 0, 1], ids=["below", "at", "above"])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    log = logging.getLogger("serdab.sefs")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


def opened(host: MemoryDir, limits: VolumeLimits = DEFAULT_LIMITS) -> tuple[Volume, Union]:
    volume = open_volume_in(host, key=KEY, create=True, limits=limits)
    return volume, Union(volume, None)


def made(fs: Union, name: bytes = b"file") -> int:
    return fs.mknod(ROOT_INO, name, 0o100600, 0, 0, 0).ino


def expect_same_again(fs: Union, host: MemoryDir) -> None:
    """Close it; another session finds the same."""
    before = picture(fs)
    fs.close()
    _, again = opened(host)
    assert picture(again) == before
    again.close()


def commit_of(length: int) -> Commit:
    """Return a commit whose body has so many bytes."""
    commit = Commit([], [], [(1, 0, b"")], 2)
    empty = len(msgspec.msgpack.encode(Commit([], [], [(1, 0, bytes(65536))], 2))) - 65536
    commit.writes = [(1, 0, bytes(length - empty))]
    assert len(msgspec.msgpack.encode(commit)) == length
    return commit


class TestLog:
    @AROUND
    def test_a_body(self, by: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(intentlog, "MAX_BODY", 100_000)
        file, cipher = MemoryFile(), log_cipher(KEYS, 1, os.urandom(32))
        writer = LogWriter(file, cipher, 0, bytes(16))
        commit = commit_of(100_000 + by)
        if by > 0:
            with pytest.raises(FormatError):
                writer.append(commit)
            assert not file.content
            commit = commit_of(70_000)
        writer.append(commit)
        assert [found for _, _, found in read_log(file, cipher, 0, bytes(16))] == [commit]

    @AROUND
    def test_a_file(self, by: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(intentlog, "MAX_PAGES", 3)
        file, cipher = MemoryFile(), log_cipher(KEYS, 1, os.urandom(32))
        writer = LogWriter(file, cipher, 0, bytes(16))
        for _ in range(2 + by):
            writer.append(Commit([], [], [], 2))
        length = len(file.content)
        if by > 0:
            with pytest.raises(FormatError):
                writer.append(Commit([], [], [], 2))
            assert len(file.content) == length
        assert len(list(read_log(file, cipher, 0, bytes(16)))) == 2 + by

    @AROUND
    def test_a_commit_that_would_be_longer_is_a_checkpoint(self, by: int) -> None:
        host = MemoryDir()
        limits = replace(DEFAULT_LIMITS, commit_bytes=1 << 20)
        volume, fs = opened(host, limits)
        fs.syncfs()
        ino = made(fs)
        for number in range(16):
            fs.setxattr(ino, b"user.%02d" % number, bytes(65536), 0)
        sequence, epoch = volume.position.sequence, volume.state.epoch  # type: ignore[union-attr]
        journal = volume._journal
        journal.save_items()
        pending = [(key, journal.items.mem[key]) for key in sorted(journal.items.pending)]
        size = size_of(Commit(pending, [], [], journal.next_ino))
        journal._limits = replace(limits, commit_bytes=size - by)
        fs.syncfs()
        position = volume.position
        assert position is not None
        assert (position.sequence - sequence, position.epoch - epoch) == (
            (0, 1) if by > 0 else (1, 0)
        )
        fs._upper.abandon()  # type: ignore[attr-defined]
        _, again = opened(host)
        assert len(again.listxattr(ino)) == 16
        again.close()

    def test_the_size_of_a_commit_is_not_underrated(self) -> None:
        commit = Commit(
            [(bytes(9), None), (bytes(300), bytes(70_000)), (bytes(17), b"")] * 50,
            [(1 << 61, 1 << 40, 1 << 62)] * 50,
            [(1 << 61, 1 << 60, bytes(300))] * 50,
            1 << 61,
        )
        assert len(msgspec.msgpack.encode(commit)) <= size_of(commit)


STATE = AnchorState(
    epoch=2, sequence=3, chain=bytes(16), root=bytes(32), root_level=1, table=bytes(32),
    next_ino=2, next_segment=2, next_log=2, log=1, log_salt=bytes(32), lower=(bytes(32),),
    chunk_size=32768, page_size=8192, live_bytes=0, previous=bytes(16),
)  # fmt: skip


class TestAnchor:
    @pytest.mark.parametrize(
        ("field", "most"),
        [
            *[(name, (1 << 63) - 1)
              for name in ("epoch", "sequence", "next_ino", "next_log", "log", "live_bytes")],
            ("next_segment", MAX_SEGMENT - 1), ("root_level", MAX_LEVEL),
        ],
    )  # fmt: skip
    @AROUND
    def test_a_counter(self, field: str, most: int, by: int) -> None:
        state = msgspec.structs.replace(STATE, **{field: most + by})
        if by > 0:
            with pytest.raises(FormatError):
                check_slot(b"{}", state)
        else:
            check_slot(b"{}", state)

    @AROUND
    def test_the_key_source(self, by: int) -> None:
        host, source = MemoryDir(), b"s" * (MAX_SOURCE + by)
        if by > 0:
            with pytest.raises(UsageError):
                open_volume_in(host, key=KEY, create=True, source=source)
            assert not host.names()
            return
        fs = Union(open_volume_in(host, key=KEY, create=True, source=source), None)
        fs.syncfs()
        fs.close()
        assert opened(host)[0].source == source

    @AROUND
    def test_inode_numbers(self, by: int) -> None:
        host = MemoryDir()
        volume, fs = opened(host)
        volume.restore_counter(ks.MAX_INO + by)
        if by > 0:
            with pytest.raises(FsError) as caught:
                made(fs)
            assert caught.value.errno == errno.ENOSPC
        else:
            assert made(fs) == ks.MAX_INO + by
        expect_same_again(fs, host)


class TestSegments:
    @AROUND
    def test_numbers(self, by: int) -> None:
        """The last one that can be begun leaves a number for the anchor to name."""
        host = MemoryDir()
        volume, fs = opened(host)
        volume._journal.segments.next_number = MAX_SEGMENT - 2 + by
        if by > 0:
            with pytest.raises(FsError) as caught:
                fs.syncfs()
            assert caught.value.errno == errno.ENOSPC
            return
        fs.syncfs()
        expect_same_again(fs, host)

    @AROUND
    def test_the_table_is_a_record(self, by: int, monkeypatch: pytest.MonkeyPatch) -> None:
        host = MemoryDir()
        volume, fs = opened(host)
        fs.syncfs()
        monkeypatch.setattr(segment, "MAX_SEGMENTS", len(volume._journal.segments.usage) + 1 - by)
        ino = made(fs)
        data = memoryview(bytes(40_000))
        if by > 0:
            with pytest.raises(FsError) as caught:
                fs.write(ino, 0, data, kill_suidgid=False)
            assert caught.value.errno == errno.ENOSPC
        else:
            fs.write(ino, 0, data, kill_suidgid=False)
        expect_same_again(fs, host)

    @AROUND
    def test_a_record(self, by: int) -> None:
        volume, _ = opened(MemoryDir())
        store = volume._journal.segments
        writer = store.writer()
        plain = bytes(MAX_STORED - 1 - 16 + by)
        if by > 0:
            with pytest.raises(FormatError):
                writer.append(plain, b"")
            return
        assert store.read(writer.append(plain, b""), b"", len(plain)) == plain


class TestNamesAndValues:
    @AROUND
    def test_a_name(self, by: int) -> None:
        host = MemoryDir()
        _, fs = opened(host)
        name = b"n" * (ks.NAME_MAX + by)
        if by > 0:
            with pytest.raises(FsError) as caught:
                made(fs, name)
            assert caught.value.errno == errno.ENAMETOOLONG
        else:
            made(fs, name)
        expect_same_again(fs, host)

    @AROUND
    def test_an_attribute(self, by: int) -> None:
        host = MemoryDir()
        _, fs = opened(host)
        ino = made(fs)
        for name, value in ((b"user.x", bytes(ks.XATTR_MAX + by)), (b"n" * (255 + by), b"")):
            if by > 0:
                with pytest.raises(FsError) as caught:
                    fs.setxattr(ino, name, value, 0)
                assert caught.value.errno in (errno.E2BIG, errno.ERANGE)
            else:
                fs.setxattr(ino, name, value, 0)
        expect_same_again(fs, host)

    @AROUND
    def test_a_target(self, by: int) -> None:
        host = MemoryDir()
        _, fs = opened(host)
        target = b"t" * (4095 + by)
        if by > 0:
            with pytest.raises(FsError) as caught:
                fs.symlink(ROOT_INO, b"link", target, 0, 0)
            assert caught.value.errno == errno.ENAMETOOLONG
        else:
            fs.symlink(ROOT_INO, b"link", target, 0, 0)
        expect_same_again(fs, host)

    @AROUND
    @pytest.mark.parametrize("chunk_size", [512, 4096])
    def test_what_is_kept_in_an_inode(self, by: int, chunk_size: int) -> None:
        """A file of several chunks is not, even if it is shorter than the limit."""
        host = MemoryDir()
        volume = open_volume_in(host, key=KEY, create=True, chunk_size=chunk_size)
        fs = Union(volume, None)
        ino = made(fs)
        size = ks.INLINE_MAX + by
        for start in range(0, size, 100):
            part = bytes([start % 251]) * min(100, size - start)
            fs.write(ino, start, memoryview(part), kill_suidgid=False)
        fs.syncfs()
        inode = volume.inode(ino)
        assert inode is not None
        assert bool(inode.flags & ks.F_INLINE) == (by <= 0 and chunk_size >= ks.INLINE_MAX)
        expect_same_again(fs, host)

    @AROUND
    def test_a_size(self, by: int) -> None:
        host = MemoryDir()
        volume, fs = opened(host)
        ino = made(fs)
        size = ks.MAX_FILE_BYTES + by
        if by > 0:
            with pytest.raises(FsError) as caught:
                fs.setattr(ino, SetAttr(size=size))
            assert caught.value.errno == errno.EFBIG
        else:
            fs.setattr(ino, SetAttr(size=size))
        fs.syncfs()
        inode = volume.inode(ino)
        assert inode is not None
        assert inode.size == (0 if by > 0 else size)
        fs.close()
