# SPDX-License-Identifier: Apache-2.0
"""The union over a sealed volume acts as a plain file system in memory does, through reopening."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from serdab.keys import Key
from serdab.sefs.image import Image, open_image
from serdab.sefs.imagebuild import ImageOptions, build_image
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.volume import open_volume_in
from serdab.vfs.memfs import MemFs
from serdab.vfs.union import Union
from tests.property.fsops import CHUNK, Operations, apply, picture

KEY = Key(b"k" * 16)


def build_lower(tmp_path: Path) -> tuple[Path, bytes]:
    """Return an image of a tree made by random operations, and its root MAC."""
    source = tmp_path / "source"
    (source / "dir" / "b").mkdir(parents=True)
    (source / "a").write_bytes(b"lower content " * 9000)
    (source / "dir" / "a").write_bytes(b"x" * 3000)
    (source / "dir" / "b" / "e.txt").write_bytes(b"small")
    (source / "c").symlink_to("dir/a")
    (source / "e.txt").hardlink_to(source / "a")
    info = build_image(source, tmp_path / "image", key=KEY, options=ImageOptions(chunk_size=32768))
    return tmp_path / "image", info.root_mac


def mirrored(fs: Union) -> MemFs:
    """Return a model that starts with the same tree."""
    model = MemFs()
    links: dict[int, int] = {}

    def visit(ino: int, model_ino: int) -> None:
        for entry in list(fs.readdir(ino, 0)):
            if entry.name in (b".", b".."):
                continue
            inode = fs.lookup(ino, entry.name)
            fs.forget(inode.ino, 1)
            if inode.ino in links:
                model.link(links[inode.ino], model_ino, entry.name)
            elif entry.dtype == 4:
                child = model.mkdir(model_ino, entry.name, inode.mode, inode.uid, inode.gid)
                visit(inode.ino, child.ino)
            elif entry.dtype == 10:
                target = fs.readlink(inode.ino)
                model.symlink(model_ino, entry.name, target, inode.uid, inode.gid)
            else:
                child = model.mknod(model_ino, entry.name, inode.mode, 0, inode.uid, inode.gid)
                links[inode.ino] = child.ino
                buf = bytearray(inode.size)
                fs.read_into(inode.ino, 0, memoryview(buf))
                model.write(child.ino, 0, memoryview(buf), kill_suidgid=False)

    visit(1, 1)
    return model


@pytest.mark.parametrize("layered", [False, True], ids=["alone", "over an image"])
@pytest.mark.parametrize("seed", range(12))
def test_random_operations_agree_with_the_model(tmp_path: Path, seed: int, layered: bool) -> None:
    image: Path | None = None
    mac = b""
    if layered:
        image, mac = build_lower(tmp_path)
    host = MemoryDir()
    lower: Image | None = None

    def reopen(directory: MemoryDir) -> Union:
        nonlocal lower
        if image is not None:
            if lower is not None:
                lower.close()
            lower = open_image(image, key=KEY, expected_mac=mac)
        volume = open_volume_in(directory, key=KEY, lower=lower, create=True, chunk_size=CHUNK)
        return Union(volume, lower)

    fs = reopen(host)
    model = mirrored(fs)
    operations = Operations(seed)
    for step in range(400):
        operation = operations.draw()
        assert apply(fs, operation) == apply(model, operation), operation
        roll = operations.random.random()
        if roll < 0.02:
            fs.close()
            fs = reopen(host)
        elif roll < 0.05:
            fs.syncfs()
        elif roll < 0.09:
            fs.syncfs()
            # A crash: what the host has is all there is.
            host = copy.deepcopy(host)
            host.close()
            fs = reopen(host)
        if step % 40 == 0:
            assert picture(fs) == picture(model)
    assert picture(fs) == picture(model)
    fs.close()
    fs = reopen(host)
    assert picture(fs) == picture(model)
    fs.close()
