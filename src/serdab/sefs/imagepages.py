# SPDX-License-Identifier: Apache-2.0
"""Writes the second half of an image: padding, the pages of its tree, the header.

Above: ``imagebuild``. Below: ``packwriter``, ``page``, ``imageformat``, ``imagekeys``.

Pages are stored as they are, so how long all of them are follows from the lengths of the items
alone, and where the padding ends is known before the item that says so is written.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import zstandard

from serdab.crypto.aead import TAG_BYTES
from serdab.crypto.hashes import HashAlgorithm
from serdab.sefs import keyspace as ks
from serdab.sefs.imageformat import (
    META_PACK,
    POINTER_BYTES,
    R_PAGE,
    V2,
    Header,
    Mode,
    Pointer,
    header_mac,
    parse_header,
    parse_pointer,
)
from serdab.sefs.imagekeys import ImageKeys
from serdab.sefs.packwriter import Payload, Sealer, write_at
from serdab.sefs.page import Item, dump_page, page_bytes, split_items
from serdab.structs import frozen

_NO_KEY: Final = bytes(32)
_UNIT: Final = 1 << 20


@frozen
class Parameters:
    """What, beside the tree and the key, decides the bytes. Sizes in bytes."""

    chunk_size: int
    page_size: int
    hash: HashAlgorithm
    zstd_level: int
    padding: int

    def dump(self) -> bytes:
        """Return what a key identifier covers: all but the padding, which the pages tell of."""
        return struct.pack("<IIBB", self.chunk_size, self.page_size, self.hash, self.zstd_level)


class PageWriter:
    """Writes what follows the data records, and then the header."""

    def __init__(
        self, fd: int, keys: ImageKeys | None, sealer: Sealer, parameters: Parameters
    ) -> None:
        self._fd = fd
        self._keys = keys
        self._sealer = sealer
        self._parameters = parameters

    def write(
        self, items: list[Item], *, inodes: int, content_bytes: int, offset: int,
        packs: Sequence[bytes],
    ) -> tuple[bytes, int]:  # fmt: skip
        """Write all of it, from ``offset`` on; return the root MAC and the size of the image.

        ``items`` are sorted, without the one that tells of the image as a whole.
        """
        padding = self._padding(items, offset)
        value = ks.SUPER.pack(inodes, inodes, content_bytes, offset if padding else 0, padding)
        items.insert(0, (ks.key(0, ks.T_SUPER), value))
        items.sort()
        start = offset + padding
        root, level, meta_id, end = self._pages(items, start, packs)
        self._write_padding(meta_id, offset, padding)
        return self._header(root, level, meta_id, end), end

    def _padding(self, items: list[Item], offset: int) -> int:
        unit = self._parameters.padding
        if not unit or self._keys is None:
            return 0
        whole = [*items, (ks.key(0, ks.T_SUPER), bytes(ks.SUPER.size))]
        whole.sort()
        return -(offset + self._stored_bytes(whole)) % unit

    def _stored_bytes(self, items: Sequence[Item]) -> int:
        """Return how long all pages over these items are."""
        total = 0
        while True:
            runs = split_items(items, self._parameters.page_size)
            total += sum(page_bytes(run) + TAG_BYTES for run in runs)
            if len(runs) == 1:
                return total
            items = [(run[0][0], bytes(POINTER_BYTES)) for run in runs]

    def _pages(
        self, items: Sequence[Item], offset: int, packs: Sequence[bytes]
    ) -> tuple[Pointer, int, bytes, int]:
        """Return pointer and level of the root, key identifier of the pages, and where they end."""
        level = number = 0
        meta_id = b""
        while True:
            runs = split_items(items, self._parameters.page_size)
            payloads = [Payload(dump_page(level, run), 0) for run in runs]
            if level == 0:
                meta_id = self._sealer.identify_pages(packs, payloads)
                cipher = self._sealer.cipher(R_PAGE, meta_id)
            stored: list[Item] = []
            for run, payload in zip(runs, payloads, strict=True):
                sealed = self._sealer.seal(cipher, R_PAGE, number, payload)
                write_at(self._fd, sealed, offset)
                digest = self._sealer.digest(sealed)
                where = Pointer(offset, len(sealed), META_PACK, number, 0, digest)
                stored.append((run[0][0], where.dump()))
                offset += len(sealed)
                number += 1
            if len(stored) == 1:
                return parse_pointer(stored[0][1]), level, meta_id, offset
            items, level = stored, level + 1

    def _write_padding(self, meta_id: bytes, offset: int, length: int) -> None:
        if self._keys is None:
            return
        for start in range(0, length, _UNIT):
            raw = self._keys.padding(meta_id, start, min(_UNIT, length - start))
            write_at(self._fd, raw, offset + start)

    def _header(self, root: Pointer, level: int, meta_id: bytes, total: int) -> bytes:
        """Write the header; return the root MAC."""
        made = self._parameters
        compressed = made.zstd_level > 0
        header = Header(
            V2,
            Mode.INTEGRITY if self._keys is None else Mode.ENCRYPTED,
            made.hash,
            int(compressed),
            level,
            made.chunk_size,
            made.page_size,
            total,
            0 if self._keys is None else made.padding,
            root,
            meta_id,
            _NO_KEY,
            "libzstd " + ".".join(map(str, zstandard.ZSTD_VERSION)) if compressed else "",
        )
        raw = header.dump()
        if self._keys is not None:
            raw = header.with_key_check(self._keys.check(raw)).dump()
        parse_header(raw)  # what is written must be what the reader accepts
        write_at(self._fd, raw, 0)
        return header_mac(raw, header)
