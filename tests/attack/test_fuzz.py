# SPDX-License-Identifier: Apache-2.0
"""Random damage, and headers of any bytes: refused, an error where it hurts, or the right bytes.

A short run here; `make fuzz` goes on for SERDAB_FUZZ_SECONDS a target, and prints how far it came.
"""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serdab.crypto.hashes import HashAlgorithm
from serdab.errors import Error, FormatError
from serdab.keys import Key
from serdab.sefs import keyspace as ks
from serdab.sefs.anchor import SLOT_BYTES, load_anchor, read_source
from serdab.sefs.image import Image, open_image_in
from serdab.sefs.imagebuild import ImageOptions, build_image
from serdab.sefs.imageformat import (
    HEADER_BYTES,
    IMAGE_NAME,
    POINTER_BYTES,
    V1,
    V2,
    parse_header,
    parse_pointer,
)
from serdab.sefs.memorydir import MemoryDir, MemoryFile
from serdab.sefs.page import parse_page
from serdab.sefs.pagestore import parse_table
from serdab.vfs.acl import parse_acl
from tests.attack.sealedvolume import KEY as VOLUME_KEY
from tests.attack.sealedvolume import SealedVolume, file_at, files_of, survey
from tests.attack.test_image_tampering import read_all, walk, write_tree
from tests.harness.version1 import building_version_1

KEY = Key(b"fuzz of an image")
SECONDS = float(os.environ.get("SERDAB_FUZZ_SECONDS", "600"))


def damage(rng: random.Random, host: MemoryDir) -> str:
    """Change the host at random, in one to three ways; return what was done."""
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        paths = [path for path, file in files_of(host) if file.content]
        if not paths:
            break
        path = rng.choice(paths)
        content = file_at(host, path).content
        size = len(content)
        at, length = rng.randrange(size), rng.choice((1, 2, 16, 100, 512, 4096))
        other = file_at(host, rng.choice(paths)).content
        start = rng.randrange(len(other))
        kind = rng.randrange(9)
        match kind:
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                content[at] = rng.choice((0, 0xFF, rng.randrange(256)))
            case 2:
                content[at : at + length] = rng.randbytes(min(length, size - at))
            case 3:
                content[at : at + length] = bytes(min(length, size - at))
            case 4:
                part = bytes(other[start : start + length])[: size - at]
                content[at : at + len(part)] = part
            case 5:
                del content[at:]
            case 6:
                content.extend(rng.randbytes(length))
            case 7:
                del content[at : at + length]
            case _:
                content[at:at] = bytes(other[start : start + length])
        done.append(f"{kind} at {at} of {path}, {length}, {start}")
    return "; ".join(done)


class VolumeTarget:
    """A volume: what is read belongs to one of its commits."""

    def __init__(self, *, closed: bool) -> None:
        self.volume = SealedVolume(closed=closed)

    def attack(self, rng: random.Random) -> None:
        host = self.volume.copy()
        what = damage(rng, host)
        found = survey(host)
        fits = [
            all(commit.get(path) == entry for path, entry in found.picture.items())
            and (bool(found.errors) or found.picture.keys() == commit.keys())
            for commit in self.volume.commits
        ]
        assert any(fits), what


class ImageTarget:
    """An image: what is read is what was sealed, and a change is never unnoticed."""

    def __init__(self, folder: Path, key: Key | None, version: int = V2) -> None:
        write_tree(folder / "source")
        options = ImageOptions(chunk_size=4096, page_size=4096, hash=HashAlgorithm.SHA256)
        self.key = key
        with building_version_1() if version == V1 else nullcontext():
            self.mac = build_image(folder / "source", folder, key=key, options=options).root_mac
        self.host = MemoryDir("image")
        self.host.files[IMAGE_NAME] = MemoryFile()
        self.host.files[IMAGE_NAME].content[:] = (folder / IMAGE_NAME).read_bytes()
        self.picture = read_all(self.open(self.host))

    def open(self, host: MemoryDir) -> Image:
        return open_image_in(host, key=self.key, expected_mac=self.mac)

    def attack(self, rng: random.Random) -> None:
        host = copy.deepcopy(self.host)
        what = damage(rng, host)
        changed = host.files[IMAGE_NAME].content != self.host.files[IMAGE_NAME].content
        noticed = False
        try:
            image = self.open(host)
            for path, ino in walk(image):
                try:
                    inode = image.inode(ino)
                    assert inode is not None
                    if inode.mode & 0o170000 == 0o100000:
                        buf = bytearray(inode.size)
                        count = image.read_into(ino, 0, memoryview(buf))
                        assert bytes(buf[:count]) == self.picture[path], f"{what}: {path!r}"
                    elif inode.mode & 0o170000 == 0o120000:
                        assert image.target(ino) == self.picture[path], f"{what}: {path!r}"
                except Error:
                    noticed = True
        except Error:
            noticed = True
        assert noticed or not changed, f"{what}: nobody noticed"


