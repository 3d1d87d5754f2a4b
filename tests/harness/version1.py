# SPDX-License-Identifier: Apache-2.0
"""Builds images of format version 1, which the product reads and no longer makes.

Its bytes are those that the product made: ``tests/vectors`` compares them with the golden ones.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import cast

import pytest
import zstandard

from serdab.crypto.aead import RecordCipher
from serdab.crypto.hashes import KeyedHasher, digest_function
from serdab.keys import Key
from serdab.sefs import imagebuild
from serdab.sefs import keyspace as ks
from serdab.sefs.imagebuild import ImageInfo, ImageOptions
from serdab.sefs.imageformat import (
    META_PACK,
    R_DATA,
    R_PAGE,
    V1,
    Header,
    Mode,
    Pointer,
    header_mac,
    parse_header,
    parse_pointer,
    record_aad,
)
from serdab.sefs.imagekeys import ImageKeys
from serdab.sefs.imagewalk import Source, SourceEntry
from serdab.sefs.packwriter import PackWriter, Payload, Sealer, compress, write_at
from serdab.sefs.page import Item, dump_page, split_items


class _Sealer:
    """One label for all keys, and all records identified as file data."""

    def __init__(self, keys: ImageKeys | None, options: ImageOptions) -> None:
        self._keys = keys
        self._parameters = struct.pack(
            "<IIBB", options.chunk_size, options.page_size, options.hash, options.zstd_level
        )
        self.digest = digest_function(options.hash)

    def identify_pack(self, payloads: Sequence[Payload]) -> bytes:
        return self.identify_pages((), payloads)

    def identify_pages(self, packs: Sequence[bytes], leaves: Sequence[Payload]) -> bytes:
        if self._keys is None:
            return bytes(32)
        hasher = KeyedHasher(self._keys.schedule.derive(b"image content"))
        hasher.update(self._parameters + struct.pack("<II", len(packs), len(leaves)))
        for identifier in packs:
            hasher.update(identifier)
        for leaf in leaves:
            hasher.update(struct.pack("<BBI", R_DATA, leaf.flags, len(leaf.raw)))
            hasher.update(leaf.raw)
        return hasher.digest()

    def cipher(self, kind: int, identifier: bytes) -> RecordCipher | None:
        return None if self._keys is None else self._keys.cipher(kind, identifier)

    def seal(self, cipher: RecordCipher | None, kind: int, number: int, payload: Payload) -> bytes:
        if cipher is None:
            return payload.raw
        aad = record_aad(kind, payload.flags, number, len(payload.raw))
        return cipher.seal(number, payload.raw, aad)


class Version1Builder(imagebuild._Builder):
    """Tails that share a record, and the items of a leaf, are compressed as one."""

    def __init__(
        self,
        fd: int,
        pool: ThreadPoolExecutor,
        key: Key | None,
        options: ImageOptions,
        progress: Callable[[int], None] | None,
    ) -> None:
        super().__init__(fd, pool, key, options, progress)
        self._keys = None if key is None else ImageKeys(key, V1)
        self._old = _Sealer(self._keys, options)
        self._sealer = cast(Sealer, self._old)
        self._packs = PackWriter(fd, self._packs.offset, self._sealer, pool, options.zstd_level)

    def _inline(self, content: bytes) -> bytes:
        return content

    def _flush_tail(self) -> None:
        if not self._tails:
            return
        record = self._packs.add(b"".join(self._tails))
        edges = [sum(map(len, self._tails[:count])) for count in range(len(self._tails))]
        self._packs._pieces[record] = tuple((edge, False) for edge in edges)
        for piece, (content, chunk) in enumerate(self._tail_slots):
            content.slots[chunk] = (record, piece)
        self._tails, self._tail_slots, self._tail_bytes = [], [], 0

    def _items(self, source: Source, entries: list[SourceEntry]) -> list[Item]:
        items = super()._items(source, entries)
        items = [(k, v[:-8] + bytes(8) if k[8] == ks.T_INODE else v) for k, v in items]
        super_value = ks.SUPER_V1.pack(len(entries), len(entries), self._content_bytes)
        return [*items, (ks.key(0, ks.T_SUPER), super_value)]

    def _finish(self, items: list[Item], files: int) -> ImageInfo:
        level = number = 0
        offset, packs = self._packs.offset, self._packs.identifiers
        options, meta_id = self._options, bytes(32)
        while True:
            runs = split_items(items, options.page_size)
            zstd_level = 0 if level else options.zstd_level
            payloads = [compress(dump_page(level, run), zstd_level) for run in runs]
            if level == 0:
                meta_id = self._old.identify_pages(packs, payloads)
                cipher = self._old.cipher(R_PAGE, meta_id)
            stored: list[Item] = []
            for run, payload in zip(runs, payloads, strict=True):
                sealed = self._old.seal(cipher, R_PAGE, number, payload)
                write_at(self._fd, sealed, offset)
                where = Pointer(
                    offset, len(sealed), META_PACK, number, payload.flags, self._old.digest(sealed)
                )
                stored.append((run[0][0], where.dump()))
                offset, number = offset + len(sealed), number + 1
            if len(stored) == 1:
                break
            items, level = stored, level + 1
        header = Header(
            V1, Mode.INTEGRITY if self._keys is None else Mode.ENCRYPTED, options.hash,
            int(options.zstd_level > 0), level, options.chunk_size, options.page_size, offset, 0,
            parse_pointer(stored[0][1]), meta_id, bytes(32),
            "libzstd " + ".".join(map(str, zstandard.ZSTD_VERSION)),
        )  # fmt: skip
        raw = with_counts(header.dump(), len(packs), number)
        if self._keys is not None:
            header = header.with_key_check(self._keys.check(raw))
            raw = with_counts(header.dump(), len(packs), number)
        parse_header(raw)
        write_at(self._fd, raw, 0)
        return ImageInfo(header_mac(raw, header), files, self._content_bytes, offset)


def with_counts(header: bytes, packs: int, pages: int) -> bytes:
    """Return a header with the two counts that version 1 has."""
    return header[:32] + struct.pack("<II", packs, pages) + header[40:]


@contextmanager
def building_version_1(builder: type[imagebuild._Builder] = Version1Builder) -> Iterator[None]:
    """Let ``build_image`` make version 1 while this lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagebuild, "_Builder", builder)
        yield
