# SPDX-License-Identifier: Apache-2.0
"""Authentic but hostile images: refused by errors, without a hang, deep recursion or memory.

The image verifies: whoever made it holds the key, or had it measured. What it *says* is a lie.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from serdab.crypto.aead import RecordCipher
from serdab.errors import AuthenticationError, Error, FormatError
from serdab.keys import Key
from serdab.sefs import fsck, imagebuild
from serdab.sefs import keyspace as ks
from serdab.sefs.image import open_image
from serdab.sefs.imageformat import (
    HEADER_BYTES,
    IMAGE_NAME,
    META_PACK,
    SLOT,
    SLOT_BYTES,
    V1,
    V2,
    Pointer,
)
from serdab.sefs.volume import memory_volume
from serdab.structs import replace
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union
from tests.attack.forgery import (
    Exerciser,
    Items,
    add_entry,
    bounded,
    changed_inode,
    forge,
    own_mac,
    raw_image,
    raw_page,
)

KEY = Key(b"an evil insider!")
DIR, FILE = 4, 8
TOP = 1 << 63


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Inode 2 is the directory ``dir``, 3 ``file`` of 9000 bytes, 4 ``link``, 5 ``small``."""
    top = tmp_path / "source"
    (top / "dir").mkdir(parents=True)
    (top / "file").write_bytes(bytes(range(250)) * 36)
    (top / "link").symlink_to("file")
    (top / "small").write_bytes(b"inline")
    (top / "dir" / "below").write_bytes(b"b" * 3000)
    return top


def put(key: bytes, value: bytes) -> Callable[[Items], None]:
    return lambda items: items.__setitem__(key, value)


def drop(key: bytes) -> Callable[[Items], None]:
    return lambda items: items.__delitem__(key)


def entry(name: bytes, ino: int, dtype: int = FILE, parent: int = 1) -> Callable[[Items], None]:
    return lambda items: add_entry(items, name, ino, dtype, parent)


def inode(ino: int, **fields: int) -> Callable[[Items], None]:
    return lambda items: changed_inode(items, ino, **fields)


def slot(**fields: int) -> Callable[[Items], None]:
    """Change fields of the first extent of ``file``."""

    def change(items: Items) -> None:
        key = ks.group_key(3, 0)
        names = ("offset", "stored", "pack", "number", "flags", "digest", "position")
        values = dict(zip(names, SLOT.unpack_from(items[key]), strict=True)) | fields
        raw = SLOT.pack(*(values[name] for name in names))
        items[key] = raw + items[key][SLOT_BYTES:]

    return change


def super_(*values: int) -> Callable[[Items], None]:
    """Change the first numbers of the item that tells of the image as a whole."""

    def change(items: Items) -> None:
        key = ks.key(0, ks.T_SUPER)
        items[key] = struct.pack(f"<{len(values)}Q", *values) + items[key][8 * len(values) :]

    return change


def content(ino: int, stored: bytes) -> Callable[[Items], None]:
    """Let an empty file have small content, in a form of version 2."""

    def change(items: Items) -> None:
        changed_inode(items, ino, flags=ks.F_INLINE, size=100)
        items[ks.key(ino, ks.T_INLINE)] = stored

    return change


def acl(raw: bytes, name: bytes = b"system.posix_acl_access") -> Callable[[Items], None]:
    return put(ks.xattr_key(3, name), b"\1" + raw)