def target(name: str, folder: Path) -> Callable[[random.Random], None]:
    match name:
        case "closed volume":
            return VolumeTarget(closed=True).attack
        case "killed volume":
            return VolumeTarget(closed=False).attack
        case "encrypted image":
            return ImageTarget(folder, KEY).attack
        case "encrypted image of version 1":
            return ImageTarget(folder, KEY, V1).attack
        case _:
            return ImageTarget(folder, None).attack


TARGETS = pytest.mark.parametrize(
    "name",
    [
        "closed volume",
        "killed volume",
        "encrypted image",
        "encrypted image of version 1",
        "integrity-only image",
    ],
)


@TARGETS
def test_random_damage(name: str, tmp_path: Path) -> None:
    attack = target(name, tmp_path)
    for seed in range(150):
        attack(random.Random(seed))


@pytest.mark.fuzz
@TARGETS
def test_much_random_damage(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attack, count, started = target(name, tmp_path), 0, time.monotonic()
    first = random.SystemRandom().randrange(1 << 40)
    while time.monotonic() - started < SECONDS:
        try:
            attack(random.Random(first + count))
        except BaseException as exc:
            exc.add_note(f"seed {first + count}")
            raise
        count += 1
    with capsys.disabled():
        print(f"\n{name}: {count} random mutations in {SECONDS:.0f} s, none passed")


class TestParsers:
    """Whatever the bytes: a value that says the same bytes again, or FormatError."""

    SMALL = settings(max_examples=150, deadline=None)

    @pytest.fixture(scope="class")
    @classmethod
    def header(cls, tmp_path_factory: pytest.TempPathFactory) -> bytes:
        folder = tmp_path_factory.mktemp("header")
        write_tree(folder / "source")
        build_image(folder / "source", folder, key=KEY)
        return (folder / IMAGE_NAME).read_bytes()[:HEADER_BYTES]

    @pytest.fixture(scope="class")
    @classmethod
    def volume(cls) -> SealedVolume:
        return SealedVolume(closed=True)

    @SMALL
    @given(edits=st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=9)), max_size=4))
    def test_an_edited_header(self, header: bytes, edits: list[tuple[int, bytes]]) -> None:
        raw = bytearray(header)
        for at, part in edits:
            raw[at : at + len(part)] = part
        try:
            parsed = parse_header(bytes(raw))
        except FormatError:
            return
        # Version 1 has two counts at 32, which nobody reads.
        found = bytes(raw[:32]) + bytes(8 * (parsed.version == V1)) + bytes(raw[40:])
        assert parsed.dump() == (found if parsed.version == V1 else bytes(raw))

    @SMALL
    @given(raw=st.binary(max_size=300))
    def test_any_bytes(self, raw: bytes) -> None:
        parsers: list[Callable[[], object]] = [
            lambda: parse_header(raw.ljust(HEADER_BYTES, b"\0")),
            lambda: parse_pointer(raw[:POINTER_BYTES]),
            lambda: parse_page(raw, level=0),
            lambda: parse_table(raw),
            lambda: ks.parse_inode(5, raw[:84].ljust(84, b"\0"), ks.V1),
            lambda: ks.parse_inode(5, raw[:84].ljust(84, b"\0"), ks.V2),
            lambda: parse_acl(raw),
            lambda: ks.parse_dirent(raw),
            lambda: ks.parse_dirent_key(raw),
        ]
        for parse in parsers:
            try:
                parse()
            except FormatError:
                continue

    @SMALL
    @given(
        edits=st.lists(
            st.tuples(st.integers(0, 400), st.integers(0, 1), st.binary(max_size=9)), max_size=4
        )
    )
    def test_an_edited_anchor(
        self, volume: SealedVolume, edits: list[tuple[int, int, bytes]]
    ) -> None:
        host = volume.copy()
        content = host.files["anchor"].content
        for at, slot, part in edits:
            start = at + slot * SLOT_BYTES
            content[start : start + len(part)] = part
        read_source(host)
        try:
            anchor, _, _ = load_anchor(host.open("anchor"), VOLUME_KEY, "host")
        except Error:
            return
        assert anchor.uuid == bytes(volume.host.files["anchor"].content[16:32])
