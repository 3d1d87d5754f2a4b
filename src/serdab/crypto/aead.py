# SPDX-License-Identifier: Apache-2.0
"""AES-128-GCM (NIST SP 800-38D) under derived keys, one cipher object per derived key.

Security:
    1. A cipher is made from 28 derived bytes: key (16) and IV (12). The nonce of a record is
       IV xor its number, so an attacker who looks for equal nonces across many keys has to guess
       124 more bits.
    2. A number is used once per cipher. Callers keep that promise by construction: writers count
       up and never reuse a salt; read-only images derive the key from a hash of what is sealed.
    3. Nothing is returned when a tag does not verify.
    4. Not covered: a GCM tag binds nothing for somebody who knows the key (hence the 256-bit
       hashes in read-only images).
"""

from __future__ import annotations

from typing import Final, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from serdab.errors import AuthenticationError

TAG_BYTES: Final = 16
MATERIAL_BYTES: Final = 28
Buffer = bytes | bytearray | memoryview


@final
class RecordCipher:
    """Seals and opens numbered records under one derived key."""

    __slots__ = ("_gcm", "_iv")

    def __init__(self, material: bytes) -> None:
        if len(material) != MATERIAL_BYTES:
            raise ValueError("derived material of the wrong length")
        self._gcm = AESGCM(material[:16])
        self._iv = int.from_bytes(material[16:], "big")

    def seal(self, number: int, plain: Buffer, aad: bytes) -> bytes:
        """Return ciphertext and tag."""
        return self._gcm.encrypt((self._iv ^ number).to_bytes(12, "big"), plain, aad)

    def seal_into(self, number: int, plain: Buffer, aad: bytes, out: memoryview) -> None:
        """Write ciphertext and tag to ``out``, whose length is exactly theirs."""
        self._gcm.encrypt_into((self._iv ^ number).to_bytes(12, "big"), plain, aad, out)

    def open_(self, number: int, sealed: Buffer, aad: bytes) -> bytes:
        """Return the plaintext.

        Raises:
            AuthenticationError: the tag does not verify.
        """
        try:
            return self._gcm.decrypt((self._iv ^ number).to_bytes(12, "big"), sealed, aad)
        except InvalidTag:
            raise AuthenticationError("the tag does not verify") from None

    def open_into(self, number: int, sealed: Buffer, aad: bytes, out: memoryview) -> None:
        """Write the plaintext to ``out``, whose length is exactly its.

        Raises:
            AuthenticationError: the tag does not verify; ``out`` then holds nothing of use.
        """
        try:
            self._gcm.decrypt_into((self._iv ^ number).to_bytes(12, "big"), sealed, aad, out)
        except InvalidTag:
            out[:] = bytes(len(out))
            raise AuthenticationError("the tag does not verify") from None
