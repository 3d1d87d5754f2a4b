# SPDX-License-Identifier: Apache-2.0
"""What is changed and not durable is bounded in bytes, and counted as what it really takes: so the
server's memory is bounded whatever a program does."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serdab.keys import Key
from serdab.sefs.limits import DEFAULT_LIMITS, VolumeLimits
from serdab.sefs.volume import Volume, open_volume
from serdab.structs import replace
from serdab.vfs.api import ROOT_INO, SetAttr
from serdab.vfs.union import Union

KEY = Key(b"memory of a host")
LARGEST = 200 << 20
UNBOUNDED = replace(
    DEFAULT_LIMITS, items=1 << 40, items_bytes=1 << 40, dirty_bytes=1 << 40, log_bytes=1 << 40,
    segment_bytes=1 << 30,
)  # fmt: skip
TIGHT = replace(DEFAULT_LIMITS, items_bytes=1 << 20, dirty_bytes=1 << 20)
SLACK = 1 << 20
"""What one call may add: a write of 1 MiB, its records and their owners."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    log = logging.getLogger("serdab.sefs")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


def made(fs: Union, name: bytes) -> int:
    ino = fs.mknod(ROOT_INO, name, 0o100600, 0, 0, 0).ino
    fs.forget(ino, 1)
    return ino


def _write(fs: Union, ino: int, offset: int, data: bytes) -> None:
    fs.write(ino, offset, memoryview(data), kill_suidgid=False)


def attributes(fs: Union, count: int, first: int = 0) -> Iterator[None]:
    ino = 0
    for number in range(first, first + count // 8):
        if number % 16 == 0 or not ino:
            ino = made(fs, b"%d" % number)
        fs.setxattr(ino, b"user.%d" % number, os.urandom(65536), 0)
        yield


def names(fs: Union, count: int, first: int = 0) -> Iterator[None]:
    for number in range(first, first + count):
        made(fs, b"%0255d" % number)
        yield


def links(fs: Union, count: int, first: int = 0) -> Iterator[None]:
    for number in range(first, first + count):
        fs.forget(fs.symlink(ROOT_INO, b"%d" % number, b"t" * 4000, 0, 0).ino, 1)
        yield


def small_files(fs: Union, count: int, first: int = 0) -> Iterator[None]:
    for number in range(first, first + count):
        _write(fs, made(fs, b"%d" % number), 0, b"x")
        yield


def parts(fs: Union, count: int, first: int = 0) -> Iterator[None]:
    ino = made(fs, b"file%d" % first)
    for number in range(first, first + count):
        _write(fs, ino, (number << 15) + 5, b"x")
        yield


def far_apart(fs: Union, count: int, first: int = 0) -> Iterator[None]:
    ino = made(fs, b"file%d" % first)
    for number in range(first, first + count):
        _write(fs, ino, (number << 21) + (63 << 15), b"x")
        yield


def chunks(fs: Union, count: int, first: int = 0) -> Iterator[None]:
    ino = made(fs, b"file%d" % first)
    for number in range(first, first + count // 16):
        _write(fs, ino, number << 18, bytes(8 << 15))
        yield


def punched(fs: Union, count: int, first: int = 0) -> Iterator[None]:
    ino = made(fs, b"file%d" % first)
    for number in range(first, first + count):
        _write(fs, ino, (number << 15) + 5, b"x")
        fs.fallocate(ino, 3, number << 15, 1 << 15)
        yield


def truncated(fs: Union, count: int, first: int = 0) -> Iterator[None]:
    inodes = [made(fs, b"%d" % number) for number in range(first, first + 64)]
    fs.syncfs()
    for number in range(first, first + count):
        ino = inodes[number % 64]
        _write(fs, ino, number * 10, b"x")
        fs.setattr(ino, SetAttr(size=number * 7))
        yield


def gone_at_once(fs: Union, count: int, first: int = 0) -> Iterator[None]:
    for number in range(first, first + count):
        _write(fs, made(fs, b"%d" % number), 0, b"x")
        fs.unlink(ROOT_INO, b"%d" % number)
        yield


KINDS: dict[str, Callable[..., Iterator[None]]] = {
    each.__name__: each
    for each in (attributes, names, links, small_files, parts, far_apart, chunks, punched,
                 truncated, gone_at_once)
}  # fmt: skip


def opened(path: Path, limits: VolumeLimits) -> tuple[Volume, Union]:
    path.mkdir(exist_ok=True)
    volume = open_volume(path, key=KEY, create=True, limits=limits)
    return volume, Union(volume, None)


def counted(volume: Volume) -> int:
    """Return the bytes that what is changed is said to take."""
    journal = volume._journal
    return journal._changes.held_bytes() + journal.content.dirty_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_changed_is_counted_as_what_it_takes(kind: str, tmp_path: Path) -> None:
    volume, fs = opened(tmp_path / "v", UNBOUNDED)
    fs.syncfs()
    for _ in KINDS[kind](fs, 16):  # what is made once
        pass
    fs.syncfs()
    gc.collect()
    tracemalloc.start()
    try:
        before, told = tracemalloc.get_traced_memory()[0], counted(volume)
        for _ in KINDS[kind](fs, 2000 if kind != "attributes" else 400, 100):
            pass
        gc.collect()
        taken, told = tracemalloc.get_traced_memory()[0] - before, counted(volume) - told
    finally:
        tracemalloc.stop()
    assert taken < 1.2 * told + SLACK // 2, f"{taken} bytes are taken, {told} are told"
    fs.close()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_changed_stays_within_its_limit(kind: str, tmp_path: Path) -> None:
    volume, fs = opened(tmp_path / "v", TIGHT)
    most = 0
    for _ in KINDS[kind](fs, 3000):
        most = max(most, counted(volume))
    assert most < TIGHT.items_bytes + TIGHT.dirty_bytes + SLACK
    fs.close()


def fill_memory(path: Path, kind: str, count: int) -> int:
    """Do as much of something as a program may; return the most memory that it took."""
    _, fs = opened(path, DEFAULT_LIMITS)
    for _ in KINDS[kind](fs, count):
        pass
    fs.syncfs()
    fs.close()
    # Not getrusage(2): what the parent had at the fork counts there, whatever is executed then.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


_COUNTS = {"attributes": 20_000, "chunks": 100_000}


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_stays_below_200_mib(kind: str, tmp_path: Path) -> None:
    code = (
        "import logging, pathlib; logging.disable()\n"
        "from tests.store.test_memory import fill_memory\n"
        f"print(fill_memory(pathlib.Path({str(tmp_path / 'v')!r}), {kind!r}, "
        f"{_COUNTS.get(kind, 150_000)}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert int(done.stdout) < LARGEST
