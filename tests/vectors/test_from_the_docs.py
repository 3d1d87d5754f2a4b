# SPDX-License-Identifier: Apache-2.0
"""docs/format.md says enough: a reader written from it alone reads what the product reads."""

from __future__ import annotations

import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from serdab.keys import Key
from serdab.sefs.image import Image, open_image
from serdab.sefs.imagebuild import ImageOptions, build_image
from tests.crash.test_rebind import make_tree
from tests.harness.version1 import building_version_1
from tests.vectors.imagereader import Reader
from tests.vectors.test_format_v1 import GOLDEN as GOLDEN_V1
from tests.vectors.test_format_v1 import KEY
from tests.vectors.test_image_v2 import GOLDEN as GOLDEN_V2

Shown = dict[bytes, tuple[int, int, int, dict[bytes, bytes], bytes]]
IMAGES = (
    GOLDEN_V1 / "integrity", GOLDEN_V1 / "encrypted",
    GOLDEN_V2 / "integrity", GOLDEN_V2 / "encrypted", GOLDEN_V2 / "padded",
)  # fmt: skip


def as_the_product_sees_it(image: Image, ino: int = 1, path: bytes = b"") -> Shown:
    inode = image.inode(ino)
    assert inode is not None
    content = bytearray(inode.size if stat.S_ISREG(inode.mode) else 0)
    image.read_into(ino, 0, memoryview(content))
    shown = bytes(content) or image.target(ino)
    if stat.S_ISREG(inode.mode):
        shown = bytes(content)
    xattrs = {name: value[1:] for name, value in image.xattrs(ino)}
    out = {path: (inode.mode, inode.nlink, inode.mtime_ns, xattrs, shown)}
    if stat.S_ISDIR(inode.mode):
        for _, name, entry in image.dirents(ino, 0):
            out |= as_the_product_sees_it(image, entry.ino, path + b"/" + name)
    return out


def compare(folder: Path, key: Key | None) -> None:
    reader = Reader((folder / "image.sefs").read_bytes(), None if key is None else key.raw())
    image = open_image(folder, key=key, expected_mac=reader.root_mac)
    expected = as_the_product_sees_it(image)
    image.close()
    found = {
        path: (file.record[0], file.record[1], file.record[8], file.xattrs, file.content)
        for path, file in reader.files.items()
    }
    assert found == expected


@pytest.mark.parametrize("folder", IMAGES, ids=lambda path: f"{path.parent.name} {path.name}")
def test_the_golden_images(folder: Path) -> None:
    compare(folder, None if folder.name == "integrity" else KEY)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("level", [0, 3])
def test_a_tree_of_everything(tmp_path: Path, version: int, level: int) -> None:
    make_tree(tmp_path / "tree")
    for number in range(40):
        (tmp_path / f"tree/{number}").write_bytes(os.urandom(30) * 37 * number)
    options = ImageOptions(chunk_size=8192, page_size=4096, zstd_level=level)
    with building_version_1() if version == 1 else nullcontext():
        build_image(tmp_path / "tree", tmp_path / "out", key=KEY, options=options)
    compare(tmp_path / "out", KEY)
