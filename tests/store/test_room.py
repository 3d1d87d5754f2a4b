# SPDX-License-Identifier: Apache-2.0
"""A volume filled with anything whatever: ENOSPC at the call, what was accepted is durable, and
removing always frees, also after the server was killed (promise 8)."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from serdab.errors import FsError
from serdab.keys import Key
from serdab.sefs.limits import DEFAULT_LIMITS, VolumeLimits
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.volume import open_volume_in
from serdab.structs import replace
from serdab.testing.smallhost import SmallDir, SmallHost
from serdab.vfs.api import ROOT_INO, SetAttr
from serdab.vfs.steps import after, finish
from serdab.vfs.union import Union
from tests.property.fsops import read

KEY = Key(b"room on the host")
SOAK_SECONDS = float(os.environ.get("SERDAB_SOAK_SECONDS", "3600"))
SMALL = VolumeLimits(
    segment_bytes=512 << 10, buffer_bytes=64 << 10, dirty_bytes=512 << 10, items=2000,
    items_bytes=512 << 10, commit_bytes=128 << 10, log_bytes=512 << 10,
    log_growth_bytes=32 << 10, scattered_bytes=1 << 20, reclaim_bytes=512 << 10,
    reclaim_s=0.0,
)  # fmt: skip
"""As the default ones, for a host a sixteenth as large as those that are small for them."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    log = logging.getLogger("serdab.sefs")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


@dataclass
class Place:
    """A volume on a small host."""

    total: int
    limits: VolumeLimits = SMALL
    number: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.memory = MemoryDir("host")
        self.host = SmallHost(self.total)
        self.open()

    def open(self) -> None:
        self.memory.close()
        self.volume = open_volume_in(
            SmallDir(self.host, self.memory), key=KEY, create=True, limits=self.limits
        )
        self.fs = Union(self.volume, None)

    def kill(self) -> None:
        """The server is gone; its files stay as they are. Another one comes."""
        self.open()

    def make(self, directory: int) -> int:
        ino = self.fs.mknod(directory, b"%d" % next(self.number), 0o100600, 0, 0, 0).ino
        self.fs.forget(ino, 1)
        return ino

    def write(self, ino: int, offset: int, data: bytes) -> None:
        self.fs.write(ino, offset, memoryview(data), kill_suidgid=False)

    def remove_all(self, parent: int = ROOT_INO) -> None:
        for entry in list(self.fs.readdir(parent, 0)):
            if entry.name in (b".", b".."):
                continue
            if entry.dtype == 4:
                self.remove_all(entry.ino)
                self.fs.rmdir(parent, entry.name)
            else:
                self.fs.unlink(parent, entry.name)


Filler = Callable[[Place, int, random.Random], Iterator[None]]


def _xattrs(place: Place, directory: int, rng: random.Random) -> Iterator[None]:
    while True:
        ino = place.make(directory)
        for number in range(16):
            place.fs.setxattr(ino, b"user.%d" % number, rng.randbytes(65536), 0)
            yield


def _small_xattrs(place: Place, directory: int, rng: random.Random) -> Iterator[None]:
    while True:
        place.fs.setxattr(place.make(directory), b"user.x", rng.randbytes(3000), 0)
        yield


def _symlinks(place: Place, directory: int, rng: random.Random) -> Iterator[None]:
    while True:
        name, target = b"%d" % next(place.number), rng.randbytes(2047).hex().encode()
        place.fs.forget(place.fs.symlink(directory, name, target, 0, 0).ino, 1)
        yield


def _names(place: Place, directory: int, _: random.Random) -> Iterator[None]:
    while True:
        name = b"%0255d" % next(place.number)
        place.fs.forget(place.fs.mknod(directory, name, 0o100600, 0, 0, 0).ino, 1)
        yield


def _inline(place: Place, directory: int, rng: random.Random) -> Iterator[None]:
    while True:
        place.write(place.make(directory), 0, rng.randbytes(2048))
        yield


