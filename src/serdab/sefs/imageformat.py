# SPDX-License-Identifier: Apache-2.0
"""The read-only image: header, pointers, what is authenticated beside a record. Pure.

On-disk format of ``image.sefs`` (integers little-endian)::

    0                 header, 4096 bytes
    4096              data records in packs, then padding, then the pages of the tree;
                      nothing follows

    header  0   magic        8   "SEFSIMG\\0"
            8   version      u32 2; 1 is read
            12  mode         u8  1 integrity-only, 2 encrypted
            13  hash         u8  1 SHA-256, 2 BLAKE3
            14  compression  u8  0 none, 1 zstd
            15  root_level   u8
            16  chunk_size   u32 bytes, a power of two, 4 KiB to 1 MiB
            20  page_size    u32 bytes, a power of two, 4 KiB to 1 MiB
            24  total_size   u64 bytes of the file
            32  padding      u32 total_size is a multiple of it: 0, or a power of two, 4 KiB to
                             1 GiB, of an encrypted image (version 1: number of packs)
            36  zero         u32 (version 1: number of pages)
            40  root         56  pointer of the root page
            96  meta_id      32  key identifier of the pages; zero if integrity-only
            128 key_check    32  covers the header; zero if integrity-only
            160 builder      32  ASCII, "libzstd 1.5.7", zero-padded; zero without compression
            192 zero to the end

    pointer 0   offset       u64 bytes from the start of the file
            8   stored       u32 bytes stored, the tag included
            12  pack         u32 0xffffffff for a page of the tree
            16  number       u32 index within the pack, the nonce
            20  flags        u32 1 zstd; 2, of an extent: its piece of the record is zstd
            24  hash         32  of the stored bytes
            56 in all

    extent slot              60  pointer, then u32 position within the record (packed small tails)

Root MAC = H("serdab sefs image vN\\0" || header), N the version, H the image's hash.

Security:
    1. Each pointer holds a 256-bit hash of the stored bytes, so the root MAC stands for exactly
       one content even to people who know the key.
    2. A pack's key is derived from a keyed hash of the records that it seals and their parameters,
       so a (key, nonce) pair repeats only for identical input; the same holds for the pages, whose
       identifier covers the stored form of all leaves (interior pages follow from them). Hash and
       key of the two kinds have labels of their own: version 1 had one label for both, and so one
       key for pages and a pack of the same bytes.
    3. What is authenticated beside the ciphertext is a function of what was hashed:
       (type, flags, number, length), never a path or an inode.
    4. What is compressed comes from one file. Pages hold names, attributes and small content of
       many, and so does a record that small tails share: they are not compressed as a whole.
       (Version 1 did, and the size of an image told whether a guess beside a secret was right.)
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from serdab.crypto.hashes import HashAlgorithm, digest_function
from serdab.errors import FormatError
from serdab.sefs.page import MAX_LEVEL
from serdab.structs import frozen, replace

MAGIC: Final = b"SEFSIMG\0"
V1: Final = 1
V2: Final = 2
HEADER_BYTES: Final = 4096
IMAGE_NAME: Final = "image.sefs"
META_PACK: Final = 0xFFFFFFFF
FLAG_ZSTD: Final = 1
FLAG_PIECE: Final = 2

_HEADER: Final = struct.Struct("<8sIBBBBIIQII56s32s32s32s")
_KEY_CHECK: Final = slice(128, 160)
_POINTER: Final = struct.Struct("<QIIII32s")
SLOT: Final = struct.Struct("<QIIII32sI")
_AAD: Final = struct.Struct("<BBII")
_MAC_LABELS: Final = {V1: b"serdab sefs image v1\0", V2: b"serdab sefs image v2\0"}

POINTER_BYTES: Final = _POINTER.size
SLOT_BYTES: Final = SLOT.size
MIN_UNIT: Final = 4096
MAX_UNIT: Final = 1 << 20
MAX_PADDING: Final = 1 << 30

R_DATA: Final = 1
R_PAGE: Final = 2


class Mode(IntEnum):
    """Numbers as they stand in the header."""

    INTEGRITY = 1
    ENCRYPTED = 2


@frozen
class Pointer:
    """Where a record lies and what it must hash to."""

    offset: int
    stored: int
    pack: int
    number: int
    flags: int
    digest: bytes

    def dump(self) -> bytes:
        return _POINTER.pack(
            self.offset, self.stored, self.pack, self.number, self.flags, self.digest
        )


def parse_pointer(raw: bytes) -> Pointer:
    """Return a pointer, its fields checked."""
    if len(raw) != POINTER_BYTES:
        raise FormatError("pointer of the wrong length", found=str(len(raw)))
    pointer = Pointer(*_POINTER.unpack(raw))
    if pointer.flags & ~FLAG_ZSTD or pointer.offset < HEADER_BYTES:
        raise FormatError("pointer with an impossible field")
    return pointer


@frozen
class Header:
    """The fields of the header. ``padding`` is 0 in version 1."""

    version: int
    mode: Mode
    hash: HashAlgorithm
    compression: int
    root_level: int
    chunk_size: int
    page_size: int
    total_size: int
    padding: int
    root: Pointer
    meta_id: bytes
    key_check: bytes
    builder: str

    def dump(self) -> bytes:
        """Return the 4096 bytes; of version 1 with counts of zero."""
        raw = _HEADER.pack(
            MAGIC,
            self.version,
            self.mode,
            self.hash,
            self.compression,
            self.root_level,
            self.chunk_size,
            self.page_size,
            self.total_size,
            self.padding,
            0,
            self.root.dump(),
            self.meta_id,
            self.key_check,
            self.builder.encode("ascii"),
        )
        return raw + bytes(HEADER_BYTES - len(raw))

    def with_key_check(self, check: bytes) -> Header:
        """Return the header with its last field filled in."""
        return replace(self, key_check=check)


def header_mac(raw: bytes, header: Header) -> bytes:
    """Return the root MAC of the header's bytes."""
    return digest_function(header.hash)(_MAC_LABELS[header.version] + raw)


