# SPDX-License-Identifier: Apache-2.0
"""docs/format.md says enough to read a volume: a reader written from it reads the golden ones."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from serdab.sefs.volume import open_volume
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union
from tests.vectors.plainreader import PlainVolume
from tests.vectors.test_format_v1 import KEY, open_golden

IMAGES = Path(__file__).parents[1] / "images"


@pytest.fixture(params=["v1", "v2"])
def both(request: pytest.FixtureRequest) -> Iterator[tuple[Union, PlainVolume]]:
    lower = open_golden("encrypted")

    def below(ino: int, offset: int, length: int) -> bytes:
        buf = bytearray(length)
        return bytes(buf[: lower.read_into(ino, offset, memoryview(buf))])

    folder = IMAGES / request.param / "volume"
    fs = Union(open_volume(folder, key=KEY, lower=lower, read_only=True), lower)
    yield fs, PlainVolume(folder, KEY.raw(), below)
    fs._upper.abandon()  # type: ignore[attr-defined]
    lower.close()


def test_it_reads_what_the_product_reads(both: tuple[Union, PlainVolume]) -> None:
    fs, plain = both
    compared = 0
    for entry in fs.readdir(ROOT_INO, 2):
        inode = fs.getattr(entry.ino)
        if inode.ino not in own_inodes(plain):
            continue
        if stat.S_ISREG(inode.mode):
            buf = bytearray(inode.size)
            fs.read_into(inode.ino, 0, memoryview(buf))
            assert plain.content(inode.ino) == bytes(buf), entry.name
            compared += 1
        assert plain.inode(inode.ino)[:2] == (inode.mode, inode.nlink)
    assert compared >= 3
    assert plain.entry(ROOT_INO, b"new") == fs.lookup(ROOT_INO, b"new").ino
    expected = fs._upper.root_mac
    assert plain.root_mac() == expected


def own_inodes(plain: PlainVolume) -> set[int]:
    return {int.from_bytes(key[:8], "big") for key in plain.items if key[8] == 1}


def test_the_root_mac_is_the_frozen_one() -> None:
    folder = IMAGES / "v2" / "volume"
    plain = PlainVolume(folder, KEY.raw(), lambda *_: b"")
    assert plain.root_mac().hex() == json.loads((IMAGES / "v2/volume.json").read_text())["root mac"]
