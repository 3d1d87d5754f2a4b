# SPDX-License-Identifier: Apache-2.0
"""The read-only image: header, pointers, key identifiers. Pure.

On-disk format of ``image.sefs`` (integers little-endian)::

    0                 header, 4096 bytes
    4096              data records in packs, then the pages of the tree; nothing follows

    header  0   magic        8   "SEFSIMG\\0"
            8   version      u32 1
            12  mode         u8  1 integrity-only, 2 encrypted
            13  hash         u8  1 SHA-256, 2 BLAKE3
            14  compression  u8  0 none, 1 zstd
            15  root_level   u8
            16  chunk_size   u32 bytes, a power of two, 4 KiB to 1 MiB
            20  page_size    u32 bytes, a power of two, 4 KiB to 1 MiB
            24  total_size   u64 bytes of the file
            32  packs        u32
            36  pages        u32
            40  root         56  pointer of the root page
            96  meta_id      32  key identifier of the pages; zero if integrity-only
            128 key_check    32  covers the header; zero if integrity-only
            160 builder      32  ASCII, "libzstd 1.5.7", zero-padded
            192 zero to the end

    pointer 0   offset       u64 bytes from the start of the file
            8   stored       u32 bytes stored, the tag included
            12  pack         u32 0xffffffff for a page of the tree
            16  number       u32 index within the pack, the nonce
            20  flags        u32 1 zstd
            24  hash         32  of the stored bytes
            56 in all

    extent slot              60  pointer, then u32 position within the record (packed small tails)

Root MAC = H("serdab sefs image v1\\0" || header), H the image's hash.

Security:
    1. Each pointer holds a 256-bit hash of the stored bytes, so the root MAC stands for exactly
       one content even to people who know the key.
    2. A pack's key is derived from a keyed hash of the records that it seals and their parameters,
       so a (key, nonce) pair repeats only for identical input; the same holds for the pages, whose
       identifier covers the stored form of all leaves (interior pages follow from them).
    3. What is authenticated beside the ciphertext is a function of what was hashed:
       (type, flags, number, length), never a path or an inode.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from serdab.crypto.hashes import HashAlgorithm, digest_function
from serdab.errors import FormatError
from serdab.sefs.page import MAX_LEVEL
from serdab.structs import frozen

MAGIC: Final = b"SEFSIMG\0"
VERSION: Final = 1
HEADER_BYTES: Final = 4096
IMAGE_NAME: Final = "image.sefs"
META_PACK: Final = 0xFFFFFFFF
FLAG_ZSTD: Final = 1

_HEADER: Final = struct.Struct("<8sIBBBBIIQII56s32s32s32s")
_POINTER: Final = struct.Struct("<QIIII32s")
SLOT: Final = struct.Struct("<QIIII32sI")
_AAD: Final = struct.Struct("<BBII")
_MAC_LABEL: Final = b"serdab sefs image v1\0"

POINTER_BYTES: Final = _POINTER.size
SLOT_BYTES: Final = SLOT.size
MIN_UNIT: Final = 4096
MAX_UNIT: Final = 1 << 20

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
    """The fields of the header."""

    mode: Mode
    hash: HashAlgorithm
    compression: int
    root_level: int
    chunk_size: int
    page_size: int
    total_size: int
    packs: int
    pages: int
    root: Pointer
    meta_id: bytes
    key_check: bytes
    builder: str

    def dump(self) -> bytes:
        """Return the 4096 bytes."""
        raw = _HEADER.pack(
            MAGIC,
            VERSION,
            self.mode,
            self.hash,
            self.compression,
            self.root_level,
            self.chunk_size,
            self.page_size,
            self.total_size,
            self.packs,
            self.pages,
            self.root.dump(),
            self.meta_id,
            self.key_check,
            self.builder.encode("ascii"),
        )
        return raw + bytes(HEADER_BYTES - len(raw))


def header_mac(raw: bytes, algorithm: HashAlgorithm) -> bytes:
    """Return the root MAC of the header's bytes."""
    return digest_function(algorithm)(_MAC_LABEL + raw)


def _is_unit(size: int) -> bool:
    return MIN_UNIT <= size <= MAX_UNIT and size & (size - 1) == 0


def parse_header(raw: bytes) -> Header:
    """Return the header, strictly checked.

    Raises:
        FormatError: anything is not exactly what format version 1 allows.
    """
    if len(raw) != HEADER_BYTES or raw[:8] != MAGIC:
        raise FormatError(
            "not a sealed image",
            expected="a SEFSIMG header",
            found=repr(raw[:8]) if raw else "an empty file",
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
        packs,
        pages,
        root,
        meta_id,
        key_check,
        builder,
    ) = _HEADER.unpack_from(raw)
    if version != VERSION:
        raise FormatError("unknown format version", expected=str(VERSION), found=str(version))
    if mode not in (1, 2) or algorithm not in (1, 2) or compression not in (0, 1):
        raise FormatError(
            "unknown suite in the image header", found=f"{mode}, {algorithm}, {compression}"
        )
    if not _is_unit(chunk_size) or not _is_unit(page_size) or root_level > MAX_LEVEL:
        raise FormatError("impossible sizes in the image header")
    if any(raw[_HEADER.size :]):
        raise FormatError("bytes set where the image header has none")
    text = builder.rstrip(b"\0")
    if not text.isascii() or b"\0" in text or not text.decode("ascii").isprintable():
        raise FormatError("builder field of the image header is not text")
    header = Header(
        Mode(mode),
        HashAlgorithm(algorithm),
        compression,
        root_level,
        chunk_size,
        page_size,
        total_size,
        packs,
        pages,
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
