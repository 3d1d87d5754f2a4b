# SPDX-License-Identifier: Apache-2.0
"""The power fails while something is done in steps, and other things are made durable in between.

What was removed is gone at once and for ever, whatever is left to free. A file that is cut, or
zeroed in part, is whole at each step: shorter, or zeroed up to some place, and never anything else.
"""

from __future__ import annotations

import copy
import logging
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import pytest

from serdab.sefs import content, extents
from serdab.sefs.beside import FlushBeside
from serdab.sefs.memorydir import MemoryDir
from serdab.structs import replace
from serdab.testing.crashes import CrashStates
from serdab.testing.recording import RecordingDir
from serdab.vfs.api import ROOT_INO, SetAttr
from serdab.vfs.layer import Layer
from serdab.vfs.memfs import MemFs
from serdab.vfs.steps import Steps
from serdab.vfs.union import Union
from tests.crash.actor import CHUNK, Step
from tests.crash.storm import TINY, Ground, Tally, bare_ground, expect_clean, run, storm
from tests.crash.workloads import A_FOO, BAR, FOO, A, _op, random_workload

GROUP: Final = 64 * CHUNK
SIZE: Final = 3 * GROUP + 3 * CHUNK + 100


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(extents, "STEP_GROUPS", 1)
    monkeypatch.setattr(content, "STEP_CHUNKS", 1)
    log = logging.getLogger("serdab.sefs")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


def _large(path: tuple[bytes, ...], byte: int = 70) -> list[Step]:
    return [_op("write", path, offset=n * GROUP, size=CHUNK, byte=byte + n) for n in range(3)]


SETUP: list[Step] = [
    _op("mkdir", A),
    _op("create", FOO),
    *_large(FOO),
    _op("create", A_FOO),
    "syncfs",
    *_large(A_FOO, 80),
]

WORKLOADS: dict[str, list[Step]] = {
    "unlinked": [_op("unlink", FOO), "chore", "fsync", _op("create", BAR), "chore", "fsync"],
    "renamed over": [_op("rename", A_FOO, FOO), "fsync", "chore", "tick", "chore", "fsync"],
    "two at once": [
        _op("unlink", FOO), _op("unlink", A_FOO), "chore", "chore", "fsync", "chore", "reopen",
    ],
    "held": [
        ("hold", FOO), _op("unlink", FOO), "fsync", ("held write", FOO, 5, 9000, 71),
        ("let go", FOO), "chore", "fsync", _op("create", FOO), _op("write", FOO, size=100), "fsync",
    ],
    "left to the end": [_op("unlink", FOO), "fsync", _op("write", A_FOO, size=9000), "fsync"],
}  # fmt: skip


@pytest.mark.parametrize("name", WORKLOADS)
def test_what_was_removed_is_freed_though_the_power_fails_in_between(name: str) -> None:
    tally = Tally()
    storm(run(bare_ground(SETUP), WORKLOADS[name]), tally, per_point=1, look_every=7)
    assert tally.states > 10


