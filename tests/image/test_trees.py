# SPDX-License-Identifier: Apache-2.0
"""What a tree on a disk has that its image keeps: names of one inode, and holes unread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serdab.sefs.image import Image, open_image
from serdab.sefs.imagebuild import build_image
from serdab.vfs.api import ROOT_INO, Inode

MIB = 1 << 20


@contextmanager
def image_of(source: Path, where: Path) -> Iterator[Image]:
    built = build_image(source, where, key=None)
    image = open_image(where, key=None, expected_mac=built.root_mac)
    try:
        yield image
    finally:
        image.close()


def inode_of(image: Image, name: bytes) -> Inode:
    entry = image.dirent(ROOT_INO, name)
    assert entry is not None
    inode = image.inode(entry.ino)
    assert inode is not None
    return inode


def test_each_kind_of_file_has_its_names_counted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"content")
    (source / "link").symlink_to("file")
    os.mkfifo(source / "fifo")
    for name in ("file", "link", "fifo"):
        os.link(source / name, source / f"{name}-again", follow_symlinks=False)
    with image_of(source, tmp_path / "image") as image:
        for kind in (b"file", b"link", b"fifo"):
            one, again = inode_of(image, kind), inode_of(image, kind + b"-again")
            assert (one.ino, one.nlink) == (again.ino, 2)
        assert image.target(inode_of(image, b"link-again").ino) == b"file"


def test_of_holes_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    stores = {0: b"first", 700 * MIB + 5: b"middle", 1024 * MIB - 4: b"last"}
    for name, size in (("large", 1024 * MIB), ("only-hole", 1024 * MIB), ("small", 2000)):
        with open(source / name, "wb") as file:
            file.truncate(size)
            for offset, content in stores.items() if name == "large" else ():
                os.pwrite(file.fileno(), content, offset)
    read = 0
    pread = os.pread

    def counted(fd: int, count: int, offset: int) -> bytes:
        nonlocal read
        read += count
        return pread(fd, count, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", counted)
        built = build_image(source, tmp_path / "image", key=None)
    assert read < MIB
    image = open_image(tmp_path / "image", key=None, expected_mac=built.root_mac)
    large = inode_of(image, b"large")
    found = list(image.data_ranges(large.ino, 0, large.size))
    assert [any(a <= at < b for a, b in found) for at in stores] == [True] * 3
    assert sum(b - a for a, b in found) < MIB
    for offset, content in stores.items():
        buf = bytearray(len(content) + 2)
        start = max(offset - 2, 0)
        with memoryview(buf) as view:
            count = image.read_into(large.ino, start, view)
        assert content in bytes(buf[:count])
    assert not list(image.data_ranges(inode_of(image, b"only-hole").ino, 0, 1024 * MIB))
    small = bytearray(3000)
    assert image.read_into(inode_of(image, b"small").ino, 0, memoryview(small)) == 2000
    image.close()
