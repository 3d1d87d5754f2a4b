# SPDX-License-Identifier: Apache-2.0
"""A volume of many segments is read with few descriptors, again and again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from serdab.keys import Key
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.volume import open_volume
from serdab.vfs.union import Union

KEY = Key(b"m" * 16)
CHUNK = 4096
SEGMENTS = 150


@pytest.fixture
def host() -> Iterator[Path]:
    """A directory in memory: so many files are slow to make durable elsewhere."""
    with TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


def test_segments_that_were_read_are_closed_again(host: Path) -> None:
    limits = VolumeLimits(segment_bytes=2 * CHUNK, buffer_bytes=CHUNK)

    def open_fs() -> Union:
        volume = open_volume(host, key=KEY, create=True, chunk_size=CHUNK, limits=limits)
        return Union(volume, None)

    fs = open_fs()
    ino = fs.mknod(1, b"file", 0o100644, 0, 0, 0).ino
    for number in range(SEGMENTS):
        part = number.to_bytes(2, "big") * (CHUNK // 2)
        fs.write(ino, number * CHUNK, memoryview(part), kill_suidgid=False)
    fs.close()
    assert len(os.listdir(host / "seg")) >= SEGMENTS
    fs = open_fs()
    try:
        before = len(os.listdir("/proc/self/fd"))
        for number in [*range(SEGMENTS)] * 3:
            buf = memoryview(bytearray(16))
            assert fs.read_into(ino, number * CHUNK + 8, buf) == 16
            assert bytes(buf) == number.to_bytes(2, "big") * 8
        assert len(os.listdir("/proc/self/fd")) <= before + 100
    finally:
        fs.close()
    assert len(os.listdir("/proc/self/fd")) < before