def _holes(place: Place, directory: int, _: random.Random) -> Iterator[None]:
    ino = place.make(directory)
    for number in itertools.count():
        place.write(ino, (number << 21) + (63 << 15) + 7, b"x")
        yield


def _parts(place: Place, directory: int, rng: random.Random) -> Iterator[None]:
    while True:
        place.write(place.make(directory), 10, rng.randbytes(5000))
        yield


def _rewrites(place: Place, directory: int, rng: random.Random) -> Iterator[None]:
    ino = place.make(directory)
    for number in range(20):
        place.write(ino, number << 16, rng.randbytes(65536))
        yield
    for number in itertools.count():
        if number % 50 == 49:
            place.write(ino, (20 + number) << 16, rng.randbytes(65536))
        place.write(ino, rng.randrange(20 << 16), rng.randbytes(20_000))
        yield


def _cuts(place: Place, directory: int, rng: random.Random) -> Iterator[None]:
    while True:
        ino = place.make(directory)
        place.write(ino, 0, rng.randbytes(100_000))
        place.fs.setattr(ino, SetAttr(size=40_000))
        place.fs.fallocate(ino, 3, 5000, 9000)
        yield


KINDS: dict[str, Filler] = {
    "attributes": _xattrs,
    "small attributes": _small_xattrs,
    "symlinks": _symlinks,
    "names": _names,
    "inline files": _inline,
    "holes": _holes,
    "parts of chunks": _parts,
    "rewrites": _rewrites,
    "cut files": _cuts,
}


