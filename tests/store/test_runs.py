# SPDX-License-Identifier: Apache-2.0
"""Whole chunks are sealed and read in runs, across groups, segments, buffers and old records."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from serdab.keys import Key
from serdab.sefs.keyspace import GROUP
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.volume import Volume, open_volume
from serdab.vfs.union import Union

KEY = Key(b"r" * 16)
CHUNK = 4096
LIMITS = {
    "one record at a time": VolumeLimits(buffer_bytes=1),
    "a few in the buffer": VolumeLimits(buffer_bytes=5 * CHUNK),
    "a few in a segment": VolumeLimits(segment_bytes=30 * CHUNK, buffer_bytes=64 * CHUNK),
    "as always": VolumeLimits(),
}


def open_at(path: Path, limits: VolumeLimits) -> tuple[Union, Volume]:
    volume = open_volume(path, key=KEY, create=True, chunk_size=CHUNK, limits=limits)
    return Union(volume, None), volume


def read(fs: Union, ino: int, offset: int, size: int) -> bytes:
    buf = bytearray(size)
    return bytes(buf[: fs.read_into(ino, offset, memoryview(buf))])


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS.keys())
def test_runs_read_as_they_were_written_and_are_freed(tmp_path: Path, limits: VolumeLimits) -> None:
    chosen = random.Random(5)
    fs, volume = open_at(tmp_path, limits)
    ino = fs.mknod(1, b"f", 0o100644, 0, 0, 0).ino
    most = 3 * GROUP * CHUNK
    content = bytearray()
    for step in range(40):
        offset = chosen.randrange(most)
        if step % 4:
            offset -= offset % CHUNK
        # Beyond the end at first: a run whose group has nothing yet before it.
        block = chosen.randbytes(chosen.randrange(1, 90 * CHUNK))
        if step % 5 == 4:
            length = chosen.randrange(1, 20 * CHUNK)
            fs.fallocate(ino, 3, offset, length)  # a hole
            gone = max(0, min(offset + length, len(content)) - offset)
            content[offset : offset + gone] = bytes(gone)
        else:
            assert fs.write(ino, offset, memoryview(block), kill_suidgid=False) == len(block)
            content.extend(bytes(max(0, offset + len(block) - len(content))))
            content[offset : offset + len(block)] = block
        if step % 10 == 9:
            fs.fsync(ino, datasync=False)
        start = chosen.randrange(len(content))
        size = chosen.randrange(1, 100 * CHUNK)
        assert read(fs, ino, start, size) == content[start : start + size]
        taken = volume.taken_bytes(fs.getattr(ino))
    fs.close()

    fs, volume = open_at(tmp_path, limits)
    ino = fs.lookup(1, b"f").ino
    assert volume.taken_bytes(fs.getattr(ino)) == taken
    assert read(fs, ino, 0, len(content) + 1) == content
    fs.unlink(1, b"f")
    fs.forget(ino, 1)
    volume.checkpoint()
    # What is left is the page of the root directory: every record was counted once.
    assert 0 < volume.state.live_bytes < CHUNK
    fs.close()
