# SPDX-License-Identifier: Apache-2.0
"""Records that several files name, parts of the lower layer, reserved room, records of any length.

Made by the store's own calls: programs ask for shared ones only. Through commits, kills,
checkpoints, space reclaim and copies every byte is right, and every account.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from serdab.errors import FormatError, FsError
from serdab.keys import Key
from serdab.sefs import keyspace as ks
from serdab.sefs.fsck import check, salvage
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.segment import POINTER
from serdab.sefs.slots import LowerPart, dump_lower, dump_reserved, is_record
from serdab.sefs.volume import Volume, open_volume, open_volume_in
from serdab.sefs.volumecopy import close_for_copy, copy_volume
from serdab.vfs.api import ROOT_INO, Inode, SetAttr
from serdab.vfs.union import Union
from tests.attack.sealedvolume import CHUNK, KEY, open_host
from tests.store.sharedmodel import SharedModel
from tests.vectors.test_format_v1 import open_golden

NOISE = bytes(range(251)) * 200


def made(fs: Union, name: bytes, size: int, start: int = 0) -> Inode:
    inode = fs.mknod(ROOT_INO, name, stat.S_IFREG | 0o600, 0, 0, 0)
    fs.write(inode.ino, 0, memoryview(NOISE[start : start + size]), kill_suidgid=False)
    return inode


def volume_of(fs: Union) -> Volume:
    volume = fs._upper
    assert isinstance(volume, Volume)
    return volume


def body(fs: Union, ino: int) -> bytes:
    buf = bytearray(fs.getattr(ino).size)
    fs.read_into(ino, 0, memoryview(buf))
    return bytes(buf)


def live(volume: Volume) -> int:
    return sum(entry.live for entry in volume.usage_by_segment().values())


def cloned(fs: Union, source: Inode, name: bytes) -> Inode:
    """Make a file of the records of another one."""
    inode = fs.mknod(ROOT_INO, name, stat.S_IFREG | 0o600, 0, 0, 0)
    volume_of(fs).share(source, 0, inode, 0, -(-source.size // CHUNK))
    inode.size = source.size
    volume_of(fs).put_inode(inode)
    return inode


def damaged(fs: Union) -> dict[str, str]:
    volume = volume_of(fs)
    return check(lambda: fs, [volume.tree], upper=volume).damaged


@pytest.mark.parametrize("seed", range(6))
def test_random_work_is_what_the_model_says(seed: int) -> None:
    model = SharedModel(seed)
    for turn in range(10):
        model.run(30)
        model.kill() if turn % 3 else model.volume.checkpoint()
        model.expect()
    model.close()
    model.fs = model.open()
    model.expect()
    model.fs.close()


@pytest.mark.soak
def test_much_random_work() -> None:
    for seed in range(1000, 2000):
        model = SharedModel(seed, open_golden("integrity") if seed % 3 == 0 else None)
        for turn in range(14):
            model.run(40)
            model.kill() if turn % 3 else model.volume.checkpoint()
            model.expect()
        model.volume.abandon()


@pytest.mark.parametrize("seed", range(2))
def test_random_work_over_an_image(seed: int) -> None:
    model = SharedModel(seed, open_golden("integrity"))
    for _ in range(4):
        model.run(30)
        model.kill()
        model.expect()
    assert "_below" in model.done
    model.volume.close()


class TestSharedRecords:
    def test_they_count_once_and_live_as_long_as_one_owner(self) -> None:
        host = MemoryDir("host")
        fs = open_host(host, read_only=False)
        source = made(fs, b"source", 5 * CHUNK)
        fs.syncfs()
        before = live(volume_of(fs))
        clones = [cloned(fs, source, b"clone %d" % number) for number in range(3)]
        assert live(volume_of(fs)) == before
        fs.syncfs()
        fs.write(clones[0].ino, 10, memoryview(b"other"), kill_suidgid=False)
        for name in (b"source", b"clone 1"):
            fs.unlink(ROOT_INO, name)
        fs.forget(source.ino, 1)
        fs.forget(clones[1].ino, 1)
        assert body(fs, clones[2].ino) == NOISE[: 5 * CHUNK]
        assert body(fs, clones[0].ino)[10:15] == b"other"
        volume_of(fs).checkpoint()
        assert damaged(fs) == {}
        for number in (0, 2):
            fs.unlink(ROOT_INO, b"clone %d" % number)
            fs.forget(clones[number].ino, 1)
        volume_of(fs).checkpoint()
        assert not volume_of(fs).shared_records()
        assert damaged(fs) == {}
        fs.close()

    def test_moving_one_repoints_all_who_name_it(self) -> None:
        host = MemoryDir("host")
        fs = open_host(host, read_only=False)
        volume = volume_of(fs)
        source = made(fs, b"source", 3 * CHUNK)
        clone = cloned(fs, source, b"clone")
        volume.checkpoint()
        fs.close()
        fs = open_host(host, read_only=False)
        volume = volume_of(fs)
        old = [POINTER.unpack(volume.slot(source.ino, chunk)) for chunk in range(3)]
        for segment, offset, stored, _, _ in old:
            volume._content.records.move(source.ino, 0, segment, offset, stored)
            volume._content.records.move(clone.ino, 2, segment, offset, stored)
        moved = [volume.slot(source.ino, chunk) for chunk in range(3)]
        assert moved == [volume.slot(clone.ino, chunk) for chunk in range(3)]
        assert [POINTER.unpack(slot)[0] != old[0][0] for slot in moved] == [True, False, True]
        assert len(volume.shared_records()) == 3
        fs.syncfs()
        assert damaged(fs) == {}
        assert body(fs, clone.ino) == NOISE[: 3 * CHUNK]
        fs.close()

    def test_a_copy_keeps_them_shared(self, tmp_path: Path) -> None:
        (tmp_path / "volume").mkdir()
        (tmp_path / "copy").mkdir()
        volume = open_volume(tmp_path / "volume", key=KEY, create=True, chunk_size=CHUNK)
        fs = Union(volume, None)
        source = made(fs, b"source", 6 * CHUNK)
        clone = cloned(fs, source, b"clone")
        fs.write(source.ino, CHUNK, memoryview(b"newer"), kill_suidgid=False)
        volume.reserve(clone, 20, 3)
        fs.syncfs()
        counts = sorted(volume.shared_records().values())
        close_for_copy(volume)
        original = open_volume(tmp_path / "volume", key=KEY, read_only=True)
        new = Key.generate()
        copy_volume(original, tmp_path / "copy", key=new, lower=None, source=b"{}")
        original.close()
        copy = open_volume(tmp_path / "copy", key=new)
        fs = Union(copy, None)
        assert sorted(copy.shared_records().values()) == counts == [2] * 5
        assert copy.reserved_bytes == 3 * (CHUNK + 16)
        assert damaged(fs) == {}
        assert body(fs, clone.ino) == NOISE[: 6 * CHUNK]
        fs.close()

    def test_no_copy_is_of_an_older_version(self, tmp_path: Path) -> None:
        original = open_host(MemoryDir("host"), read_only=False)
        with pytest.raises(FormatError):
            copy_volume(
                volume_of(original), tmp_path, key=KEY, lower=None, source=b"{}", version=ks.V1
            )
        original.close()

    def test_a_salvaged_volume_keeps_them_shared(self) -> None:
        host = MemoryDir("host")
        fs = open_host(host, read_only=False)
        source = made(fs, b"source", 4 * CHUNK)
        clone = cloned(fs, source, b"clone")
        slot = POINTER.unpack(volume_of(fs).slot(source.ino, 1))
        fs.close()
        host.dirs["seg"].files[f"{slot[0]:08x}"].content[slot[1]] ^= 1
        into = open_volume_in(MemoryDir("into"), key=KEY, create=True, chunk_size=CHUNK)
        whole = open_volume_in(host, key=KEY, read_only=True, tolerant=True)
        report = salvage(whole, into)
        assert set(report.damaged) == {"/clone", "/source"}
        fs = Union(into, None)
        assert sorted(into.shared_records().values()) == [2, 2, 2]
        assert damaged(fs) == {}
        expected = NOISE[:CHUNK] + bytes(CHUNK) + NOISE[2 * CHUNK : 4 * CHUNK]
        assert body(fs, clone.ino) == body(fs, source.ino) == expected
        fs.close()
        whole.close()

    @pytest.mark.parametrize("lie", ["one less", "one more", "none", "no owner"])
    def test_fsck_finds_accounts_that_are_not_so(self, lie: str) -> None:
        host = MemoryDir("host")
        fs = open_host(host, read_only=False)
        source = made(fs, b"source", 2 * CHUNK)
        for number in range(2):
            cloned(fs, source, b"clone %d" % number)
        fs.syncfs()
        volume = volume_of(fs)
        segment, _, _, number, _ = POINTER.unpack(volume.slot(source.ino, 0))
        key = ks.shared_key(segment, number)
        if lie == "no owner":
            for owned in [k for k, _ in volume.current_items.scan(ks.key(0, ks.T_RECORDS))]:
                volume.current_items.put(owned, None)
        else:
            said = {"one less": ks.dump_shared(2), "one more": ks.dump_shared(4), "none": None}
            volume.current_items.put(key, said[lie])
        volume._journal.touch()
        fs.close()
        fs = open_host(host)
        assert len(damaged(fs)) == 1
        fs.close()

    def test_reserved_room_that_is_not_there_is_found(self) -> None:
        host = MemoryDir("host")
        fs = open_host(host, read_only=False)
        inode = made(fs, b"file", CHUNK)
        volume_of(fs).reserve(inode, 4, 2)
        volume_of(fs)._journal.segments.reserved_bytes += 1
        fs.close()
        assert list(damaged(open_host(host))) == ["reserved room"]


class TestPartsOfTheLowerLayer:
    def test_they_are_data_where_the_lower_file_has_data(self) -> None:
        lower = open_golden("integrity")
        fs = Union(
            open_volume_in(MemoryDir("host"), key=KEY, lower=lower, create=True, chunk_size=CHUNK),
            lower,
        )
        chunks = fs.lookup(fs.lookup(ROOT_INO, b"bin").ino, b"chunks")
        inode = fs.mknod(ROOT_INO, b"file", 0o100600, 0, 0, 0)
        volume_of(fs).refer_below(inode, 2, LowerPart(chunks.ino, 70_000, 1000))
        inode.size = 4 * CHUNK
        volume_of(fs).put_inode(inode)
        fs.syncfs()
        expected = bytearray(1000)
        lower.read_into(chunks.ino, 70_000, memoryview(expected))
        assert body(fs, inode.ino) == bytes(2 * CHUNK) + expected + bytes(2 * CHUNK - 1000)
        assert fs.lseek(inode.ino, 0, 3) == 2 * CHUNK
        assert fs.lseek(inode.ino, 2 * CHUNK + 10, 4) == 2 * CHUNK + 1000
        found = volume_of(fs).ranges(inode, 2 * CHUNK + 500, 4 * CHUNK)
        stored = [(start, end) for start, end in found if start < end]
        assert stored == [(2 * CHUNK + 500, 2 * CHUNK + 1000)]
        assert damaged(fs) == {}
        fs.close()

    def test_one_that_cannot_be_is_refused(self) -> None:
        lower = open_golden("integrity")
        for upper_lower, length in ((None, 10), (lower, CHUNK + 1)):
            volume = open_volume_in(
                MemoryDir("host"), key=KEY, lower=upper_lower, create=True, chunk_size=CHUNK
            )
            fs = Union(volume, upper_lower)
            inode = fs.mknod(ROOT_INO, b"file", 0o100600, 0, 0, 0)
            inode.size = CHUNK
            with pytest.raises(FsError):
                volume.refer_below(inode, 0, LowerPart(5, 0, CHUNK + 1))
            volume._content.records.put_slot(inode.ino, 0, dump_lower(LowerPart(5, 0, length)))
            with pytest.raises(FormatError):
                body(fs, inode.ino)
            volume.close()
        lower.close()


class TestReservedRoom:
    def test_it_reads_as_zeros_is_counted_and_is_no_data(self) -> None:
        host = MemoryDir("host")
        fs = open_host(host, read_only=False)
        volume = volume_of(fs)
        inode = made(fs, b"file", 100)
        volume.reserve(inode, 0, 4)
        fs.setattr(inode.ino, SetAttr(size=4 * CHUNK))
        fs.syncfs()
        fs.close()
        fs = open_host(host, read_only=False)
        volume = volume_of(fs)
        # The chunk that was in memory has its record, and no room beside it.
        assert volume.reserved_bytes == 3 * (CHUNK + 16)
        assert body(fs, inode.ino) == NOISE[:100] + bytes(4 * CHUNK - 100)
        with pytest.raises(FsError) as nothing:
            fs.lseek(inode.ino, CHUNK, 3)
        assert nothing.value.errno == errno.ENXIO
        assert fs.getattr(inode.ino).blocks == 4 * CHUNK // 512
        fs.write(inode.ino, CHUNK + 5, memoryview(b"written"), kill_suidgid=False)
        fs.syncfs()
        volume.checkpoint()
        assert volume.reserved_bytes == 2 * (CHUNK + 16)
        fs.fallocate(inode.ino, 3, 2 * CHUNK, CHUNK)
        fs.setattr(inode.ino, SetAttr(size=10))
        assert volume.reserved_bytes == 0
        fs.close()
        assert damaged(open_host(host)) == {}

    def test_a_small_file_keeps_it(self) -> None:
        """An inline file has no extents that could hold it."""
        host = MemoryDir("host")
        fs = open_host(host, read_only=False)
        inode = made(fs, b"file", 50)
        fs.close()
        fs = open_host(host, read_only=False)
        inode = fs.getattr(inode.ino)
        assert inode.flags & ks.F_INLINE
        volume_of(fs).reserve(inode, 2, 1)
        fs.syncfs()
        fs.close()
        fs = open_host(host)
        assert volume_of(fs).reserved_bytes == CHUNK + 16
        assert body(fs, inode.ino) == NOISE[:50]
        assert damaged(fs) == {}
        fs.close()


class TestRecordSizes:
    def test_a_file_has_records_of_its_own_length(self) -> None:
        host = MemoryDir("host")
        fs = open_host(host, read_only=False)
        inode = fs.mknod(ROOT_INO, b"file", 0o100600, 0, 0, 0)
        volume_of(fs).set_record_size(inode, 16384)
        fs.write(inode.ino, 0, memoryview(NOISE[:40_000]), kill_suidgid=False)
        fs.syncfs()
        fs.write(inode.ino, 20_000, memoryview(b"in the log"), kill_suidgid=False)
        fs.syncfs()
        expected = NOISE[:20_000] + b"in the log" + NOISE[20_010:40_000]
        fs.close()
        fs = open_host(host, read_only=False)
        volume = volume_of(fs)
        assert body(fs, inode.ino) == expected
        stored = [POINTER.unpack(volume.slot(inode.ino, chunk))[2] for chunk in range(4)]
        assert stored == [16400, 16400, 40_000 - 32768 + 16, 0]
        inode = fs.getattr(inode.ino)
        with pytest.raises(FsError):
            volume.set_record_size(inode, 0)
        fs.setattr(inode.ino, SetAttr(size=0))
        volume.set_record_size(inode, 0)
        fs.write(inode.ino, 0, memoryview(NOISE[:5000]), kill_suidgid=False)
        fs.close()
        fs = open_host(host)
        assert POINTER.unpack(volume_of(fs).slot(inode.ino, 0))[2] == CHUNK + 16
        assert body(fs, inode.ino) == NOISE[:5000]
        assert damaged(fs) == {}
        fs.close()

    def test_a_record_longer_than_its_file_has_them_is_refused(self) -> None:
        host = MemoryDir("host")
        fs = open_host(host, read_only=False)
        inode = fs.mknod(ROOT_INO, b"file", 0o100600, 0, 0, 0)
        volume_of(fs).set_record_size(inode, 16384)
        fs.write(inode.ino, 0, memoryview(NOISE[:16384]), kill_suidgid=False)
        inode.flags = ks.with_record_size(inode.flags, 0)
        fs.close()
        fs = open_host(host)
        with pytest.raises(FormatError):
            body(fs, inode.ino)
        fs.close()


class TestVersion1:
    def test_it_refuses_all_of_it(self) -> None:
        fs = open_host(MemoryDir("host"), read_only=False, version=ks.V1)
        volume = volume_of(fs)
        inode = made(fs, b"file", CHUNK)
        other = made(fs, b"other", CHUNK)
        acts: list[Callable[[], object]] = [
            lambda: volume.set_record_size(inode, 4096),
            lambda: volume.share(inode, 0, other, 0, 1),
            lambda: volume.reserve(inode, 3, 1),
            lambda: volume.refer_below(inode, 0, LowerPart(1, 0, 1)),
        ]
        for act in acts:
            with pytest.raises(FsError) as refusal:
                act()
            assert refusal.value.errno == errno.EOPNOTSUPP
        fs.close()

    @pytest.mark.parametrize("version", [ks.V1, ks.V2])
    def test_slots_it_does_not_have_are_refused(self, version: int) -> None:
        lower = dump_lower(LowerPart(5, 0, 100))
        slots = [b"\xfc\xff\xff\xff" + bytes(28), b"\xff" * 32, lower[:-1] + b"\1",
                 dump_lower(LowerPart(0, 0, 100)), dump_lower(LowerPart(5, 0, 0)),
                 dump_reserved(CHUNK)[:-1] + b"\1"]  # fmt: skip
        if version == ks.V1:
            slots += [lower, dump_reserved(CHUNK)]
        for slot in slots:
            assert not is_record(slot)
            fs = open_host(MemoryDir("host"), read_only=False, version=version)
            inode = made(fs, b"file", 3 * CHUNK)
            fs.syncfs()
            volume_of(fs).restore_item(ks.group_key(inode.ino, 0), slot, version)
            volume_of(fs)._content.settle()
            volume_of(fs)._content._extents._clean.drop((inode.ino, 0))
            with pytest.raises(FormatError):
                body(fs, inode.ino)
            volume_of(fs).abandon()
