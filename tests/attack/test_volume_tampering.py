# SPDX-License-Identifier: Apache-2.0
"""What the storage may do to a writable volume: refused, an error where it hurts, or no matter.

Whatever is done, no file reads other bytes than were sealed. A change of a byte that the newest
state rests on (``live_ranges``) is always noticed; of a dead byte it need not be.
"""

from __future__ import annotations

import copy
import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from serdab.errors import Error, FormatError, FsError, WrongKeyError
from serdab.keys import Key
from serdab.sefs import keyspace as ks
from serdab.sefs.anchor import SLOT_BYTES
from serdab.sefs.memorydir import MemoryDir, MemoryFile
from serdab.vfs.api import ROOT_INO
from tests.attack.sealedvolume import (
    CHUNK,
    KEY,
    SealedVolume,
    Survey,
    file_at,
    files_of,
    fill,
    live_ranges,
    open_disk,
    open_host,
    survey,
    to_disk,
)
from tests.harness.hangs import no_hang

CLOSED = pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])


@pytest.fixture(scope="module", params=[ks.V1, ks.V2], ids=["v1", "v2"])
def volumes(request: pytest.FixtureRequest) -> dict[bool, SealedVolume]:
    return {closed: SealedVolume(closed=closed, version=request.param) for closed in (True, False)}


def is_live(spans: list[tuple[int, int]], offset: int) -> bool:
    return any(start <= offset < end for start, end in spans)


def flip_all(volume: SealedVolume, chosen: Callable[[bool, int, int], Iterator[int]]) -> int:
    """Flip bits of every host file; ``chosen`` yields the bits of (live, offset, border)."""
    live = live_ranges(volume.host)
    count = 0
    for path, file in files_of(volume.copy()):
        host = volume.copy()
        target = file_at(host, path).content
        spans = live.get(path, [])
        tail = spans[-1][0] if path.startswith("log/") and spans else 1 << 40
        borders = {edge for span in spans for edge in (*span, span[1] - 16, span[1] - 1)}
        for offset in range(len(file.content)):
            alive = is_live(spans, offset)
            distance = min((abs(offset - edge) for edge in borders), default=99)
            for bit in chosen(alive, offset, distance):
                target[offset] ^= 1 << bit
                what = f"{path}, byte {offset}, bit {bit}"
                # A damaged last commit looks like one that was torn: it is cut.
                last = offset >= tail
                volume.check(host, must_notice=alive and not last, what=what, cut=last)
                target[offset] ^= 1 << bit
                count += 1
    return count


@CLOSED
def test_flipped_bits(volumes: dict[bool, SealedVolume], closed: bool) -> None:
    """A sample here: the borders of every live range, and bytes in between; all in `make soak`."""

    def chosen(alive: bool, offset: int, distance: int) -> Iterator[int]:
        if (alive and (distance < 2 or offset % 29 == 0)) or (not alive and offset % 431 == 0):
            yield offset % 8

    assert flip_all(volumes[closed], chosen) > 300