FRAME = zstandard.ZstdCompressor().compress
ENTRIES = struct.pack("<HHIHHIHHI", 1, 7, 0xFFFFFFFF, 4, 5, 0xFFFFFFFF, 32, 5, 0xFFFFFFFF)
VERSION_2: dict[str, Callable[[Items], None]] = {
    "content of no form": content(3, b"\2content"),
    "content without its mark": content(3, b""),
    "content too long": content(3, b"\0" + bytes(2049)),
    "content of a bomb": content(3, b"\1" + FRAME(bytes(64 << 20))),
    "content of no frame": content(3, b"\1no frame at all"),
    "content of a skippable frame": content(3, b"\1\x50\x2a\x4d\x18\xff\xff\xff\x7f"),
    "content of two frames": content(3, b"\1" + FRAME(b"one") * 2),
    "piece that is no frame": slot(flags=2),
    "piece far into its record": slot(flags=2, position=0xFFFFFFFF),
    "piece of what is compressed": slot(flags=3),
    "parent of a file": inode(3, parent_ino=1),
    "parent that is itself": inode(2, parent_ino=2),
    "parent that is not there": inode(2, parent_ino=99),
    "parent of an impossible number": inode(2, parent_ino=TOP),
    "parent of the root": inode(1, parent_ino=2),
    "directory without a parent": inode(2, parent_ino=0),
    "records of 2 KiB": inode(3, flags=11 << 8),
    "records of 2 MiB": inode(3, flags=21 << 8),
    "records of 2 GiB": inode(3, flags=31 << 8),
    "records of a MiB": inode(3, flags=20 << 8),
    "records of a directory": inode(2, flags=16 << 8),
    "ACL of no entries": acl(b"\2\0\0\0"),
    "ACL that is cut": acl(b"\2\0\0\0" + ENTRIES[:-1]),
    "ACL of another version": acl(b"\1\0\0\0" + ENTRIES),
    "ACL out of order": acl(b"\2\0\0\0" + ENTRIES[8:] + ENTRIES[:8]),
    "padding beyond the end": super_(5, 5, 0, 1 << 50, 4096),
    "padding of all": super_(5, 5, 0, 0, (1 << 64) - 1),
    "padding where the header has none": super_(5, 5, 0, 4096, 1),
}
"""What version 1 cannot say."""

LIES: dict[str, Callable[[Items], None]] = {
    "name ..": entry(b"..", 3),
    "name .": entry(b".", 3),
    "name with a slash": entry(b"a/b", 3),
    "name with NUL": entry(b"a\0b", 3),
    "name of 256 bytes": entry(b"n" * 256, 3),
    "empty name": put(struct.pack(">QBQ", 1, ks.T_DIRENT, 77), struct.pack("<QB", 3, 8)),
    "entry at the wrong position": put(
        struct.pack(">QBQ", 1, ks.T_DIRENT, 77) + b"name", struct.pack("<QB", 3, 8)
    ),
    "entry key without a position": put(ks.key(1, ks.T_DIRENT) + b"abc", bytes(9)),
    "entry of no inode": entry(b"none", 99),
    "entry of an impossible inode": entry(b"none", TOP),
    "entry of an unknown type": entry(b"none", 3, 7),
    "entry of the wrong type": entry(b"wrong", 3, DIR),
    "directory that says file": entry(b"wrong", 2, FILE),
    "whiteout in an image": put(ks.dirent_key(1, b"gone"), b""),
    "short entry": put(ks.dirent_key(1, b"short"), b"\1"),
    "cycle to the root": entry(b"up", 1, DIR, parent=2),
    "directory within itself": entry(b"self", 2, DIR, parent=2),
    "two names of one directory": entry(b"second", 2, DIR),
    "nlink 0": inode(3, nlink=0),
    "nlink 4294967295": inode(3, nlink=0xFFFFFFFF),
    "directory nlink 0": inode(2, nlink=0),
    "root nlink 0": inode(1, nlink=0),
    "root nlink 4294967295": inode(1, nlink=0xFFFFFFFF),
    "root is a file": inode(1, mode=0o100644),
    "no root": drop(ks.key(1, ks.T_INODE)),
    "no inode for an entry": drop(ks.key(3, ks.T_INODE)),
    "short inode": put(ks.key(3, ks.T_INODE), b"\0" * 83),
    "inode without a type": put(ks.key(3, ks.T_INODE), b"\0" * 84),
    "huge size": inode(3, size=TOP - 1),
    "impossible size": put(ks.key(3, ks.T_INODE), struct.pack("<6IQ4q2Q", 0o100644, 1, 0, 0, 0, 0,
                                                              TOP, 0, 0, 0, 0, 0, 0)),
    "huge inline size": inode(5, size=TOP - 1),
    "inline flag without content": inode(3, flags=ks.F_INLINE),
    "inline content without the flag": inode(5, flags=0),
    "lower flag in an image": inode(3, flags=ks.F_LOWER, lower_limit=TOP - 1),
    "unknown inode flag": inode(3, flags=8),
    "times at their ends": inode(
        3, atime_ns=TOP - 1, mtime_ns=-TOP, ctime_ns=TOP - 1, btime_ns=-TOP
    ),
    "link without a target": inode(3, mode=0o120777),
    "the same key twice": put(ks.key(5, ks.T_INLINE), b"t"),
    "attribute without its marker": put(ks.xattr_key(3, b"user.x"), b""),
    "attribute without a name": put(ks.xattr_key(3, b""), b"\1value"),
    "attribute name with NUL": put(ks.xattr_key(3, b"user.\0"), b"\1value"),
    "attribute of a MiB": put(ks.xattr_key(3, b"user.x"), b"\1" + b"v" * 900_000),
    "extents of an odd length": put(ks.group_key(3, 0), b"\1" * 61),
    "extents of too many chunks": put(ks.group_key(3, 0), b"\1" * SLOT_BYTES * 65),
    "extents of no file": put(ks.group_key(99, 0), b"\1" * SLOT_BYTES),
    "extent in the header": slot(offset=100),
    "extent beyond the end": slot(offset=1 << 50),
    "extent at 2^64-1": slot(offset=(1 << 64) - 1),
    "extent of no length": slot(stored=0),
    "extent of a tag only": slot(stored=16),
    "extent of 4 GiB": slot(stored=0xFFFFFFFF),
    "extent of an unknown pack": slot(pack=77),
    "extent in the pages": slot(pack=0xFFFFFFFF),
    "extent of another number": slot(number=9),
    "extent with unknown flags": slot(flags=6),
    "extent said to be compressed": slot(flags=1),
    "extent far into its record": slot(position=0xFFFFFFFF),
    "no super item": drop(ks.key(0, ks.T_SUPER)),
    "short super item": put(ks.key(0, ks.T_SUPER), b"\0" * 23),
    "no inodes at all": super_(0),
    "too many inodes": super_((1 << 64) - 1),
    "the last possible inode": super_(ks.MAX_INO),
    "fewer inodes than there are": super_(1),
    "short key": put(b"\0", b"value"),
    "key of an unknown type": put(ks.key(1, 200), b"value"),
    "key of the last inode": put(b"\xff" * 9, b"value"),
}  # fmt: skip


