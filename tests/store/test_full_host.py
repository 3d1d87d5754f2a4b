# SPDX-License-Identifier: Apache-2.0
"""A full host is told at write; what was accepted is made durable; removing gives space back."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from serdab.errors import FsError
from serdab.keys import Key
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.volume import open_volume
from serdab.vfs.union import Union

KEY = Key(b"h" * 16)
SIZE = 48 << 20
LIMITS = VolumeLimits(segment_bytes=4 << 20, reclaim_bytes=2 << 20, reclaim_s=0.0)
pytestmark = pytest.mark.root


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A host file system of its own, small."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "small", tmp_path], check=True)
    try:
        (tmp_path / "v").mkdir()
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def open_fs(host: Path, limits: VolumeLimits = LIMITS) -> Union:
    return Union(open_volume(host / "v", key=KEY, create=True, limits=limits), None)


def fill(fs: Union, name: bytes, unit: int) -> int:
    """Write until ENOSPC; return the bytes accepted."""
    inode = fs.mknod(1, name, 0o100644, 0, 0, 0)
    block = os.urandom(unit)
    done = 0
    while done < 4 * SIZE:
        try:
            done += fs.write(inode.ino, done, memoryview(block), kill_suidgid=False)
        except FsError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            return done
    raise AssertionError("the host never became full")


def used_by(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def fill_by_another(host: Path) -> None:
    with (host / "hog").open("wb", buffering=0) as hog, contextlib.suppress(OSError):
        while hog.write(bytes(65536)):
            continue


def remove(fs: Union, name: bytes) -> None:
    inode = fs.lookup(1, name)
    fs.unlink(1, name)
    fs.forget(inode.ino, 1 << 40)


@pytest.mark.parametrize("unit", [65536, 5000], ids=["whole chunks", "parts of chunks"])
@pytest.mark.parametrize("hog", [False, True], ids=["alone", "beside another that fills the host"])
def test_what_was_accepted_is_durable_and_removal_works(host: Path, unit: int, hog: bool) -> None:
    fs = open_fs(host)
    accepted = fill(fs, b"big", unit)
    assert accepted > SIZE // 2
    if hog:
        fill_by_another(host)
    fs.fsync(1, datasync=False)
    remove(fs, b"big")
    fs.fsync(1, datasync=False)
    for _ in range(4):
        fs.tick()
    assert used_by(host / "v") < SIZE // 4
    (host / "hog").unlink(missing_ok=True)
    again = fill(fs, b"again", unit)
    assert again > SIZE // 2
    fs.fsync(1, datasync=False)
    fs.close()
    fs = open_fs(host)
    assert fs.lookup(1, b"again").size == again
    fs.close()


def test_the_size_limit_of_a_volume_is_its_own_enospc(host: Path) -> None:
    fs = open_fs(host, VolumeLimits(max_bytes=8 << 20, segment_bytes=4 << 20))
    accepted = fill(fs, b"big", 65536)
    assert 6 << 20 < accepted <= 8 << 20
    remove(fs, b"big")
    assert fill(fs, b"again", 65536) > 4 << 20
    fs.close()


def test_random_overwrites_stay_within_the_promised_space(host: Path) -> None:
    fs = open_fs(host)
    inode = fs.mknod(1, b"f", 0o100644, 0, 0, 0)
    block = memoryview(os.urandom(65536))
    count = 200
    for index in range(count):
        fs.write(inode.ino, index * 65536, block, kill_suidgid=False)
    most = 0
    for index in range(3000):
        chunk = index * 7919 % count
        fs.write(inode.ino, chunk * 65536, block, kill_suidgid=False)
        most = max(most, used_by(host / "v/seg"))
    live = count * 65536
    assert most <= 1.5 * live + LIMITS.segment_bytes
    fs.close()
