# SPDX-License-Identifier: Apache-2.0
"""Files with holes: stat(2) says what they take, so programs that copy them keep the holes."""

from __future__ import annotations

import copy
import errno
import os
import random
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from serdab.errors import FsError
from serdab.keys import Key
from serdab.sefs.image import open_image
from serdab.sefs.imagebuild import build_image
from serdab.sefs.memorydir import MemoryDir, MemoryFile
from serdab.sefs.volume import CHUNK_SIZE, open_volume_in
from serdab.vfs.api import ROOT_INO, SetAttr
from serdab.vfs.union import Union
from tests.fuse.conftest import Served

KEY = Key(b"sparse as can be")
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


@pytest.fixture
def sealed(serve: Callable[..., Served]) -> Path:
    return serve("sealed").path


def taken(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.fuse
@pytest.mark.root
class TestOnAMount:
    def test_cp_keeps_the_holes(self, sealed: Path) -> None:
        content = os.urandom(70_000)
        with open(sealed / "sparse", "wb") as file:
            file.truncate(1 << 30)
            file.seek(500 << 20)
            file.write(content)
        assert len(content) <= taken(sealed / "sparse") <= len(content) + 2 * CHUNK_SIZE
        subprocess.run(["cp", sealed / "sparse", sealed / "copy"], check=True)
        assert taken(sealed / "copy") == taken(sealed / "sparse")
        assert (sealed / "copy").stat().st_size == 1 << 30
        with open(sealed / "copy", "rb") as file:
            file.seek(500 << 20)
            assert file.read(len(content)) == content

    def test_what_is_whole_takes_its_size(self, sealed: Path) -> None:
        whole = sealed / "whole"
        whole.write_bytes(os.urandom(1_000_000))
        assert whole.stat().st_blocks == (1_000_000 + 511) // 512
        with open(whole, "r+b") as file:
            file.truncate(2_000_000)
            assert 1_000_000 <= taken(whole) <= 1_000_000 + CHUNK_SIZE
            file.seek(1_000_000)
            file.write(os.urandom(1_000_000))
            file.flush()
            assert whole.stat().st_blocks == (2_000_000 + 511) // 512
            file.truncate(0)
            assert taken(whole) == 0
            file.truncate(100)

    def test_what_cannot_be_reserved_is_refused_and_written_by_the_library(
        self, sealed: Path, mem: Path
    ) -> None:
        for path, size in ((sealed / "f", 4096), (mem / "f", 1 << 40), (mem / "g", 64 << 20)):
            path.write_bytes(b"x")
            before = path.stat()
            for options in ([], ["--keep-size"]):
                done = subprocess.run(
                    ["fallocate", *options, "-l", str(size), path],
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                if size == 64 << 20:
                    assert done.returncode == 0
                    continue
                assert "supported" in done.stderr
                status = path.stat()
                assert (status.st_size, status.st_blocks) == (1, before.st_blocks)
        assert 64 << 20 <= taken(mem / "g") <= (64 << 20) + 512
        os.truncate(mem / "g", 1)
        os.truncate(mem / "g", 5 << 20)
        assert taken(mem / "g") <= 128 << 10

    def test_punching_gives_back_and_fallocate_reserves(self, sealed: Path) -> None:
        path = sealed / "file"
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            os.posix_fallocate(fd, 0, 4 << 20)
            assert taken(path) == 4 << 20  # as on other file systems, zeros or not
            os.pwrite(fd, os.urandom(4 << 20), 0)
            subprocess.run(["fallocate", "-p", "-o", "1M", "-l", "2M", path], check=True)
            assert taken(path) == 2 << 20
        finally:
            os.close(fd)


def test_what_was_small_when_it_was_saved_is_sparse_when_it_grows() -> None:
    fs = Union(open_volume_in(MemoryDir(), key=KEY, create=True), None)
    ino = fs.mknod(ROOT_INO, b"file", stat.S_IFREG | 0o600, 0, 0, 0).ino
    fs.write(ino, 0, memoryview(b"hello"), kill_suidgid=False)
    fs.syncfs()
    assert fs.setattr(ino, SetAttr(size=1 << 30)).blocks * 512 <= CHUNK_SIZE
    fs.close()


def written_until_full(fs: Union, ino: int, size: int) -> int:
    """Append until ENOSPC; return the size by then."""
    while size < 1 << 30:
        try:
            size += fs.write(ino, size, memoryview(os.urandom(1 << 20)), kill_suidgid=False)
        except FsError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            return size
    raise AssertionError("the host never became full")


def test_of_a_write_that_failed_nothing_shows_when_the_file_grows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fs = Union(open_volume_in(MemoryDir(), key=KEY, create=True), None)
    ino = fs.mknod(ROOT_INO, b"file", stat.S_IFREG | 0o600, 0, 0, 0).ino
    fs.write(ino, 0, memoryview(b"x" * 70_000), kill_suidgid=False)
    fs.syncfs()
    real = MemoryFile.pwrite

    def full(file: MemoryFile, raw: memoryview, offset: int) -> None:
        if offset + len(raw) > len(file.content):
            raise OSError(errno.ENOSPC, "full")
        real(file, raw, offset)

    size = 70_000
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFile, "pwrite", full)
        size = written_until_full(fs, ino, size)
    assert fs.getattr(ino).size == size
    inode = fs.setattr(ino, SetAttr(size=size + (4 << 20)))
    assert inode.blocks == (expected(fs, ino) + 511) // 512
    behind = bytearray(4 << 20)
    assert fs.read_into(ino, size, memoryview(behind)) == len(behind)
    assert behind == bytes(len(behind))
    fs.close()


def test_a_file_of_the_image_that_was_grown_ends_where_it_ends(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    sizes = {"large": 1_000_000, "small": 100}
    for name, size in sizes.items():
        (source / name).write_bytes(random.Random(size).randbytes(size))
    built = build_image(source, tmp_path / "image", key=KEY)
    lower = open_image(tmp_path / "image", key=KEY, expected_mac=built.root_mac)
    fs = Union(open_volume_in(MemoryDir(), key=KEY, lower=lower, create=True), lower)
    for name, size in sizes.items():
        ino = fs.lookup(ROOT_INO, name.encode()).ino
        fs.setattr(ino, SetAttr(size=10 << 20))
        for offset in (size, size + 1, size + CHUNK_SIZE):
            with pytest.raises(FsError, match="No such device or address"):
                fs.lseek(ino, offset, os.SEEK_DATA)
            assert fs.lseek(ino, offset, os.SEEK_HOLE) == offset
        assert size <= fs.lseek(ino, 0, os.SEEK_HOLE) <= size + CHUNK_SIZE
    fs.close()


def expected(fs: Union, ino: int) -> int:
    """Count the chunks that SEEK_DATA and SEEK_HOLE find."""
    size = fs.getattr(ino).size
    chunks: set[int] = set()
    position = 0
    while position < size:
        try:
            start = fs.lseek(ino, position, os.SEEK_DATA)
        except OSError:
            break
        position = fs.lseek(ino, start, os.SEEK_HOLE)
        chunks.update(range(start // CHUNK_SIZE, -(-position // CHUNK_SIZE)))
    return min(len(chunks) * CHUNK_SIZE, size)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_what_seek_finds_whatever_was_done(seed: int) -> None:
    rng = random.Random(seed)
    host = MemoryDir()
    fs = Union(open_volume_in(host, key=KEY, create=True), None)
    ino = fs.mknod(ROOT_INO, b"file", stat.S_IFREG | 0o600, 0, 0, 0).ino
    fs.setattr(ino, SetAttr(size=1))
    fs.setattr(ino, SetAttr(size=3 << 20))  # from here on it has the mark of a sparse file
    for _ in range(80):
        offset, length = rng.randrange(4 << 20), rng.choice((1, 500, 40_000, 300_000))
        match rng.randrange(6):
            case 0 | 1:
                fs.write(ino, offset, memoryview(rng.randbytes(length)), kill_suidgid=False)
            case 2:
                fs.setattr(ino, SetAttr(size=max(offset, 1)))
            case 3:
                fs.fallocate(ino, _PUNCH_HOLE | _KEEP_SIZE, offset, length)
            case 4:
                fs.syncfs()
            case _:
                fs.syncfs()
                host = copy.deepcopy(host)  # a crash: what the host has is all there is
                host.close()
                fs = Union(open_volume_in(host, key=KEY, create=True), None)
        assert fs.getattr(ino).blocks == (expected(fs, ino) + 511) // 512
    fs.close()
