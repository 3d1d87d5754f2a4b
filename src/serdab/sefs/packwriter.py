# SPDX-License-Identifier: Apache-2.0
"""Writes the packs of an image: runs of records sealed under one key derived from their content.

Above: ``imagebuild``, ``imagepages``. Below: ``crypto``, ``imageformat``, ``imagekeys``.

Security:
    1. The key of a run comes from a keyed hash over the parameters and, of each record in order,
       flags, length and the exact bytes that are sealed (after compression). So the same
       (key, nonce) never meets two inputs, whatever compressor or version made them. Data packs and
       pages have keys of their own for the hash, and for what is derived from it.
    2. What is compressed comes from one file. Tails of several files that share a record are
       compressed one by one, so that the length of none depends on another.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, final

import zstandard

from serdab.crypto.aead import RecordCipher
from serdab.crypto.hashes import HashAlgorithm, KeyedHasher, digest_function
from serdab.sefs.imageformat import FLAG_PIECE, FLAG_ZSTD, R_DATA, R_PAGE, Pointer, record_aad
from serdab.sefs.imagekeys import ImageKeys
from serdab.structs import frozen

_RECORD: Final = struct.Struct("<BI")
_POINTER_FLAGS: Final = slice(20, 24)
_WORTH: Final = 0.88


class _Compressors(threading.local):
    """A compressor serves one thread at a time: one for each thread and level."""

    def __init__(self) -> None:
        self.by_level: dict[int, zstandard.ZstdCompressor] = {}


_compressors = _Compressors()


@frozen
class Payload:
    """The bytes of a record before they are sealed.

    ``pieces``: where each of the tails in it begins, and whether it is compressed.
    """

    raw: bytes
    flags: int
    pieces: tuple[tuple[int, bool], ...] = ()


def compress(raw: bytes, level: int) -> Payload:
    """Return the payload for ``raw``: compressed if that saves an eighth, and level is not 0."""
    if level:
        compressor = _compressors.by_level.get(level)
        if compressor is None:
            compressor = zstandard.ZstdCompressor(level=level, write_checksum=False)
            _compressors.by_level[level] = compressor
        small = compressor.compress(raw)
        if len(small) <= len(raw) * _WORTH:
            return Payload(small, FLAG_ZSTD)
    return Payload(raw, 0)


def join_pieces(raws: Sequence[bytes], level: int) -> Payload:
    """Return the payload of a record that several tails share, each compressed by itself."""
    stored, pieces, position = [], [], 0
    for raw in raws:
        piece = compress(raw, level)
        stored.append(piece.raw)
        pieces.append((position, piece.flags == FLAG_ZSTD))
        position += len(piece.raw)
    return Payload(b"".join(stored), 0, tuple(pieces))


@final
class Sealer:
    """Seals records, or leaves them in clear in an integrity-only image.

    ``parameters``: of a fixed length, what decides the bytes besides the records.
    """

    def __init__(self, keys: ImageKeys | None, algorithm: HashAlgorithm, parameters: bytes) -> None:
        self._keys = keys
        self._parameters = parameters
        self.digest = digest_function(algorithm)

    def identify_pack(self, payloads: Sequence[Payload]) -> bytes:
        """Return the key identifier of a data pack."""
        return self._identify(R_DATA, (), payloads)

    def identify_pages(self, packs: Sequence[bytes], leaves: Sequence[Payload]) -> bytes:
        """Return the key identifier of the pages, from those of the packs and the leaves."""
        return self._identify(R_PAGE, packs, leaves)

    def _identify(self, kind: int, before: Sequence[bytes], payloads: Sequence[Payload]) -> bytes:
        if self._keys is None:
            return bytes(32)  # nothing is sealed
        hasher = KeyedHasher(self._keys.identity(kind))
        hasher.update(self._parameters)
        hasher.update(struct.pack("<II", len(before), len(payloads)))
        for identifier in before:
            hasher.update(identifier)
        for payload in payloads:
            hasher.update(_RECORD.pack(payload.flags, len(payload.raw)))
            hasher.update(payload.raw)
        return hasher.digest()

    def cipher(self, kind: int, identifier: bytes) -> RecordCipher | None:
        """Return the cipher of a run, None in an integrity-only image."""
        return None if self._keys is None else self._keys.cipher(kind, identifier)

    def seal(self, cipher: RecordCipher | None, kind: int, number: int, payload: Payload) -> bytes:
        """Return the bytes to be stored."""
        if cipher is None:
            return payload.raw
        aad = record_aad(kind, payload.flags, number, len(payload.raw))
        return cipher.seal(number, payload.raw, aad)


@final
class PackWriter:
    """Collects records; :meth:`cut` seals and writes what it has as one pack."""

    def __init__(
        self, fd: int, offset: int, sealer: Sealer, pool: ThreadPoolExecutor, zstd_level: int
    ) -> None:
        self._fd = fd
        self._sealer = sealer
        self._pool = pool
        self._zstd_level = zstd_level
        self._pending: list[Future[Payload]] = []
        self.offset = offset
        self.raw_bytes = 0
        self._pointers: list[bytes] = []
        self._pieces: dict[int, tuple[tuple[int, bool], ...]] = {}
        self.identifiers: list[bytes] = []

    def add(self, raw: bytes) -> int:
        """Add a record; return its number among all records."""
        self.raw_bytes += len(raw)
        return self._add(self._pool.submit(compress, raw, self._zstd_level))

    def add_pieces(self, raws: Sequence[bytes]) -> int:
        """Add a record that several tails share; return its number among all records."""
        self.raw_bytes += sum(map(len, raws))
        return self._add(self._pool.submit(join_pieces, raws, self._zstd_level))

    def _add(self, payload: Future[Payload]) -> int:
        self._pending.append(payload)
        return len(self._pointers) + len(self._pending) - 1

    def slot(self, record: int, piece: int | None) -> bytes:
        """Return the extent slot of a record, or of a piece in it, once its pack is cut."""
        pointer = self._pointers[record]
        if piece is None:
            return pointer + bytes(4)
        position, is_frame = self._pieces[record][piece]
        if is_frame:
            flags = FLAG_PIECE.to_bytes(4, "little")
            pointer = pointer[: _POINTER_FLAGS.start] + flags + pointer[_POINTER_FLAGS.stop :]
        return pointer + position.to_bytes(4, "little")

    def cut(self) -> None:
        """End the pack, if anything is in it."""
        if not self._pending:
            return
        payloads = [future.result() for future in self._pending]
        identifier = self._sealer.identify_pack(payloads)
        cipher = self._sealer.cipher(R_DATA, identifier)
        pack = len(self.identifiers)
        sealed_records = []
        for number, payload in enumerate(payloads):
            sealed = self._sealer.seal(cipher, R_DATA, number, payload)
            pointer = Pointer(
                self.offset, len(sealed), pack, number, payload.flags, self._sealer.digest(sealed)
            )
            if payload.pieces:
                self._pieces[len(self._pointers)] = payload.pieces
            self._pointers.append(pointer.dump())
            self.offset += len(sealed)
            sealed_records.append(sealed)
        self.identifiers.append(identifier)
        joined = b"".join(sealed_records)
        write_at(self._fd, joined, self.offset - len(joined))
        self._pending.clear()
        self.raw_bytes = 0


def write_at(fd: int, raw: bytes, offset: int) -> None:
    """Write all of ``raw`` to a file."""
    view = memoryview(raw)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count
