# SPDX-License-Identifier: Apache-2.0
"""The 256-bit hashes that measurements are made of.

``sha256`` (FIPS 180-4) and ``blake3`` (the BLAKE3 paper, 2020). Which one an image uses stands in
its header, under the root MAC; no other value is accepted.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from blake3 import blake3

DIGEST_BYTES: Final = 32


class HashAlgorithm(IntEnum):
    """Numbers as they stand in an image header."""

    SHA256 = 1
    BLAKE3 = 2


def _sha256(raw: bytes | bytearray | memoryview) -> bytes:
    return hashlib.sha256(raw).digest()


def _blake3(raw: bytes | bytearray | memoryview) -> bytes:
    return blake3(raw).digest()


_DIGESTS: Final[dict[HashAlgorithm, Callable[[bytes | bytearray | memoryview], bytes]]] = {
    HashAlgorithm.SHA256: _sha256,
    HashAlgorithm.BLAKE3: _blake3,
}


def digest_function(
    algorithm: HashAlgorithm,
) -> Callable[[bytes | bytearray | memoryview], bytes]:
    """Return the function from bytes to 32 bytes."""
    return _DIGESTS[algorithm]


@functools.lru_cache(maxsize=512)
def name_hash(name: bytes) -> int:
    """Return the 63-bit position of a name in its directory, never below 16.

    Not keyed: both layers of a union must agree on it. Nothing rests on its being free of
    collisions; a listing never ends a batch between two names of one position. Both layers ask for
    it, and the kernel looks a name up before it makes it: hence the cache.
    """
    position = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1
    return position if position > 16 else 16


class KeyedHasher:
    """Incremental keyed BLAKE3 (32-byte key, 32-byte result)."""

    __slots__ = ("_state",)

    def __init__(self, key: bytes) -> None:
        self._state = blake3(key=key)

    def update(self, raw: bytes | bytearray | memoryview) -> None:
        """Add bytes."""
        self._state.update(raw)

    def digest(self) -> bytes:
        """Return the 32 bytes."""
        return self._state.digest()


def content_id(raw: bytes | bytearray | memoryview) -> bytes:
    """Return a 32-byte identity of content, for finding equal chunks; never stored."""
    return blake3(raw).digest()


def noise(key: bytes, start: int, length: int) -> bytes:
    """Return a part of the endless output of BLAKE3 under a 32-byte key: random to all others."""
    return blake3(key=key).digest(length=length, seek=start)