def exercise(folder: Path, key: Key | None, mac: bytes) -> list[Exception]:
    """Open, read, change and sync; return the errors, all of which are ours."""
    try:
        image = open_image(folder, key=key, expected_mac=mac)
    except Error as exc:
        return [exc]
    try:
        union = Union(memory_volume(image), image)
    except (Error, OSError) as exc:
        image.close()
        return [exc]
    user = Exerciser(union)
    user.run()
    return user.errors


MUST_NOTICE = VERSION_2.keys() - {
    "records of a MiB",
    "parent that is not there",
}


@pytest.mark.parametrize("key", [None, KEY], ids=["integrity-only", "encrypted"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("lie", LIES)
def test_a_lying_item(
    source: Path, tmp_path: Path, lie: str, version: int, key: Key | None
) -> None:
    mac = forge(source, tmp_path / "image", key=key, change=LIES[lie], version=version)
    with bounded():
        exercise(tmp_path / "image", key, mac)


@pytest.mark.parametrize("key", [None, KEY], ids=["integrity-only", "encrypted"])
@pytest.mark.parametrize("lie", VERSION_2)
def test_a_lie_in_what_version_2_has_more(
    source: Path, tmp_path: Path, lie: str, key: Key | None
) -> None:
    mac = forge(source, tmp_path / "image", key=key, change=VERSION_2[lie])
    with bounded():
        found = exercise(tmp_path / "image", key, mac)
    if lie in MUST_NOTICE:
        assert any(isinstance(each, FormatError) for each in found)


@pytest.mark.parametrize("version", [1, 2])
def test_without_a_lie_nothing_is_said_of_the_format(
    source: Path, tmp_path: Path, version: int
) -> None:
    mac = forge(source, tmp_path / "image", key=KEY, change=lambda items: None, version=version)
    found = exercise(tmp_path / "image", KEY, mac)
    assert not [each for each in found if isinstance(each, Error)]


@pytest.mark.parametrize("lie", [lie for lie in VERSION_2 if not lie.startswith(("cont", "dir"))])
def test_version_1_does_not_know_what_version_2_has_more(
    source: Path, tmp_path: Path, lie: str
) -> None:
    """A flag, a parent, an ACL: refused, not ignored."""
    if lie.startswith("padding"):
        lie = "records of a MiB"
    mac = forge(source, tmp_path / "image", key=KEY, change=VERSION_2[lie], version=1)
    with bounded():
        found = exercise(tmp_path / "image", KEY, mac)
    assert found


@pytest.mark.parametrize("lie", LIES | VERSION_2)
def test_fsck_of_a_lying_item_ends(source: Path, tmp_path: Path, lie: str) -> None:
    mac = forge(source, tmp_path / "image", key=KEY, change=(LIES | VERSION_2)[lie])
    with bounded():
        try:
            image = open_image(tmp_path / "image", key=KEY, expected_mac=mac)
        except Error:
            return
        union: Union | None = None

        def opened() -> Union:
            nonlocal union
            union = Union(memory_volume(image), image)
            return union

        fsck.check(opened, [image.tree])
        if union is not None:
            union.close()


def test_names_that_lead_elsewhere_are_never_listed(source: Path, tmp_path: Path) -> None:
    for number, name in enumerate([b"..", b".", b"a/b", b"a\0b", b"n" * 256]):
        folder = tmp_path / str(number)
        mac = forge(source, folder, key=KEY, change=entry(name, 3))
        image = open_image(folder, key=KEY, expected_mac=mac)
        union = Union(memory_volume(image), image)
        listed: list[bytes] = []
        listing = union.readdir(ROOT_INO, 2)
        with pytest.raises(FormatError):
            listed.extend(found.name for found in listing)
        assert name not in listed
        union.close()


class TestHostilePages:
    """Trees made by hand, under hashes that are right."""

    SUPER = (ks.key(0, ks.T_SUPER), ks.SUPER.pack(1, 1, 0, 0, 0))
    LEAF = raw_page(0, [SUPER])
    OLD = raw_page(0, [(ks.key(0, ks.T_SUPER), ks.SUPER_V1.pack(1, 1, 0))])
    """Enough for an image to be opened: what is refused is refused for the lie alone."""

    def test_the_honest_page_is_read(self, tmp_path: Path) -> None:
        mac = raw_image(tmp_path, [(self.LEAF, 0)], root_level=0)
        open_image(tmp_path, key=None, expected_mac=mac).close()

    def over(self, leaf: bytes, *more: tuple[bytes, bytes], **fields: int) -> bytes:
        """Return a page whose first item points to a leaf right behind the header."""
        digest = hashlib.sha256(leaf).digest()
        pointer = Pointer(HEADER_BYTES, len(leaf), META_PACK, 0, 0, digest)
        raw = replace(pointer, **fields).dump()
        return raw_page(1, [(self.SUPER[0], raw), *((key, raw) for key, _ in more)])

    def test_a_page_over_it_is_read_too(self, tmp_path: Path) -> None:
        mac = raw_image(tmp_path, [(self.LEAF, 0), (self.over(self.LEAF), 0)], root_level=1)
        open_image(tmp_path, key=None, expected_mac=mac).close()

    @pytest.mark.parametrize("fields", [{"pack": 0}, {"flags": 2}, {"offset": 0}, {"stored": 0}])
    def test_a_pointer_with_an_impossible_field(
        self, tmp_path: Path, fields: dict[str, int]
    ) -> None:
        self.refused(tmp_path, [(self.LEAF, 0), (self.over(self.LEAF, **fields), 0)], 1)

    def test_a_child_that_is_not_the_one_its_parent_names(self, tmp_path: Path) -> None:
        leaf = raw_page(0, [(b"\0" * 9, b"first"), self.SUPER])
        self.refused(tmp_path, [(leaf, 0), (self.over(leaf), 0)], 1)

    def test_a_child_that_reaches_into_its_neighbour(self, tmp_path: Path) -> None:
        leaf = raw_page(0, [self.SUPER, (b"z" * 9, b"far")])
        page = self.over(leaf, (b"m" * 9, b""))
        self.refused(tmp_path, [(leaf, 0), (page, 0)], 1)

    def test_a_header_with_bytes_where_none_are(self, tmp_path: Path) -> None:
        raw_image(tmp_path, [(self.LEAF, 0)], root_level=0)
        host = tmp_path / IMAGE_NAME
        raw = bytearray(host.read_bytes())
        for offset in (192, 4095):
            raw[offset] = 1
            host.write_bytes(raw)
            mac = own_mac(bytes(raw))
            with pytest.raises(FormatError):
                open_image(tmp_path, key=None, expected_mac=mac)
            raw[offset] = 0

    def refused(
        self, folder: Path, pages: list[tuple[bytes, int]], level: int, *, version: int = V2
    ) -> None:
        mac = raw_image(folder, pages, root_level=level, version=version)
        with bounded(), pytest.raises((FormatError, AuthenticationError)):
            open_image(folder, key=None, expected_mac=mac).close()

    @pytest.mark.parametrize(
        "page",
        [
            b"",
            b"\0",
            raw_page(0, []),
            raw_page(1, [SUPER]),
            raw_page(0, [SUPER], zero=1),
            raw_page(0, [SUPER], count=2),
            raw_page(0, [SUPER], count=65535),
            raw_page(0, [SUPER, (b"b" * 9, b"v"), (b"a" * 9, b"v")]),
            raw_page(0, [SUPER, (b"a" * 9, b"v"), (b"a" * 9, b"v")]),
            raw_page(0, [(b"", b"v"), SUPER]),
            raw_page(0, [SUPER]) + b"more",
            struct.pack("<BBH6I", 0, 0, 3, 9, 18, 27, 24, 40, 30)
            + SUPER[0] + b"a" * 9 + b"b" * 9 + SUPER[1] + bytes(6),
            struct.pack("<BBH4I", 0, 0, 2, 0xFFFFFFFF, 1, 1, 1) + b"kkvv",
            struct.pack("<BBH4I", 0, 0, 2, 2, 1, 1, 2) + b"kkvv",
        ],
        ids=[
            "empty", "one byte", "no items", "another level", "a byte that is zero",
            "a count too high", "the highest count", "keys out of order", "the same key twice",
            "an empty key", "bytes behind", "values that overlap", "ends beyond the page",
            "keys that overlap",
        ],
    )  # fmt: skip
    def test_a_malformed_page(self, tmp_path: Path, page: bytes) -> None:
        self.refused(tmp_path, [(page, 0)], 0)

    @pytest.mark.parametrize("level", [1, 12, 13, 255])
    def test_a_level_that_is_not_there(self, tmp_path: Path, level: int) -> None:
        self.refused(tmp_path, [(self.LEAF, 0)], level)

    @pytest.mark.parametrize("value", [b"", b"short", b"\xff" * 56, bytes(56), b"\1" * 57])
    def test_an_interior_page_with_no_pointer_in_it(self, tmp_path: Path, value: bytes) -> None:
        page = raw_page(1, [(ks.key(0, ks.T_SUPER), value)])
        self.refused(tmp_path, [(page, 0)], 1)

    def test_a_deep_chain_of_single_children(self, tmp_path: Path) -> None:
        """As deep as any tree may be; one level more is refused by the header already."""
        items = [
            self.SUPER,
        ]
        page, pages, offset = raw_page(0, items), [], HEADER_BYTES
        for level in range(1, 13):
            pages.append((page, 0))
            digest = hashlib.sha256(page).digest()
            pointer = Pointer(offset, len(page), META_PACK, level - 1, 0, digest).dump()
            offset += len(page)
            page = raw_page(level, [(items[0][0], pointer)])
        pages.append((page, 0))
        mac = raw_image(tmp_path, pages, root_level=12)
        with bounded():
            assert exercise(tmp_path, None, mac)

    @pytest.mark.parametrize(
        "record",
        [
            zstandard.ZstdCompressor().compress(bytes(64 << 20)),
            zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20)),
            zstandard.ZstdCompressor().compress(OLD) + b"more",
            zstandard.ZstdCompressor().compress(OLD) * 2,
            zstandard.ZstdCompressor().compress(OLD)[:-3],
            zstandard.ZstdCompressor().compress(b""),
            b"\x28\xb5\x2f\xfd" + b"\xff" * 40,
            b"\x50\x2a\x4d\x18\xff\xff\xff\x7f" + bytes(20),
            b"not compressed at all",
        ],
        ids=[
            "a bomb", "a bomb of unknown size", "bytes behind", "a second frame", "cut short",
            "nothing", "garbage in the frame", "a skippable frame", "no frame",
        ],
    )  # fmt: skip
    def test_a_hostile_frame(self, tmp_path: Path, record: bytes) -> None:
        with bounded(megabytes=32):
            self.refused(tmp_path, [(record, 1)], 0, version=V1)

    def test_a_frame_that_lies_about_its_size(self, tmp_path: Path) -> None:
        frame = bytearray(zstandard.ZstdCompressor().compress(bytes(600)))
        declared = zstandard.get_frame_parameters(bytes(frame)).content_size
        assert declared == 600
        for value in (0, 1, 599, 601, 65_535):
            lying = bytearray(frame)
            at = lying.index(struct.pack("<H", 600 - 256))
            lying[at : at + 2] = struct.pack("<H", max(value - 256, 0))
            self.refused(tmp_path, [(bytes(lying), 1)], 0, version=V1)

    def test_a_window_of_gigabytes(self, tmp_path: Path) -> None:
        parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
        compressor = zstandard.ZstdCompressor(compression_params=parameters)
        with bounded(megabytes=400):
            record = compressor.compress(bytes(1 << 20) + b"x")
        self.refused(tmp_path, [(record, 1)], 0, version=V1)

    def test_a_dictionary_nobody_has(self, tmp_path: Path) -> None:
        dictionary = zstandard.ZstdCompressionDict(b"words of a dictionary " * 50)
        record = zstandard.ZstdCompressor(dict_data=dictionary).compress(self.OLD * 3)
        self.refused(tmp_path, [(record, 1)], 0, version=V1)

    def test_the_honest_frame_is_read_in_version_1_alone(self, tmp_path: Path) -> None:
        for leaf, version in ((self.OLD, V1), (self.LEAF, V2)):
            page = (FRAME(leaf), 1)
            mac = raw_image(tmp_path, [page], root_level=0, version=version)
            if version == V1:
                open_image(tmp_path, key=None, expected_mac=mac).close()
            else:
                with pytest.raises(FormatError, match="compressed"):
                    open_image(tmp_path, key=None, expected_mac=mac)


