# SPDX-License-Identifier: Apache-2.0
"""Stores into the holes of a file through a mapping, which the kernel has not written back yet.

Who copies the file meanwhile finds them, by whatever way it looks for data: as on tmpfs.
"""

from __future__ import annotations

import itertools
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fuse.conftest import Served

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MIB = 1 << 20


@pytest.fixture(params=["memory", "sealed", "host"])
def ours(request: pytest.FixtureRequest, serve: Callable[..., Served], tmpfs: Path) -> Path:
    source = tmpfs / "source"
    source.mkdir()
    return serve(request.param, "--source", os.fspath(source)).path


@contextmanager
def mapped(path: Path, size: int, stores: dict[int, bytes]) -> Iterator[int]:
    """A file of one hole, with stores that nobody has asked to be written."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(fd, size)
        assert os.stat(path).st_blocks == 0
        with mmap.mmap(fd, size) as area:
            for offset, content in stores.items():
                area[offset : offset + len(content)] = content
            yield fd
    finally:
        os.close(fd)


def data_of(fd: int) -> list[tuple[int, int]]:
    """Return the (start, end) of what is no hole."""
    found: list[tuple[int, int]] = []
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            return found
        end = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, end))


def test_a_copy_has_them(ours: Path) -> None:
    commands = {
        "cp": ["cp", "m", "cp"],
        "tar": ["sh", "-c", "tar -S -c -f - m | tar -x -f - --transform s/m/tar/"],
    }
    with mapped(ours / "m", MIB, {300_000: b"store"}):
        for name, command in commands.items():
            subprocess.run(command, cwd=ours, check=True)
            content = (ours / name).read_bytes()
            assert len(content) == MIB
            assert content[300_000:300_005] == b"store"
            assert content.count(0) == MIB - 5


STORES: list[dict[int, bytes]] = [
    {},
    {0: b"first"},
    {MIB - 1: b"l", MIB: b"f"},
    {40_960: bytes(4096), 8191: b"x", 8192: b"y", 20_000: b"z"},
    {number * 9000: b"%d" % number for number in range(1, 200)},
    {3 * MIB - 3: b"end"},
    {MIB - 3000: b"x" * (MIB + 6000)},
]


def test_lseek_tells_them_page_by_page(ours: Path, tmpfs: Path) -> None:
    for number, stores in enumerate(STORES):
        pages = []
        for path in (ours / str(number), tmpfs / str(number)):
            with mapped(path, 3 * MIB, stores) as fd:
                found = data_of(fd)
            assert all(end < start for (_, end), (start, _) in itertools.pairwise(found))
            pages.append({page for start, end in found for page in range(start, end, 4096)})
        zeros = {at for at, stored in stores.items() if not any(stored)}
        # A page of zeros has no other place than memory on tmpfs. Here it stays a hole.
        assert pages[0] == pages[1] - zeros


def test_a_file_of_a_terabyte_is_asked_of_where_it_was_read(ours: Path) -> None:
    size, at = 1 << 40, (1 << 39) + 12345
    page = at & ~4095
    with mapped(ours / "m", size, {at: b"store", 5: b"store"}) as fd:
        assert data_of(fd) == [(0, 4096), (page, page + 4096)]
        assert (ours / "m").stat().st_blocks > 0
    # Written by now: munmap(2) and close(2) see to that here as on every FUSE mount.
    os.posix_fadvise(fd := os.open(ours / "m", os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        assert os.pread(fd, 5, at) == b"store"
        assert [start <= at < end for start, end in data_of(fd)] == [False, True]
    finally:
        os.close(fd)


def test_what_was_read_and_is_a_hole_stays_one(ours: Path) -> None:
    with mapped(ours / "m", 8 * MIB, {}) as fd:
        assert os.pread(fd, 8 * MIB, 0) == bytes(8 * MIB)
        assert data_of(fd) == []
        os.pwrite(fd, b"data", 5 * MIB)
        ((start, end),) = data_of(fd)
        assert start <= 5 * MIB < end <= 5 * MIB + 128 * 1024
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert data_of(fd) == [(start, end)]