@pytest.mark.soak
@CLOSED
def test_every_bit_flipped(
    volumes: dict[bool, SealedVolume], closed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def chosen(alive: bool, offset: int, distance: int) -> Iterator[int]:
        # Every bit of live bytes; of dead ones a bit each, and all of every fiftieth.
        yield from range(8) if alive or offset % 50 == 0 else (offset % 8,)

    count = flip_all(volumes[closed], chosen)
    with capsys.disabled():
        print(f"\nvolume, closed={closed}: {count} single bits flipped, each noticed or dead")


@CLOSED
def test_overwritten_bytes_and_pages(volumes: dict[bool, SealedVolume], closed: bool) -> None:
    volume = volumes[closed]
    live = live_ranges(volume.host)
    for path, file in volume.files():
        host = volume.copy()
        target = file_at(host, path).content
        tail = live.get(path, [(0, 0)])[-1][0] if path.startswith("log/") else 1 << 40
        for start in range(0, len(file.content), 4096):
            old = bytes(target[start : start + 4096])
            changes = any(
                old[at] for at in range(len(old)) if is_live(live.get(path, []), start + at)
            )
            target[start : start + 4096] = bytes(len(old))
            last = start >= tail
            volume.check(
                host, must_notice=changes and not last, what=f"{path}, zeros at {start}", cut=last
            )
            target[start : start + 4096] = old
        for start, end in live.get(path, []):
            for offset in {start, (start + end) // 2, end - 1}:
                old_byte = target[offset]
                for value in {0x00, 0xFF} - {old_byte}:
                    target[offset] = value
                    what, last = f"{path}, byte {offset}={value}", offset >= tail
                    volume.check(host, must_notice=not last, what=what, cut=last)
                target[offset] = old_byte


@CLOSED
def test_truncation_at_every_border(volumes: dict[bool, SealedVolume], closed: bool) -> None:
    """A cut log is an older state that was synced once: without a record nothing can tell."""
    volume = volumes[closed]
    for path, spans in live_ranges(volume.host).items():
        lengths = {0, 1, 31, 4096}
        for start, end in spans:
            lengths |= {start, start + 1, end - 1, end}
        for length in sorted(lengths):
            host = volume.copy()
            target = file_at(host, path).content
            if length >= len(target):
                continue
            cut = any(length < end for _, end in spans)
            del target[length:]
            what, log = f"{path} cut at {length}", path.startswith("log/")
            volume.check(host, must_notice=cut and not log, what=what, cut=log)


@CLOSED
def test_garbage_appended(volumes: dict[bool, SealedVolume], closed: bool) -> None:
    volume = volumes[closed]
    noise = random.Random(1)
    for path, file in volume.files():
        for extra in (b"\0", noise.randbytes(1), noise.randbytes(5000), bytes(file.content)):
            host = volume.copy()
            file_at(host, path).content.extend(extra)
            volume.check(host, must_notice=False, what=f"{path} and {len(extra)} bytes more")


def _put(path: str, file: MemoryFile | None, host: MemoryDir) -> None:
    """Set or delete a host file."""
    folder, _, name = path.rpartition("/")
    directory = host.dirs[folder] if folder else host
    directory.files.pop(name, None)
    if file is not None:
        directory.files[name] = file


@CLOSED
def test_files_deleted_emptied_swapped_renamed_duplicated(
    volumes: dict[bool, SealedVolume], closed: bool
) -> None:
    volume = volumes[closed]
    live = live_ranges(volume.host)
    paths = [path for path, _ in volume.files()]

    def changed(act: Callable[[MemoryDir], object], *touched: str, what: str) -> None:
        host = volume.copy()
        act(host)
        log = any(path.startswith("log/") for path in touched)
        matters = any(path in live for path in touched) and not log
        volume.check(host, must_notice=matters, what=what, cut=log)

    def swap(one: str, two: str, host: MemoryDir) -> None:
        first, second = file_at(host, one), file_at(host, two)
        _put(one, second, host)
        _put(two, first, host)

    def rename(path: str, to: str, host: MemoryDir) -> None:
        _put(to, file_at(host, path), host)
        _put(path, None, host)

    for path in paths:
        changed(partial(_put, path, None), path, what=f"{path} deleted")
        changed(partial(_put, path, MemoryFile()), path, what=f"{path} emptied")
        changed(partial(rename, path, path[:-1] + "7"), path, what=f"{path} renamed")
        for other in paths:
            if other == path:
                continue
            changed(partial(swap, path, other), path, other, what=f"{path} and {other} swapped")
            double = copy.deepcopy(file_at(volume.host, path))
            changed(partial(_put, other, double), other, what=f"{path} put over {other}")


@CLOSED
def test_records_swapped_and_copied(volumes: dict[bool, SealedVolume], closed: bool) -> None:
    """Within a segment and between two; this covers a chunk of one file put over another's."""
    volume = volumes[closed]
    spans = [
        (path, start, end)
        for path, found in live_ranges(volume.host).items()
        for start, end in found
        if path.startswith("seg/") and start >= 4096
    ]
    for one in spans:
        for two in spans:
            if one == two:
                continue
            host = volume.copy()
            source, target = file_at(host, one[0]).content, file_at(host, two[0]).content
            length = min(one[2] - one[1], two[2] - two[1])
            kept = bytes(target[two[1] : two[1] + length])
            target[two[1] : two[1] + length] = source[one[1] : one[1] + length]
            volume.check(host, must_notice=True, what=f"{one} copied over {two}")
            source[one[1] : one[1] + length] = kept
            volume.check(host, must_notice=True, what=f"{one} and {two} swapped")


def test_log_records_removed_duplicated_and_reordered(
    volumes: dict[bool, SealedVolume],
) -> None:
    """The gap rule: a commit that a later one calls durable must be there."""
    volume = volumes[False]
    live = live_ranges(volume.host)
    path = next(name for name in live if name.startswith("log/"))
    pages = [(start, -(-end // 4096) * 4096) for start, end in live[path]]
    last = len(pages) - 1
    assert last >= 3

    def attacked(*changes: tuple[int, bytes], what: str) -> None:
        host = volume.copy()
        content = file_at(host, path).content
        for index, raw in changes:
            content[pages[index][0] : pages[index][1]] = raw
        touched = {index for index, _ in changes}
        # Undamaged and later than the first damage: it tells on the storage.
        witness = any(index not in touched for index in range(min(touched) + 1, last + 1))
        found = volume.check(host, must_notice=witness, what=what, cut=True)
        assert found.refused or not witness, what

    raws = [bytes(file_at(volume.host, path).content[start:end]) for start, end in pages]
    for one in range(last + 1):
        attacked((one, bytes(len(raws[one]))), what=f"record {one} removed")
        for two in range(last + 1):
            if one != two and len(raws[one]) == len(raws[two]):
                attacked((two, raws[one]), what=f"record {one} over {two}")
                attacked((one, raws[two]), (two, raws[one]), what=f"{one} and {two} swapped")


@pytest.fixture(scope="module")
def history() -> list[tuple[MemoryDir, Survey]]:
    host = MemoryDir("host")
    fs = open_host(host, read_only=False)
    fill(fs)
    kept: list[MemoryDir] = [copy.deepcopy(host)]
    chunk = fs.lookup(fs.lookup(ROOT_INO, b"folder").ino, b"chunk")
    for turn in range(4):
        fs.write(chunk.ino, 0, memoryview(bytes([turn]) * 2500), kill_suidgid=False)
        fs.setxattr(chunk.ino, b"user.turn", b"%d" % turn, 0)
        if turn % 2:
            fs.close()
            kept.append(copy.deepcopy(host))
            fs = open_host(host, read_only=False)
            chunk = fs.lookup(fs.lookup(ROOT_INO, b"folder").ino, b"chunk")
        else:
            fs.syncfs()
            kept.append(copy.deepcopy(host))
    fs.close()
    for old in kept:
        old.close()
    return [(old, survey(old)) for old in kept]


def test_a_damaged_last_commit_is_cut_and_said_so(
    volumes: dict[bool, SealedVolume], caplog: pytest.LogCaptureFixture
) -> None:
    volume = volumes[False]
    live = live_ranges(volume.host)
    path = next(name for name in live if name.startswith("log/"))
    start, end = live[path][-1]
    for offset in (start, end - 1):
        host = volume.copy()
        file_at(host, path).content[offset] ^= 1
        with caplog.at_level("INFO", "serdab.sefs"):
            caplog.clear()
            open_host(host).close()
        assert sum("not whole" in record.getMessage() for record in caplog.records) == 1
    with caplog.at_level("INFO", "serdab.sefs"):
        caplog.clear()
        open_host(volume.copy()).close()
    assert not any("not whole" in record.getMessage() for record in caplog.records)


class TestOlderParts:
    """Files of older states beside newer ones: never a mixture."""

    def test_one_file_rolled_back(self, history: list[tuple[MemoryDir, Survey]]) -> None:
        for new, _ in history:
            for old, _ in history:
                for path, _ in files_of(old):
                    host = copy.deepcopy(new)
                    folder, _, name = path.rpartition("/")
                    directory = host.dirs[folder] if folder else host
                    directory.files[name] = copy.deepcopy(file_at(old, path))
                    self.never_a_mixture(history, survey(host), f"{path} rolled back")

    def test_one_file_stays_new(self, history: list[tuple[MemoryDir, Survey]]) -> None:
        for new, _ in history:
            for old, _ in history:
                for path, _ in files_of(new):
                    host = copy.deepcopy(old)
                    folder, _, name = path.rpartition("/")
                    directory = host.dirs[folder] if folder else host
                    directory.files[name] = copy.deepcopy(file_at(new, path))
                    self.never_a_mixture(history, survey(host), f"only {path} is new")

    def test_one_anchor_slot_rolled_back(self, history: list[tuple[MemoryDir, Survey]]) -> None:
        for new, _ in history:
            for old, _ in history:
                for slot in (0, SLOT_BYTES):
                    host = copy.deepcopy(new)
                    part = slice(slot, slot + SLOT_BYTES)
                    host.files["anchor"].content[part] = old.files["anchor"].content[part]
                    self.never_a_mixture(history, survey(host), f"slot at {slot}")

    def test_pages_of_every_file_rolled_back(self, history: list[tuple[MemoryDir, Survey]]) -> None:
        new = history[-1][0]
        for old, _ in history[:-1]:
            for path, file in files_of(old):
                if path not in dict(files_of(new)):
                    continue
                for start in range(0, len(file.content), 4096):
                    host = copy.deepcopy(new)
                    content = file_at(host, path).content
                    page = bytes(file.content[start : start + 4096])
                    content[start : start + len(page)] = page
                    self.never_a_mixture(history, survey(host), f"page at {start} of {path}")

    @staticmethod
    def never_a_mixture(history: list[tuple[MemoryDir, Survey]], found: Survey, what: str) -> None:
        fits = [
            all(state.picture.get(path) == entry for path, entry in found.picture.items())
            and (found.errors or state.picture.keys() == found.picture.keys())
            for _, state in history
        ]
        assert any(fits), f"{what}: a mixture"


def test_a_splice_of_two_volumes_under_one_key(volumes: dict[bool, SealedVolume]) -> None:
    mine, theirs = volumes[False], SealedVolume(closed=False)
    live = live_ranges(mine.host)
    for path, file in theirs.files():
        host = mine.copy()
        folder, _, name = path.rpartition("/")
        directory = host.dirs[folder] if folder else host
        directory.files[name] = copy.deepcopy(file)
        log = path.startswith("log/")
        what = f"{path} of another volume"
        mine.check(host, must_notice=path in live and not log, what=what, cut=log)
    for slot in (0, SLOT_BYTES):
        host = mine.copy()
        part = slice(slot, slot + SLOT_BYTES)
        host.files["anchor"].content[part] = theirs.host.files["anchor"].content[part]
        found = survey(host)
        assert found.errors or found.warnings or found.picture == mine.picture


def test_a_volume_rolled_back_while_it_is_open_does_not_go_on_from_there() -> None:
    host = MemoryDir()
    fs = open_host(host, read_only=False)
    fs.mknod(ROOT_INO, b"first", stat.S_IFREG | 0o644, 0, 0, 0)
    fs.close()
    older = bytes(file_at(host, "anchor").content)
    fs = open_host(host, read_only=False)
    fs.mknod(ROOT_INO, b"second", stat.S_IFREG | 0o644, 0, 0, 0)
    fs.fsync(ROOT_INO, datasync=False)
    file_at(host, "anchor").content[:] = older
    fs.mknod(ROOT_INO, b"third", stat.S_IFREG | 0o644, 0, 0, 0)
    with pytest.raises(FsError) as refused:
        fs.close()
    assert refused.value.errno == errno.EIO
    assert bytes(file_at(host, "anchor").content) == older


def test_parts_of_forked_histories_are_not_mixed() -> None:
    """Two sessions went on from one snapshot: same numbers, same places, same sizes, one key."""
    start = SealedVolume(closed=True)
    forks: list[tuple[MemoryDir, Survey]] = []
    for turn in range(2):
        host = start.copy()
        fs = open_host(host, read_only=False)
        folder = fs.lookup(ROOT_INO, b"folder").ino
        for name, size in ((b"chunk", 2500), (b"chunks", 4 * CHUNK)):
            ino = fs.lookup(folder, name).ino
            fs.write(ino, 0, memoryview(bytes([65 + turn]) * size), kill_suidgid=False)
        fs.syncfs()
        fs.close()
        forks.append((host, survey(host)))
    (mine, sealed), (theirs, _) = forks
    mixed = 0
    for path, file in files_of(theirs):
        if file.content == getattr(dict(files_of(mine)).get(path), "content", None):
            continue
        host = copy.deepcopy(mine)
        _put(path, copy.deepcopy(file), host)
        found = survey(host)
        TestOlderParts.never_a_mixture(forks, found, f"{path} of the other session")
        assert path == "anchor" or found.errors or found.picture == sealed.picture
        mixed += 1
    assert mixed >= 2


def test_wrong_keys(volumes: dict[bool, SealedVolume]) -> None:
    for key in (Key(bytes(16)), Key(KEY.raw()[::-1]), Key(KEY.raw()[:15] + b"\0")):
        with pytest.raises(WrongKeyError):
            open_host(volumes[True].copy(), key=key)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 8), (8, 4), (12, 2), (14, 2), (16, 16), (32, 32), (64, 32), (96, 4)],
    ids=["magic", "version", "source length", "zero", "uuid", "salt", "key check", "sealed length"],
)  # fmt: skip
def test_a_changed_field_of_both_anchor_slots_is_refused(
    volumes: dict[bool, SealedVolume], offset: int, length: int
) -> None:
    for value in (0, 1, 2, 0xFF):
        host = volumes[True].copy()
        content = host.files["anchor"].content
        before = bytes(content)
        for slot in (0, SLOT_BYTES):
            content[slot + offset : slot + offset + length] = bytes([value]) * length
        if bytes(content) != before:
            found = survey(host)
            assert found.refused
            assert isinstance(found.errors[0], Error)


class TestOnARealHost:
    """What only a real directory can hold, and what changes under a mounted volume."""

    @pytest.fixture(autouse=True)
    def _no_hang(self) -> Iterator[None]:
        with no_hang("the store hung on a host file"):
            yield

    @pytest.mark.parametrize("kind", ["symlink", "fifo", "socket", "device", "directory", "link"])
    def test_something_else_in_place_of_a_file(
        self, volumes: dict[bool, SealedVolume], tmp_path: Path, kind: str
    ) -> None:
        volume = volumes[False]
        live = live_ranges(volume.host)
        for number, (path, file) in enumerate(volume.files()):
            folder = to_disk(volume.host, tmp_path / str(number))
            place, target = folder / path, tmp_path / f"target {number}"
            target.write_bytes(file.content)
            place.unlink()
            match kind:
                case "symlink":
                    place.symlink_to(target)
                case "fifo":
                    os.mkfifo(place)
                case "socket":
                    os.mknod(place, stat.S_IFSOCK | 0o600)
                case "device":
                    if os.geteuid() != 0:
                        place.symlink_to("/dev/zero")
                    else:
                        os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 5))
                case "directory":
                    place.mkdir()
                case "link":
                    os.link(target, place)
            problem = self.read_everything(folder)
            assert problem is not None or path not in live, f"a {kind} passed for {path}"
            assert target.read_bytes() == file.content, "the target was touched"

    @staticmethod
    def read_everything(folder: Path) -> Exception | None:
        try:
            fs = open_disk(folder)
        except (Error, OSError) as exc:
            return exc
        problem: Exception | None = None
        try:
            for top in fs.readdir(ROOT_INO, 2):
                if top.dtype != stat.S_IFDIR >> 12:
                    continue
                for entry in fs.readdir(top.ino, 2):
                    buf = bytearray(fs.getattr(entry.ino).size)
                    try:
                        fs.read_into(entry.ino, 0, memoryview(buf))
                    except (Error, OSError) as exc:
                        problem = exc
        except (Error, OSError) as exc:
            problem = exc
        try:
            fs.close()
        except (Error, OSError) as exc:
            problem = exc
        return problem

    def test_an_absurdly_long_file(self, volumes: dict[bool, SealedVolume], tmp_path: Path) -> None:
        for number, (path, _) in enumerate(volumes[False].files()):
            if path.startswith("log/") or path == "reserve":
                continue
            for length in (1 << 40, (1 << 46) + 1):
                folder = to_disk(volumes[False].host, tmp_path / f"{number} {length}")
                try:
                    os.truncate(folder / path, length)
                except OSError:
                    continue  # this host file system has no such files
                problem = self.read_everything(folder)
                assert problem is None or isinstance(problem, Error | OSError)

    def test_bytes_that_change_under_a_mounted_volume(
        self, volumes: dict[bool, SealedVolume], tmp_path: Path
    ) -> None:
        volume = volumes[True]
        folder = to_disk(volume.host, tmp_path / "volume")
        fs = open_disk(folder)
        ino = fs.lookup(fs.lookup(ROOT_INO, b"folder").ino, b"chunks").ino
        good = volume.picture[b"/folder/chunks"][9]
        assert isinstance(good, bytes)
        segments = sorted((folder / "seg").iterdir())
        kept = [segment.read_bytes() for segment in segments]
        for segment, raw in zip(segments, kept, strict=True):
            segment.write_bytes(raw[:4096] + bytes(len(raw) - 4096))
        buf = bytearray(len(good))
        with pytest.raises((Error, FsError)):
            fs.read_into(ino, 0, memoryview(buf))
        for segment, raw in zip(segments, kept, strict=True):
            segment.write_bytes(raw)
        assert fs.read_into(ino, 0, memoryview(buf)) == len(good)
        assert bytes(buf) == good
        for segment in segments:
            os.truncate(segment, 100)  # a shrinking file is a short read, not a signal
        other = fs.lookup(fs.lookup(ROOT_INO, b"folder").ino, b"chunk").ino
        with pytest.raises((Error, FsError)):
            fs.read_into(other, 0, memoryview(bytearray(2500)))
        fs.close()


def test_an_emptied_directory_is_no_new_volume_unless_asked(tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        open_disk(tmp_path)
    (tmp_path / "something").write_bytes(b"")
    with pytest.raises(FormatError):
        open_disk(tmp_path)