class TestGmacForgery:
    """Occlum's integrity-only mode is a tree of GMACs under a key of zeros: whoever knows the key
    chooses one 16-byte block so that the tag stays. Here nothing rests on a tag."""

    @staticmethod
    def _times(one: int, two: int) -> int:
        """Multiply in GF(2^128) as NIST SP 800-38D, 6.3 does."""
        product, factor = 0, two
        for bit in range(127, -1, -1):
            if one >> bit & 1:
                product ^= factor
            factor = (factor >> 1) ^ (0xE1 << 120 if factor & 1 else 0)
        return product

    def _forged(self, content: bytes) -> bytes:
        """Return other content with the same GMAC under the key of zeros."""
        cipher = Cipher(algorithms.AES(bytes(16)), modes.ECB()).encryptor()
        subkey = int.from_bytes(cipher.update(bytes(16)), "big")
        change = int.from_bytes(b"sixteen bytes on", "big")
        mending = self._times(change, subkey)
        blocks = bytearray(content)
        for start, delta in ((0, change), (16, mending)):
            old = int.from_bytes(blocks[start : start + 16], "big")
            blocks[start : start + 16] = (old ^ delta).to_bytes(16, "big")
        return bytes(blocks)

    def test_it_keeps_a_gmac_and_fails_on_our_image(self, source: Path, tmp_path: Path) -> None:
        options = imagebuild.ImageOptions(chunk_size=4096, page_size=4096, zstd_level=0)
        mac = imagebuild.build_image(source, tmp_path, key=None, options=options).root_mac
        content = (source / "file").read_bytes()[:4096]
        forged = self._forged(content)
        assert forged != content
        zero, nonce = AESGCM(bytes(16)), bytes(12)
        assert zero.encrypt(nonce, b"", forged) == zero.encrypt(nonce, b"", content), (
            "the forgery itself must be right"
        )
        host = tmp_path / IMAGE_NAME
        raw = host.read_bytes()
        assert raw.count(content) == 1
        host.write_bytes(raw.replace(content, forged))
        image = open_image(tmp_path, key=None, expected_mac=mac)
        found = image.dirent(ROOT_INO, b"file")
        assert found is not None
        with pytest.raises(AuthenticationError):
            image.read_into(found.ino, 0, memoryview(bytearray(9000)))
        image.close()

    def test_an_integrity_only_image_is_read_without_any_cipher(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mac = imagebuild.build_image(source, tmp_path, key=None).root_mac

        def none(self: RecordCipher, material: bytes) -> None:
            raise AssertionError("a cipher was made")

        monkeypatch.setattr(RecordCipher, "__init__", none)
        image = open_image(tmp_path, key=None, expected_mac=mac)
        found = image.dirent(ROOT_INO, b"file")
        assert found is not None
        assert image.read_into(found.ino, 0, memoryview(bytearray(9000))) == 9000
        image.close()