def fill(place: Place, kinds: list[Filler], rng: random.Random, *, most: int = 20_000) -> int:
    """Do some of each in turns until the host has no room for one of them; return how many."""
    steps = []
    for kind in kinds:
        directory = place.fs.mkdir(ROOT_INO, b"%d" % next(place.number), 0o700, 0, 0).ino
        steps.append(kind(place, directory, rng))
    for count in range(most):
        try:
            next(steps[count // 20 % len(steps)])
        except FsError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            return count
    raise AssertionError("the host never became full")


def seen(fs: Union, parent: int = ROOT_INO) -> Iterator[tuple[object, ...]]:
    """Yield what is in a tree; of files what is between their holes."""
    for entry in list(fs.readdir(parent, 0)):
        if entry.name in (b".", b".."):
            continue
        inode = fs.getattr(entry.ino)
        names = fs.listxattr(entry.ino)
        yield entry.name, inode.mode, inode.size, [fs.getxattr(entry.ino, name) for name in names]
        if stat.S_ISDIR(inode.mode):
            yield from seen(fs, entry.ino)
        elif stat.S_ISLNK(inode.mode):
            yield (fs.readlink(entry.ino),)
        else:
            yield from _content(fs, entry.ino, inode.size)


def _content(fs: Union, ino: int, size: int) -> Iterator[tuple[object, ...]]:
    end = 0
    while end < size:
        try:
            start = fs.lseek(ino, end, os.SEEK_DATA)
        except FsError as exc:
            if exc.errno != errno.ENXIO:
                raise
            return
        end = fs.lseek(ino, start, os.SEEK_HOLE)
        yield start, read(fs, ino, start, end - start)


def expect_room_after_removal(place: Place, total: int) -> None:
    """Remove everything, by the last name; nearly everything is free then."""
    place.remove_all()
    while place.fs.chores:
        finish(after(place.fs.chores.popleft()))
    place.fs.syncfs()
    for _ in range(6):
        place.fs.tick()
    assert not list(seen(place.fs))
    reserve = place.memory.files.get("reserve")
    kept = place.host.taken(reserve) if reserve is not None else 0
    assert place.host.used - kept < total // 16 + 2 * place.volume._journal._limits.segment_bytes


def endure(place: Place, kinds: list[Filler], rng: random.Random, *, killed: bool) -> None:
    total = place.total
    try:
        first = fill(place, kinds, rng)
    except FsError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        first = 0
    place.fs.syncfs()  # whatever was accepted
    if killed:
        before = list(seen(place.fs))
        place.kill()
        assert list(seen(place.fs)) == before
    expect_room_after_removal(place, total)
    second = fill(place, kinds, rng)
    assert second > first // 2
    place.fs.syncfs()
    place.remove_all()
    place.fs.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_full_of_one_thing(kind: str) -> None:
    rng = random.Random(kind)
    endure(Place(4 << 20), [KINDS[kind]], rng, killed=list(KINDS).index(kind) % 2 == 0)


@pytest.mark.parametrize("seed", range(4))
def test_a_volume_full_of_several_things(seed: int) -> None:
    several(seed)


def several(seed: int) -> None:
    rng = random.Random(seed)
    kinds = rng.sample(list(KINDS.values()), rng.choice((1, 3)))
    endure(Place(rng.randrange(4 << 20, 9 << 20)), kinds, rng, killed=seed % 2 == 0)


@pytest.mark.soak
def test_volumes_full_of_anything() -> None:
    began = time.monotonic()
    for seed in itertools.count(100):
        several(seed)
        if time.monotonic() - began > SOAK_SECONDS:
            break


def test_many_attributes_under_the_limits_of_every_day() -> None:
    """39 MiB are no room for 128: as many are accepted as become durable."""
    rng = random.Random(1)
    endure(Place(39 << 20, replace(DEFAULT_LIMITS, reclaim_s=0.0)), [_xattrs], rng, killed=True)


def test_a_server_killed_on_a_full_host_leaves_room_for_removing() -> None:
    """What it had begun, and no commit names, is deleted before the first checkpoint needs room."""
    place = Place(6 << 20)
    ino = place.make(ROOT_INO)
    place.write(ino, 0, bytes(1 << 20))
    place.fs.syncfs()
    hog = SmallDir(place.host, MemoryDir()).open("hog", create=True)
    for number in itertools.count():
        try:
            place.write(ino, number << 16, random.Random(number).randbytes(65536))
        except FsError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            break
    place.kill()
    # Another fills what the reserve had held.
    hog.allocate(place.host.total - place.host.used)
    place.remove_all()
    place.fs.syncfs()
    for _ in range(3):
        place.fs.tick()
    assert place.host.total - place.host.used > 2 << 20


def test_random_overwrites_take_no_more_than_promised() -> None:
    """Promise 10: one and a half times what is live, a segment and what is dirty; two logs; the
    reserve."""
    place = Place(1 << 30)
    ino = place.make(ROOT_INO)
    live = 4 << 20
    place.write(ino, 0, bytes(live))
    rng = random.Random(1)
    block = rng.randbytes(65536)
    most = dict.fromkeys(("seg", "log", "reserve"), 0)
    for number in range(1500):
        length = rng.choice((100, 4096, 32768, 65536))
        place.write(ino, rng.randrange(live - length), block[:length])
        if number % 3 == 0 and number % 300 < 200:
            place.fs.syncfs()
        taken: dict[str, int] = {
            name: sum(map(place.host.taken, place.memory.dirs[name].files.values()))
            for name in ("seg", "log") if name in place.memory.dirs
        }  # fmt: skip
        taken["reserve"] = place.host.taken(place.memory.files["reserve"])
        most = {name: max(most[name], taken.get(name, 0)) for name in most}
    limits = place.limits
    assert most["seg"] <= 1.5 * live + limits.segment_bytes + limits.dirty_bytes
    longest = limits.log_bytes + limits.commit_bytes
    assert most["log"] <= 2 * (longest + longest // 2)
    # What is dirty, twice, and two checkpoints: below 4 MiB here, and held in powers of two.
    assert most["reserve"] <= 8 << 20
    assert all(most.values())