def without_key_check(raw: bytes) -> bytes:
    """Return the header's bytes with zeros for the key check: what the check covers."""
    return raw[: _KEY_CHECK.start] + bytes(32) + raw[_KEY_CHECK.stop :]


def is_unit(size: int) -> bool:
    """Return whether chunks, records and pages may have this size."""
    return MIN_UNIT <= size <= MAX_UNIT and size & (size - 1) == 0


def is_padding(size: int) -> bool:
    """Return whether the size of an image may be made a multiple of this."""
    return MIN_UNIT <= size <= MAX_PADDING and size & (size - 1) == 0


def _found_instead(raw: bytes) -> str:
    """Return what there is where a header should be."""
    if not raw:
        return "an empty file"
    if len(raw) < HEADER_BYTES and raw[:8] == MAGIC[: len(raw)]:
        return f"the first {len(raw)} of its {HEADER_BYTES} bytes: the file was cut"
    return repr(raw[:8])


def parse_header(raw: bytes) -> Header:
    """Return the header, strictly checked.

    Raises:
        FormatError: anything is not exactly what its format version allows.
    """
    if len(raw) != HEADER_BYTES or raw[:8] != MAGIC:
        raise FormatError(
            "not a sealed image",
            expected="a SEFSIMG header",
            found=_found_instead(raw),
        )
    (
        _,
        version,
        mode,
        algorithm,
        compression,
        root_level,
        chunk_size,
        page_size,
        total_size,
        padding,
        zero,
        root,
        meta_id,
        key_check,
        builder,
    ) = _HEADER.unpack_from(raw)
    if version not in _MAC_LABELS:
        raise FormatError("unknown format version", expected=f"{V1} or {V2}", found=str(version))
    if mode not in (1, 2) or algorithm not in (1, 2) or compression not in (0, 1):
        raise FormatError(
            "unknown suite in the image header", found=f"{mode}, {algorithm}, {compression}"
        )
    if not is_unit(chunk_size) or not is_unit(page_size) or root_level > MAX_LEVEL:
        raise FormatError("impossible sizes in the image header")
    if any(raw[_HEADER.size :]) or (zero and version != V1):
        raise FormatError("bytes set where the image header has none")
    if version == V1:
        padding = 0  # the number of packs, which nothing rests on
    elif padding and (not is_padding(padding) or total_size % padding or mode == Mode.INTEGRITY):
        raise FormatError("impossible padding in the image header", found=str(padding))
    text = builder.rstrip(b"\0")
    if not text.isascii() or b"\0" in text or not text.decode("ascii").isprintable():
        raise FormatError("builder field of the image header is not text")
    header = Header(
        version,
        Mode(mode),
        HashAlgorithm(algorithm),
        compression,
        root_level,
        chunk_size,
        page_size,
        total_size,
        padding,
        parse_pointer(root),
        meta_id,
        key_check,
        text.decode("ascii"),
    )
    if mode == Mode.INTEGRITY and (any(meta_id) or any(key_check)):
        raise FormatError("key fields in an integrity-only image")
    return header


def record_aad(kind: int, flags: int, number: int, stored: int) -> bytes:
    """Return what is authenticated beside a record."""
    return _AAD.pack(kind, flags, number, stored)
