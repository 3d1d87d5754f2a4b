# SPDX-License-Identifier: Apache-2.0
"""What format version 2 of an image has more: padding, records of a file's own size, parents."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from serdab.errors import AuthenticationError
from serdab.instance.check import check_image_at
from serdab.keys import Key
from serdab.sefs import keyspace as ks
from serdab.sefs.image import Image, open_image
from serdab.sefs.imagebuild import ImageOptions, build_image, reseal_image
from serdab.sefs.imageformat import HEADER_BYTES, IMAGE_NAME
from serdab.sefs.imagewalk import SourceEntry, Walk
from tests.harness.version1 import building_version_1

KEY = Key(b"key of the forms")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    noise = random.Random(2)
    top = tmp_path / "tree"
    (top / "a/b").mkdir(parents=True)
    (top / "chunks").write_bytes(noise.randbytes(200_000))
    (top / "text").write_bytes(b"a line of text\n" * 20_000)
    for number in range(9):
        (top / f"a/tail {number}").write_bytes(b"%d\n" % number * (2000 + number))
        (top / f"a/b/small {number}").write_bytes(b"%d\n" % number * 100 * number)
    return top


def opened(place: Path) -> Image:
    return open_image(place, key=KEY, expected_mac=None)


def find(image: Image, path: str) -> int:
    ino = 1
    for name in path.encode().split(b"/"):
        entry = image.dirent(ino, name)
        assert entry is not None
        ino = entry.ino
    return ino


def content(image: Image, path: str) -> bytes:
    ino = find(image, path)
    inode = image.inode(ino)
    assert inode is not None
    raw = bytearray(inode.size)
    assert image.read_into(ino, 0, memoryview(raw)) == inode.size
    return bytes(raw)


class TestPadding:
    @pytest.mark.parametrize("unit", [4096, 65536, 1 << 20])
    def test_the_size_is_a_multiple(self, tree: Path, tmp_path: Path, unit: int) -> None:
        options = ImageOptions(padding=unit)
        info = build_image(tree, tmp_path / "image", key=KEY, options=options)
        assert info.stored_bytes % unit == 0
        assert (tmp_path / "image" / IMAGE_NAME).stat().st_size == info.stored_bytes
        assert check_image_at(tmp_path / "image", KEY, None).is_clean()

    def test_it_hides_what_is_below_the_unit(self, tree: Path, tmp_path: Path) -> None:
        options = ImageOptions(padding=1 << 20)
        sizes = set()
        for length in (1, 5000, 30_000):
            (tree / "more").write_bytes(os.urandom(length))
            sizes.add(build_image(tree, tmp_path / "out", key=KEY, options=options).stored_bytes)
        assert len(sizes) == 1
        (tree / "more").write_bytes(os.urandom(2 << 20))
        sizes.add(build_image(tree, tmp_path / "out", key=KEY, options=options).stored_bytes)
        assert len(sizes) == 2

    def test_a_changed_byte_of_it_is_told_by_fsck(self, tree: Path, tmp_path: Path) -> None:
        options = ImageOptions(padding=1 << 20)
        build_image(tree, tmp_path / "image", key=KEY, options=options)
        image = opened(tmp_path / "image")
        offset, length = image._padding
        image.close()
        assert length > 2
        host = tmp_path / "image" / IMAGE_NAME
        for at in (offset, offset + length // 2, offset + length - 1):
            raw = bytearray(host.read_bytes())
            raw[at] ^= 1
            host.write_bytes(raw)
            image = opened(tmp_path / "image")
            with pytest.raises(AuthenticationError, match="padding"):
                image.check_padding()
            image.close()
            checked = check_image_at(tmp_path / "image", KEY, None)
            assert list(checked.report.damaged) == ["padding"]
            raw[at] ^= 1
            host.write_bytes(raw)

    def test_it_looks_like_all_the_rest(self, tree: Path, tmp_path: Path) -> None:
        options = ImageOptions(padding=1 << 20)
        build_image(tree, tmp_path / "image", key=KEY, options=options)
        raw = (tmp_path / "image" / IMAGE_NAME).read_bytes()[HEADER_BYTES:]
        blocks = [raw[at : at + 16] for at in range(0, len(raw) - 15, 16)]
        assert len(set(blocks)) == len(blocks)
        for value in range(256):
            assert raw.count(value) == pytest.approx(len(raw) / 256, rel=0.15)

    def test_without_a_key_there_is_none(self, tree: Path, tmp_path: Path) -> None:
        plain = build_image(tree, tmp_path / "one", key=None)
        padded = build_image(tree, tmp_path / "two", key=None, options=ImageOptions(padding=4096))
        assert plain == padded

    @pytest.mark.parametrize("unit", [1, 2048, 4097, 12288, 1 << 31])
    def test_no_other_unit(self, tree: Path, tmp_path: Path, unit: int) -> None:
        with pytest.raises(ValueError, match="padding"):
            build_image(tree, tmp_path / "out", key=KEY, options=ImageOptions(padding=unit))


class TestRecordsOfTheirOwnSize:
    SIZES = (4096, 16384, 1 << 20)

    @pytest.fixture
    def image(self, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Image]:
        entries = Walk.entries

        def sized(walk: Walk) -> Iterator[SourceEntry]:
            for entry in entries(walk):
                if entry.path.startswith(b"sized"):
                    size = int(entry.path.removeprefix(b"sized"))
                    entry.inode.flags = ks.with_record_size(0, size)
                yield entry

        monkeypatch.setattr(Walk, "entries", sized)
        for size in self.SIZES:
            self.write(tree / f"sized{size}", size)
        build_image(tree, tmp_path / "image", key=KEY)
        image = opened(tmp_path / "image")
        yield image
        image.close()

    def write(self, path: Path, size: int) -> None:
        noise = random.Random(size)
        path.write_bytes(noise.randbytes(size) + bytes(size) + noise.randbytes(size + 3000))

    def test_they_are_read(self, image: Image, tree: Path) -> None:
        for size in self.SIZES:
            name = f"sized{size}"
            expected = (tree / name).read_bytes()
            assert content(image, name) == expected
            ino = find(image, name)
            part = bytearray(5000)
            image.read_into(ino, 3 * size - 2500, memoryview(part))
            assert part == expected[3 * size - 2500 : 3 * size + 2500]
            ranges = list(image.data_ranges(ino, 0, len(expected)))
            assert ranges[0] == (0, size)
            assert (2 * size, 3 * size) in ranges

    def test_they_stay_when_the_image_is_sealed_again(self, image: Image, tmp_path: Path) -> None:
        reseal_image(image, tmp_path / "again", key=KEY)
        assert (tmp_path / "again" / IMAGE_NAME).read_bytes() == (
            tmp_path / "image" / IMAGE_NAME
        ).read_bytes()


class TestOfVersion1:
    def test_sealed_again_it_is_what_a_build_makes(self, tree: Path, tmp_path: Path) -> None:
        """Parents, and all that version 1 does not say, are found by the walk."""
        with building_version_1():
            build_image(tree, tmp_path / "old", key=KEY)
        image = opened(tmp_path / "old")
        assert image.version == 1
        again = reseal_image(image, tmp_path / "again", key=KEY)
        image.close()
        assert again == build_image(tree, tmp_path / "new", key=KEY)
        image = opened(tmp_path / "again")
        assert image.version == 2
        for path, parent in (("a", 1), ("a/b", find(image, "a"))):
            inode = image.inode(find(image, path))
            assert inode is not None
            assert inode.parent_ino == parent
        image.close()
