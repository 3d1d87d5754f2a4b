# SPDX-License-Identifier: Apache-2.0
"""A volume in memory with a size is full at a write, never at a sync; removing makes room."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from serdab.errors import FsError
from serdab.keys import Key
from serdab.sefs.boundeddir import BoundedDir, limits_for, whole_size
from serdab.sefs.volume import Volume, bounded_volume, open_volume_in
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union

SIZE = 8 << 20
PIECE = os.urandom(128 << 10)


def _fill(fs: Union, name: bytes) -> int:
    """Write a file until it is full; return how much was accepted."""
    ino = fs.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, 0, 0, 0).ino
    done, code = 0, 0
    while not code:
        try:
            done += fs.write(ino, done, memoryview(PIECE), kill_suidgid=False)
            fs.tick()
        except FsError as exc:
            code = exc.errno or 0
    assert code == errno.ENOSPC
    fs.fsync(ino, datasync=False)
    fs.forget(ino, 1)
    return done


def test_it_is_full_at_its_size_and_removing_makes_room() -> None:
    directory = BoundedDir(whole_size(SIZE))
    volume: Volume = open_volume_in(
        directory, key=Key.generate(), create=True, limits=limits_for(SIZE)
    )
    fs = Union(volume, None)
    for _ in range(4):
        assert SIZE * 3 // 4 <= _fill(fs, b"big") <= SIZE
        total, free = directory.free_bytes()
        assert 0 <= free <= total == whole_size(SIZE)
        fs.unlink(ROOT_INO, b"big")
        fs.syncfs()
    fs.close()


def _make_small(fs: Union, first: int, last: int) -> None:
    for number in range(first, last):
        ino = fs.mknod(ROOT_INO, b"%d" % number, stat.S_IFREG | 0o644, 0, 0, 0).ino
        fs.write(ino, 0, memoryview(PIECE)[:4000], kill_suidgid=False)
        fs.forget(ino, 1)


def test_many_small_files_are_counted_too() -> None:
    fs = Union(bounded_volume(None, SIZE), None)
    most = SIZE // 4000
    _make_small(fs, 0, most // 2)
    with pytest.raises(FsError) as full:
        _make_small(fs, most // 2, most + 1)
    assert full.value.errno == errno.ENOSPC
    fs.syncfs()
    fs.unlink(ROOT_INO, b"0")
    fs.close()


def test_what_is_set_aside_takes_room_until_it_is_given_back() -> None:
    directory = BoundedDir(1000)
    file, below = directory.open("a", create=True), directory.subdir("b", create=True)
    file.allocate(700)
    assert below.free_bytes() == (1000, 300)
    other = below.open("c", create=True)
    other.pwrite(bytes(300), 0)
    with pytest.raises(OSError, match="No space left") as full:
        other.pwrite(b"x", 300)
    assert full.value.errno == errno.ENOSPC
    assert other.size() == 300
    file.truncate(0)
    other.pwrite(b"x", 300)
    below.unlink("c")
    assert directory.free_bytes() == (1000, 1000)
