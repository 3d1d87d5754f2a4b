# SPDX-License-Identifier: Apache-2.0
"""What the storage may do to a sealed image: each act is refused, or reads EIO where it hurts.

The rule for every change: opening fails with an error of ours, or every file reads as it was or
fails with one. Nothing else may come out, least of all other bytes.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from serdab.crypto.hashes import HashAlgorithm
from serdab.errors import Error, FormatError, UsageError, VerificationError, WrongKeyError
from serdab.keys import Key
from serdab.sefs.image import Image, open_image
from serdab.sefs.imagebuild import ImageOptions, build_image
from serdab.sefs.imageformat import HEADER_BYTES, IMAGE_NAME, V1, V2
from serdab.vfs.api import ROOT_INO
from tests.attack.forgery import own_mac
from tests.harness.sampling import some_of
from tests.harness.version1 import building_version_1

KEY = Key(bytes(range(16)))
MODES = pytest.mark.parametrize("key", [None, KEY], ids=["integrity-only", "encrypted"])
FIELDS = 192
"""Of the header; zeros follow."""
Picture = dict[bytes, bytes]


def write_tree(top: Path) -> None:
    """Write files of every kind of storage: inline, packed tail, one chunk, several, a hole."""
    noise = random.Random(7)
    (top / "dir").mkdir(parents=True)
    (top / "tiny").write_bytes(b"inline")
    (top / "dir/tail").write_bytes(noise.randbytes(1500))
    (top / "dir/other tail").write_bytes(noise.randbytes(1400))
    (top / "chunks").write_bytes(noise.randbytes(9000))
    (top / "text").write_bytes(b"compresses well " * 700)
    with open(top / "hole", "wb") as sparse:
        sparse.seek(12288)
        sparse.write(noise.randbytes(100))
    (top / "link").symlink_to("dir/tail")


def build(folder: Path, source: Path, key: Key | None) -> bytes:
    """Build with small units, so that few bytes hold many records; return the root MAC."""
    options = ImageOptions(chunk_size=4096, page_size=4096, hash=HashAlgorithm.SHA256)
    return build_image(source, folder, key=key, options=options).root_mac


def walk(image: Image, ino: int = ROOT_INO, path: bytes = b"") -> Iterator[tuple[bytes, int]]:
    for _, name, entry in image.dirents(ino, 0):
        yield path + name, entry.ino
        inode = image.inode(entry.ino)
        if inode is not None and inode.mode & 0o170000 == 0o040000:
            yield from walk(image, entry.ino, path + name + b"/")


def read_all(image: Image) -> Picture:
    """Return the content of every file and link."""
    picture = {}
    for path, ino in walk(image):
        inode = image.inode(ino)
        assert inode is not None
        kind = inode.mode & 0o170000
        buffer = bytearray(inode.size if kind == 0o100000 else 0)
        if kind == 0o100000:
            assert image.read_into(ino, 0, memoryview(buffer)) == inode.size
        picture[path] = image.target(ino) if kind == 0o120000 else bytes(buffer)
    return picture


def survey(folder: Path, *, key: Key | None, mac: bytes | None) -> tuple[Picture, list[Error]]:
    """Open and read what can be read; return it and the errors met."""
    try:
        image = open_image(folder, key=key, expected_mac=mac)
    except Error as exc:
        return {}, [exc]
    picture: Picture = {}
    errors: list[Error] = []
    try:
        for path, ino in walk(image):
            try:
                inode = image.inode(ino)
                assert inode is not None
                if inode.mode & 0o170000 == 0o100000:
                    buffer = bytearray(inode.size)
                    count = image.read_into(ino, 0, memoryview(buffer))
                    picture[path] = bytes(buffer[:count])
                elif inode.mode & 0o170000 == 0o120000:
                    picture[path] = image.target(ino)
            except Error as exc:
                errors.append(exc)
    except Error as exc:
        errors.append(exc)
    finally:
        image.close()
    return picture, errors


class Sealed:
    """A built image that can be changed and put back."""

    def __init__(self, folder: Path, key: Key | None, mac: bytes) -> None:
        self.folder = folder
        self.key = key
        self.mac = mac
        self.file = folder / IMAGE_NAME
        self.raw = self.file.read_bytes()
        image = open_image(folder, key=key, expected_mac=mac)
        self.picture = read_all(image)
        image.close()

    def offsets(self, *, step: int) -> Iterator[int]:
        """Yield all of the header's fields, and every ``step``-th byte behind them."""
        yield from range(FIELDS)
        yield from range(FIELDS, len(self.raw), step)

    def put(self, raw: bytes | bytearray) -> None:
        # In place: some file systems flush a file that is cut to nothing and written again.
        with open(self.file, "r+b") as file:
            file.write(raw)
            file.truncate()

    def expect_refused_or_equal(self, *, mac: bytes | None, must_notice: bool = True) -> None:
        picture, errors = survey(self.folder, key=self.key, mac=mac)
        for path, content in picture.items():
            assert content == self.picture.get(path), f"{path!r} reads other bytes"
        if must_notice:
            assert errors, "the change went unnoticed"
        if not errors:
            assert {*picture} == {path for path in self.picture if path != b"dir"}, (
                "a file is missing and nobody says so"
            )
        for error in errors:
            assert isinstance(error, VerificationError | FormatError | WrongKeyError), repr(error)


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def seal(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[Key | None], Sealed]:
    """Of both versions: what was built once is attacked for ever."""

    def make(key: Key | None) -> Sealed:
        write_tree(tmp_path / "source")
        with building_version_1() if request.param == 1 else nullcontext():
            mac = build(tmp_path / "image", tmp_path / "source", key)
        return Sealed(tmp_path / "image", key, mac)

    return make


