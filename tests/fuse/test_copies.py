# SPDX-License-Identifier: Apache-2.0
"""A copy of a file shares what it holds with the original, and nobody can tell by its content."""

from __future__ import annotations

import errno
import mmap
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from serdab.errors import FsError
from serdab.keys import Key
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.references import MOST_OWNERS
from serdab.sefs.volume import CHUNK_SIZE, Volume, open_volume_in
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union
from tests.fuse.conftest import Served

KEY = Key(b"copies by number")
SIZE = 20 * CHUNK_SIZE + 1234


@pytest.mark.fuse
@pytest.mark.root
class TestOnAMount:
    @pytest.fixture
    def sealed(self, serve: Callable[..., Served]) -> Path:
        return serve("sealed").path

    def test_copies_that_are_written_to_and_cut_are_those_of_another_file_system(
        self, sealed: Path, tmp_path: Path
    ) -> None:
        rng = random.Random(5)
        names = ["a", "b", "c"]
        places = (sealed, tmp_path)
        for name in names:
            for place in places:
                (place / name).write_bytes(name.encode() * (SIZE if name == "a" else 0))
        for _ in range(150):
            first, second = rng.sample(names, 2)
            at = rng.randrange(22) * CHUNK_SIZE + rng.choice((0, 0, 0, 77))
            length = rng.choice((SIZE, 3 * CHUNK_SIZE, 5000))
            data = rng.randbytes(rng.choice((10, CHUNK_SIZE, 70_000)))
            act = rng.choice((copied, copied, overwritten, cut, mapped))
            results = [act(place, first, second, at, length, data) for place in places]
            assert results[0] == results[1], act.__name__
        for name in names:
            assert (sealed / name).read_bytes() == (tmp_path / name).read_bytes()

    def test_cp_writes_nothing_of_a_large_file(self, sealed: Path) -> None:
        content = os.urandom(64 << 20)
        (sealed / "large").write_bytes(content)
        os.sync()
        before = free(sealed)
        for number in range(5):
            subprocess.run(["cp", sealed / "large", sealed / f"copy {number}"], check=True)
        fd = os.open(sealed, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        assert before - free(sealed) < 8 << 20
        assert (sealed / "copy 4").read_bytes() == content
        assert (sealed / "copy 4").stat().st_blocks == (sealed / "large").stat().st_blocks


def free(place: Path) -> int:
    status = os.statvfs(place)
    return status.f_bfree * status.f_frsize


def copied(place: Path, first: str, second: str, at: int, length: int, data: bytes) -> int:
    into = (len(data) % 3) * CHUNK_SIZE + at % CHUNK_SIZE
    with open(place / first, "rb") as source, open(place / second, "r+b") as target:
        done = 0
        while done < length and (
            count := os.copy_file_range(
                source.fileno(), target.fileno(), length - done, at + done, into + done
            )
        ):
            done += count
    return done


def overwritten(place: Path, first: str, _second: str, at: int, _length: int, data: bytes) -> int:
    with open(place / first, "r+b") as file:
        return os.pwrite(file.fileno(), data, at)


def cut(place: Path, first: str, _second: str, at: int, _length: int, _data: bytes) -> int:
    os.truncate(place / first, at)
    return (place / first).stat().st_size


def mapped(place: Path, first: str, second: str, at: int, length: int, data: bytes) -> int:
    """Store through a mapping, and copy while it is there."""
    with open(place / first, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= at:
            return size
        with mmap.mmap(file.fileno(), 0) as memory:
            part = data[: size - at]
            memory[at : at + len(part)] = part
            return copied(place, first, second, at - at % CHUNK_SIZE, length, data)


def volume_with(max_bytes: int) -> tuple[Union, Volume]:
    limits = VolumeLimits(max_bytes=max_bytes)
    volume = open_volume_in(MemoryDir("host"), key=KEY, create=True, limits=limits)
    return Union(volume, None), volume


def new_file(fs: Union, name: bytes) -> int:
    return fs.mknod(ROOT_INO, name, 0o100600, 0, 0, 0).ino


def whole_copy(fs: Union, ino: int, into: int) -> None:
    done = 0
    while count := fs.copy_file_range(ino, done, into, done, 1 << 40):
        done += count


def body(fs: Union, ino: int) -> bytes:
    buf = bytearray(fs.getattr(ino).size)
    fs.read_into(ino, 0, memoryview(buf))
    return bytes(buf)


def rewrite(fs: Union, ino: int, size: int) -> None:
    for at in range(0, size, 1 << 20):
        fs.write(ino, at, memoryview(os.urandom(1 << 20)), kill_suidgid=False)


def test_a_copy_fits_where_its_content_would_not_and_says_so_when_it_needs_room() -> None:
    size = 4 << 20
    fs, _ = volume_with(6 << 20)
    ino, into = new_file(fs, b"a"), new_file(fs, b"b")
    fs.write(ino, 0, memoryview(os.urandom(size)), kill_suidgid=False)
    whole_copy(fs, ino, into)
    assert body(fs, into) == body(fs, ino)
    with pytest.raises(FsError) as refused:
        rewrite(fs, into, size)
    assert refused.value.errno == errno.ENOSPC
    fs.unlink(ROOT_INO, b"a")
    fs.forget(ino, 1)
    # What was shared is the copy's own now.
    rewrite(fs, into, size)
    fs.close()


def test_a_record_has_so_many_owners_and_then_there_is_another() -> None:
    fs, volume = volume_with(0)
    ino = new_file(fs, b"a")
    fs.write(ino, 0, memoryview(os.urandom(2 * CHUNK_SIZE)), kill_suidgid=False)
    copies = [new_file(fs, b"%d" % number) for number in range(MOST_OWNERS + 5)]
    for into in copies:
        whole_copy(fs, ino, into)
    assert max(volume.shared_records().values()) == MOST_OWNERS
    assert {body(fs, into) for into in copies} == {body(fs, ino)}
    fs.close()