@pytest.mark.parametrize("seed", range(3))
def test_changes_during_a_flush_are_whole_or_not_there(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """What comes while the host flushes is in the commit that follows, or in the next one."""
    ground, tally = bare_ground(SETUP[:2]), Tally()
    ground.limits = replace(TINY, beside_bytes=1)
    begin, begun = FlushBeside.begin, 0

    def counted(beside: FlushBeside, flushers: Sequence[Callable[[], None]]) -> None:
        nonlocal begun
        begun += 1
        begin(beside, flushers)

    monkeypatch.setattr(FlushBeside, "begin", counted)
    operations = [step for step in random_workload(seed, 26) if isinstance(step, tuple)]
    steps: list[Step] = []
    for number, operation in enumerate(operations):
        if number % 6 == 0:
            steps += [_op("write", FOO, size=9000 + number, byte=number), "fsync begins"]
        steps.append(operation)
        if number % 6 == 4:
            steps.append("fsync ends")
    storm(run(ground, steps), tally, per_point=1, seed=seed)
    assert begun > 1
    assert tally.states > 50


def _original() -> bytes:
    return b"".join(bytes([1 + n % 250]) * CHUNK for n in range(SIZE // CHUNK + 1))[:SIZE]


def _make(fs: Union) -> None:
    ino = fs.mknod(ROOT_INO, b"file", stat.S_IFREG | 0o644, 0, 0, 0).ino
    fs.write(ino, 0, memoryview(_original()), kill_suidgid=False)


def _alone() -> Ground:
    ground = bare_ground()
    fs = ground.open(ground.host)
    _make(fs)
    fs.close()
    return ground


def _below() -> Ground:
    """The file is the lower layer's, but for two chunks."""
    below = _alone()

    def lower() -> Layer | None:
        upper: Layer = below.open(copy.deepcopy(below.host))._upper
        return upper

    ground = Ground(MemoryDir("host"), lower, MemFs())
    fs = ground.open(ground.host)
    ino = fs.lookup(ROOT_INO, b"file").ino
    for offset in (5 * CHUNK, 2 * GROUP):
        part = memoryview(_original()[offset : offset + CHUNK])
        fs.write(ino, offset, part, kill_suidgid=False)
    fs.close()
    return ground


def _content(fs: Union) -> bytes:
    inode = fs.lookup(ROOT_INO, b"file")
    fs.forget(inode.ino, 1)
    with memoryview(bytearray(inode.size)) as view:
        assert fs.read_into(inode.ino, 0, view) == inode.size
        return bytes(view)


def _states(
    ground: Ground, begin: Callable[[Union, int], Steps[object]], every: int
) -> Iterator[tuple[Union, bytes]]:
    """Do all steps with a sync and another file's write after each; yield what crashes leave."""
    host = RecordingDir.over(copy.deepcopy(ground.host))
    fs = ground.open(host)
    ino = fs.lookup(ROOT_INO, b"file").ino
    other = fs.mknod(ROOT_INO, b"other", stat.S_IFREG | 0o644, 0, 0, 0).ino
    steps, count = begin(fs, ino), 0
    for _ in steps:
        count += 1
        fs.write(other, 0, memoryview(b"%05d" % count), kill_suidgid=False)
        if count % 3 == 0:
            fs.syncfs()
        elif count % 3 == 1:
            fs.tick()
    assert count
    fs.syncfs()
    for number, state in enumerate(CrashStates(host.trace, seed=1, per_point=1)):
        if number % every:
            continue
        again = ground.open(state.host)
        found = _content(again)
        if number % (7 * every) == 0:
            expect_clean(again, state)
        again.syncfs()
        assert _content(again) == found
        again.close()
        again = ground.open(state.host)
        assert _content(again) == found
        yield again, found
        again.close()


BOTH = pytest.mark.parametrize("make", [_alone, _below], ids=["alone", "over a layer"])


@BOTH
@pytest.mark.parametrize("size", [0, GROUP + 5])
def test_a_file_that_is_cut_is_a_shorter_one_and_grows_by_zeros(
    make: Callable[[], Ground], size: int
) -> None:
    original, sizes = _original(), set()
    ground = make()
    for fs, found in _states(ground, lambda fs, ino: fs.setattr_steps(ino, SetAttr(size=size)), 2):
        assert size <= len(found) <= SIZE
        assert found == original[: len(found)]
        sizes.add(len(found))
        fs.setattr(fs.lookup(ROOT_INO, b"file").ino, SetAttr(size=SIZE))
        assert _content(fs) == found + bytes(SIZE - len(found))
    assert len(sizes) > 1


@BOTH
@pytest.mark.parametrize("mode", [3, 16])
def test_a_range_that_is_zeroed_is_so_up_to_some_place(
    make: Callable[[], Ground], mode: int
) -> None:
    original, places = _original(), set()
    start, length = CHUNK - 7, 9 * CHUNK
    ground = make()
    for _, found in _states(
        ground, lambda fs, ino: fs.fallocate_steps(ino, mode, start, length), 17
    ):
        zeros = found[start:].lstrip(b"\0")
        place = len(found) - len(zeros)
        assert found == original[:start] + bytes(place - start) + original[place:]
        assert place <= start + length
        places.add(place)
    assert len(places) > 4