@pytest.mark.sampled
@MODES
def test_every_flipped_byte_is_noticed(
    seal: Callable[[Key | None], Sealed], key: Key | None
) -> None:
    sealed = seal(key)
    for offset in some_of(sealed.offsets(step=2 if sealed.raw[8] == V1 else 1), 5):
        raw = bytearray(sealed.raw)
        raw[offset] ^= 1 << offset % 8
        sealed.put(raw)
        sealed.expect_refused_or_equal(mac=sealed.mac)


@pytest.mark.sampled
def test_every_flipped_byte_is_noticed_with_the_key_alone(
    seal: Callable[[Key | None], Sealed],
) -> None:
    """A runtime image is opened by its key, with no MAC to compare: the key must cover it all."""
    sealed = seal(KEY)
    for offset in some_of(sealed.offsets(step=7), 2):  # behind the header nothing rests on the MAC
        raw = bytearray(sealed.raw)
        raw[offset] ^= 1 << offset % 8
        sealed.put(raw)
        sealed.expect_refused_or_equal(mac=None)


def test_other_units_in_the_header_are_noticed_with_the_key_alone(
    seal: Callable[[Key | None], Sealed],
) -> None:
    sealed = seal(KEY)
    for field in (16, 20):
        for size in (8192, 65536, 1 << 20):
            raw = bytearray(sealed.raw)
            raw[field : field + 4] = size.to_bytes(4, "little")
            sealed.put(raw)
            sealed.expect_refused_or_equal(mac=None)


@pytest.mark.soak
@MODES
def test_every_bit_flipped(
    seal: Callable[[Key | None], Sealed], key: Key | None, capsys: pytest.CaptureFixture[str]
) -> None:
    sealed = seal(key)
    for offset in range(len(sealed.raw)):
        for bit in range(8):
            raw = bytearray(sealed.raw)
            raw[offset] ^= 1 << bit
            sealed.put(raw)
            sealed.expect_refused_or_equal(mac=sealed.mac)
    with capsys.disabled():
        mode = "integrity-only" if key is None else "encrypted"
        print(f"\n{mode} image: {8 * len(sealed.raw)} single bits flipped, each noticed")


@MODES
def test_a_cut_at_any_place_is_noticed(
    seal: Callable[[Key | None], Sealed], key: Key | None
) -> None:
    sealed = seal(key)
    lengths = [*range(0, len(sealed.raw), 97), HEADER_BYTES, len(sealed.raw) - 1]
    for length in lengths:
        sealed.put(sealed.raw[:length])
        sealed.expect_refused_or_equal(mac=sealed.mac)


