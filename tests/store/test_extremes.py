# SPDX-License-Identifier: Apache-2.0
"""Sizes, offsets, times at the ends of what programs may ask for: an errno, or a quick answer."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

import pytest

from serdab.errors import FsError
from serdab.keys import Key
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.volume import CHUNK_SIZE, open_volume_in
from serdab.vfs.api import ROOT_INO, SetAttr
from serdab.vfs.union import Union
from tests.harness.hangs import no_hang

KEY = Key(b"extremes extreme")
LARGEST = (1 << 63) - 1
END = CHUNK_SIZE << 32
"""Where the content of any file ends."""


@pytest.fixture(autouse=True)
def _soon() -> Iterator[None]:
    with no_hang("the time it takes grows with the size of a hole"):
        yield


@pytest.fixture
def host() -> MemoryDir:
    return MemoryDir()


def mounted(host: MemoryDir) -> Union:
    return Union(open_volume_in(host, key=KEY, create=True), None)


def made(fs: Union, name: bytes = b"file") -> int:
    return fs.mknod(ROOT_INO, name, stat.S_IFREG | 0o600, 0, 0, 0).ino


@pytest.mark.parametrize("size", [1 << 40, END, END + 1, 1 << 62, LARGEST])
def test_a_hole_costs_nothing(host: MemoryDir, size: int) -> None:
    fs = mounted(host)
    ino = made(fs)
    fs.write(ino, 100, memoryview(b"content"), kill_suidgid=False)
    assert fs.setattr(ino, SetAttr(size=size)).size == size
    buf = bytearray(10)
    assert fs.read_into(ino, size - 10, memoryview(buf)) == 10
    assert buf == bytes(10)
    assert fs.lseek(ino, 0, os.SEEK_DATA) == 0
    assert fs.lseek(ino, 1000, os.SEEK_HOLE) < size or size <= 1 << 20
    fs.syncfs()
    with pytest.raises(FsError) as caught:
        fs.lseek(ino, 1 << 20, os.SEEK_DATA)
    assert caught.value.errno == errno.ENXIO
    fs.fallocate(ino, 3, 0, size)
    fs.fallocate(ino, 3, 5, size - 7)
    assert fs.read_into(ino, 100, memoryview(buf)) == 10
    assert buf == bytes(10)
    assert fs.setattr(ino, SetAttr(size=size - 3)).size == size - 3
    fs.syncfs()
    fs.close()
    fs = mounted(host)
    assert fs.getattr(ino).size == size - 3
    assert fs.setattr(ino, SetAttr(size=5)).size == 5
    fs.close()


@pytest.mark.parametrize("offset", [1 << 56, 1 << 60, LARGEST - 10])
def test_content_too_far_out_is_refused(host: MemoryDir, offset: int) -> None:
    fs = mounted(host)
    ino = made(fs)
    with pytest.raises(FsError) as caught:
        fs.write(ino, offset, memoryview(b"content"), kill_suidgid=False)
    assert caught.value.errno == errno.EFBIG
    fs.write(ino, END - 7, memoryview(b"content"), kill_suidgid=False)
    fs.syncfs()
    fs.close()
    fs = mounted(host)
    buf = bytearray(7)
    assert fs.read_into(ino, END - 7, memoryview(buf)) == 7
    assert buf == b"content"
    assert fs.lseek(ino, 0, os.SEEK_DATA) == END - CHUNK_SIZE
    fs.close()


@pytest.mark.parametrize("when", [1 << 63, (1 << 64) * 10**9, -(1 << 63) - 1, LARGEST])
def test_times_beyond_the_format_are_clamped(host: MemoryDir, when: int) -> None:
    fs = mounted(host)
    ino = made(fs)
    fs.setattr(ino, SetAttr(atime_ns=when, mtime_ns=when, ctime_ns=when))
    fs.syncfs()
    fs.close()
    fs = mounted(host)
    expected = max(-(1 << 63), min(when, LARGEST))
    found = fs.getattr(ino)
    assert (found.atime_ns, found.mtime_ns, found.ctime_ns) == (expected,) * 3
    fs.close()
