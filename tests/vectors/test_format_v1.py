# SPDX-License-Identifier: Apache-2.0
"""Format version 1 is frozen: what was written once is read for ever.

A failure here is never mended by new golden files: a change of the format is a new version.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import zstandard

from serdab.crypto.aead import RecordCipher
from serdab.crypto.hashes import name_hash
from serdab.keys import Key
from serdab.sefs.anchor import volume_keys
from serdab.sefs.image import Image, open_image
from serdab.sefs.imagebuild import ImageOptions, build_image
from serdab.sefs.imageformat import HEADER_BYTES, V1, parse_header
from serdab.sefs.imagekeys import ImageKeys
from serdab.sefs.imagewalk import Additions
from serdab.sefs.volume import open_volume
from serdab.vfs.union import Union
from tests.harness.version1 import building_version_1
from tools.make_golden import make_source

GOLDEN = Path(__file__).parents[1] / "images" / "v1"
MACS = {
    name: bytes.fromhex(mac) for name, mac in json.loads((GOLDEN / "macs.json").read_text()).items()
}
KEY = Key.parse("c7-32-b3-ed-44-df-ec-7b-25-2d-9a-32-38-8d-58-61")


def open_golden(name: str, where: Path = GOLDEN) -> Image:
    key = KEY if name == "encrypted" else None
    return open_image(where / name, key=key, expected_mac=MACS[name])


def content(fs: Image | Union, path: str) -> bytes:
    ino = 1
    for part in path.encode().split(b"/"):
        if isinstance(fs, Image):
            entry = fs.dirent(ino, part)
            assert entry is not None, path
            ino = entry.ino
        else:
            ino = fs.lookup(ino, part).ino
    inode = fs.inode(ino) if isinstance(fs, Image) else fs.getattr(ino)
    assert inode is not None
    buf = bytearray(inode.size)
    with memoryview(buf) as view:
        assert fs.read_into(ino, 0, view) == inode.size
    return bytes(buf)


@pytest.mark.parametrize("name", ["integrity", "encrypted"])
def test_golden_images_are_read(name: str, tmp_path: Path) -> None:
    make_source(tmp_path)
    image = open_golden(name)
    for path in ("bin/inline", "bin/tail", "bin/chunks", "sparse", "hard"):
        assert content(image, path) == (tmp_path / path).read_bytes(), path
    assert content(image, "etc/image_config.json") == b"{}\n"
    link = image.dirent(1, b"link")
    assert link is not None
    assert image.target(link.ino) == b"bin/tail"
    image.close()


@pytest.mark.parametrize("name", ["integrity", "encrypted"])
def test_the_tests_build_what_the_product_built(name: str, tmp_path: Path) -> None:
    golden = (GOLDEN / name / "image.sefs").read_bytes()
    mine = "libzstd " + ".".join(map(str, zstandard.ZSTD_VERSION))
    if parse_header(golden[:HEADER_BYTES]).builder != mine:
        # Equal bytes are promised per libzstd; the reading test above holds for all.
        assert mine != parse_header(golden[:HEADER_BYTES]).builder
        return
    make_source(tmp_path / "source")
    with building_version_1():
        info = build_image(
            tmp_path / "source",
            tmp_path / "out",
            key=KEY if name == "encrypted" else None,
            options=ImageOptions(chunk_size=65536, page_size=4096),
            additions=Additions({b"proc": 0o555}, {b"etc/image_config.json": b"{}\n"}),
        )
    assert info.root_mac == MACS[name]
    assert (tmp_path / "out/image.sefs").read_bytes() == golden


def test_the_golden_volume_is_read_and_its_log_replayed(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "volume", tmp_path / "volume")
    lower = open_golden("encrypted")
    fs = Union(open_volume(tmp_path / "volume", key=KEY, lower=lower), lower)
    names = {entry.name for entry in fs.readdir(1, 0)}
    assert names == {b".", b"..", b"bin", b"etc", b"hard", b"in the log", b"link", b"moved",
                     b"new", b"proc"}  # fmt: skip
    expected = bytearray(b"".join(i.to_bytes(4, "little") for i in range(50_000)))
    expected[70_000:70_007] = b"changed"
    assert content(fs, "bin/chunks") == bytes(expected)
    assert content(fs, "new") == b"n" * 70_000
    assert content(fs, "in the log") == b"replayed"
    new = fs.lookup(1, b"new")
    assert fs.getxattr(new.ino, b"user.note") == b"kept"
    assert fs.lookup(1, b"hard").mode == 0o100600
    assert fs.lookup(fs.lookup(1, b"bin").ino, b"inline").ino == fs.lookup(1, b"hard").ino
    fs.close()


def test_derived_keys_are_frozen() -> None:
    """These may not change: they are the on-disk format."""
    image = ImageKeys(KEY, V1).schedule
    volume = volume_keys(KEY, bytes(range(16)), 1)
    found = {
        "image pack": image.derive(b"image pack", b"id", 28).hex(),
        "image content": image.derive(b"image content").hex(),
        "image key check": image.keyed_hash(b"image key check", b"header").hex(),
        "key check": volume.derive(b"key check").hex(),
        "anchor": volume.derive(b"anchor", b"salt", 28).hex(),
        "segment": volume.derive(b"segment", b"salt", 28).hex(),
        "log": volume.derive(b"log", b"salt", 28).hex(),
        "record": RecordCipher(bytes(range(28))).seal(7, b"plain", b"aad").hex(),
        "name": f"{name_hash(b'name'):016x}",
    }
    assert found == json.loads((Path(__file__).parent / "keys-v1.json").read_text())
