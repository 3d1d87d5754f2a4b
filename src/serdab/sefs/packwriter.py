# SPDX-License-Identifier: Apache-2.0
"""Writes the packs of an image: runs of records sealed under one key derived from their content.

Above: ``imagebuild``. Below: ``crypto``, ``imageformat``.

Security: the key of a pack comes from a keyed hash over the parameters and, of each record in
order, type, flags, length and the exact bytes that are sealed (after compression). So the same
(key, nonce) never meets two inputs, whatever compressor or version made them.
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
from serdab.crypto.kdf import KeySchedule
from serdab.sefs.image import pack_cipher
from serdab.sefs.imageformat import FLAG_ZSTD, R_DATA, Pointer, record_aad
from serdab.structs import frozen

_RECORD: Final = struct.Struct("<BBI")
_WORTH: Final = 0.88


class _Compressors(threading.local):
    """A compressor serves one thread at a time: one for each thread and level."""

    def __init__(self) -> None:
        self.by_level: dict[int, zstandard.ZstdCompressor] = {}


_compressors = _Compressors()


@frozen
class Payload:
    """The bytes of a record before they are sealed."""

    raw: bytes
    flags: int


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


@final
class Sealer:
    """Seals records, or leaves them in clear in an integrity-only image."""

    def __init__(
        self, keys: KeySchedule | None, algorithm: HashAlgorithm, parameters: bytes
    ) -> None:
        self._keys = keys
        self._parameters = parameters
        self._hash_key = keys.derive(b"image content") if keys is not None else bytes(32)
        self.digest = digest_function(algorithm)

    def identify(self, payloads: Sequence[Payload], before: Sequence[bytes] = ()) -> bytes:
        """Return the key identifier of a run of records."""
        hasher = KeyedHasher(self._hash_key)
        hasher.update(self._parameters)
        hasher.update(struct.pack("<II", len(before), len(payloads)))
        for identifier in before:
            hasher.update(identifier)
        for payload in payloads:
            hasher.update(_RECORD.pack(R_DATA, payload.flags, len(payload.raw)))
            hasher.update(payload.raw)
        return hasher.digest()

    def cipher(self, identifier: bytes) -> RecordCipher | None:
        """Return the cipher of a run, None in an integrity-only image."""
        return None if self._keys is None else pack_cipher(self._keys, identifier)

    def seal(self, cipher: RecordCipher | None, kind: int, number: int, payload: Payload) -> bytes:
        """Return the bytes to be stored."""
        if cipher is None:
            return payload.raw
        aad = record_aad(kind, payload.flags, number, len(payload.raw))
        return cipher.seal(number, payload.raw, aad)


@final
class PackWriter:
    """Collects records; :meth:`cut` seals and writes what it has as one pack.

    ``pointers[record]`` is the dumped pointer of a record once its pack is cut.
    """

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
        self.pointers: list[bytes] = []
        self.identifiers: list[bytes] = []

    def add(self, raw: bytes) -> int:
        """Add a record; return its index in ``pointers``."""
        self._pending.append(self._pool.submit(compress, raw, self._zstd_level))
        self.raw_bytes += len(raw)
        return len(self.pointers) + len(self._pending) - 1

    def cut(self) -> None:
        """End the pack, if anything is in it."""
        if not self._pending:
            return
        payloads = [future.result() for future in self._pending]
        identifier = self._sealer.identify(payloads)
        cipher = self._sealer.cipher(identifier)
        pack = len(self.identifiers)
        sealed_records = []
        for number, payload in enumerate(payloads):
            sealed = self._sealer.seal(cipher, R_DATA, number, payload)
            pointer = Pointer(
                self.offset, len(sealed), pack, number, payload.flags, self._sealer.digest(sealed)
            )
            self.pointers.append(pointer.dump())
            self.offset += len(sealed)
            sealed_records.append(sealed)
        self.identifiers.append(identifier)
        joined = memoryview(b"".join(sealed_records))
        start = self.offset - len(joined)
        while joined:
            count = os.pwrite(self._fd, joined, start)
            joined, start = joined[count:], start + count
        self._pending.clear()
        self.raw_bytes = 0