@MODES
def test_appended_bytes_are_noticed(seal: Callable[[Key | None], Sealed], key: Key | None) -> None:
    sealed = seal(key)
    sealed.put(sealed.raw + b"\0")
    sealed.expect_refused_or_equal(mac=sealed.mac)
    os.truncate(sealed.file, 1 << 40)
    sealed.expect_refused_or_equal(mac=sealed.mac)


@MODES
def test_zeroed_and_swapped_pages_are_noticed(
    seal: Callable[[Key | None], Sealed], key: Key | None
) -> None:
    sealed = seal(key)
    body = range(HEADER_BYTES, len(sealed.raw) - 1024, 1024)
    for offset in body:
        for fill in (b"\0", b"\xff"):
            raw = bytearray(sealed.raw)
            raw[offset : offset + 1024] = fill * 1024
            sealed.put(raw)
            sealed.expect_refused_or_equal(mac=sealed.mac)
    chosen = random.Random(3)
    for _ in range(60):
        one, two = chosen.sample(list(body), 2)
        raw = bytearray(sealed.raw)
        raw[one : one + 1024], raw[two : two + 1024] = raw[two : two + 1024], raw[one : one + 1024]
        sealed.put(raw)
        sealed.expect_refused_or_equal(mac=sealed.mac, must_notice=bytes(raw) != sealed.raw)


def test_the_key_of_another_image_opens_nothing(seal: Callable[[Key | None], Sealed]) -> None:
    sealed = seal(KEY)
    for wrong in (Key(bytes(16)), Key(bytes(range(1, 17)))):
        with pytest.raises(WrongKeyError):
            open_image(sealed.folder, key=wrong, expected_mac=sealed.mac)


def test_the_opener_decides_the_mode(seal: Callable[[Key | None], Sealed], tmp_path: Path) -> None:
    encrypted = seal(KEY)
    with pytest.raises(WrongKeyError):
        open_image(encrypted.folder, key=None, expected_mac=encrypted.mac)
    plain_mac = build(tmp_path / "plain", tmp_path / "source", None)
    with pytest.raises(FormatError):
        open_image(tmp_path / "plain", key=KEY, expected_mac=plain_mac)
    with pytest.raises(UsageError):
        open_image(tmp_path / "plain", key=None, expected_mac=None)


@MODES
def test_another_image_of_the_same_names_is_refused(
    seal: Callable[[Key | None], Sealed], tmp_path: Path, key: Key | None
) -> None:
    sealed = seal(key)
    (tmp_path / "source/tiny").write_bytes(b"in|ine")
    build(tmp_path / "other", tmp_path / "source", key)
    shutil.copy(tmp_path / "other" / IMAGE_NAME, sealed.file)
    with pytest.raises(VerificationError):
        open_image(sealed.folder, key=key, expected_mac=sealed.mac)


@pytest.mark.parametrize("field", [(8, 4), (12, 1), (13, 1), (14, 1)], ids=str)
def test_an_unknown_version_or_suite_is_refused_even_with_its_own_mac(
    seal: Callable[[Key | None], Sealed], field: tuple[int, int]
) -> None:
    sealed = seal(None)
    offset, length = field
    for value in (0, 3, 255):
        raw = bytearray(sealed.raw)
        raw[offset : offset + length] = value.to_bytes(length, "little")
        if raw == sealed.raw:
            continue
        sealed.put(raw)
        # Version 1 takes the flag of the record's own pointer for it.
        must_notice = sealed.raw[8] == V2 or offset != 14
        sealed.expect_refused_or_equal(mac=own_mac(bytes(raw)), must_notice=must_notice)


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "hard link", "unreadable"])
def test_what_is_no_plain_file_is_refused_without_hanging(
    seal: Callable[[Key | None], Sealed], tmp_path: Path, kind: str
) -> None:
    sealed = seal(KEY)
    target = tmp_path / "target"
    target.write_bytes(sealed.raw)
    sealed.file.unlink()
    match kind:
        case "symlink":
            sealed.file.symlink_to(target)
        case "fifo":
            os.mkfifo(sealed.file)
        case "directory":
            sealed.file.mkdir()
        case "hard link":
            os.link(target, sealed.file)
        case _:
            sealed.file.mkdir(mode=0)
    with pytest.raises((Error, OSError)):
        open_image(sealed.folder, key=KEY, expected_mac=sealed.mac)
    assert target.read_bytes() == sealed.raw
