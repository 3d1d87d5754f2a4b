# SPDX-License-Identifier: Apache-2.0
"""Key derivation: HKDF-SHA256 (RFC 5869), one readable label per derived key.

The labels are part of the on-disk format: a change of any makes old volumes unreadable. They are
frozen by ``tests/vectors``.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from serdab.crypto.aead import MATERIAL_BYTES, RecordCipher
from serdab.keys import Key

_FORMATS: Final = {1: b"serdab sefs v1 ", 2: b"serdab sefs v2 "}
"""By version of the format: no key of one version is a key of another."""


@final
class KeySchedule:
    """All keys of one volume or image, from one user key.

    The extract salt is H(format, kind, uuid), so one user key is safe for an image and a writable
    layer at once.
    """

    __slots__ = ("_format", "_prk")

    def __init__(self, key: Key, *, kind: bytes, uuid: bytes, version: int) -> None:
        self._format = _FORMATS[version]
        salt = hashlib.sha256(self._format + kind + b"\0" + uuid).digest()
        self._prk = hmac.digest(salt, key.raw(), "sha256")

    def derive(self, label: bytes, context: bytes = b"", length: int = 32) -> bytes:
        """Return ``length`` bytes for a label and a context."""
        return HKDFExpand(SHA256(), length, self._format + label + b"\0" + context).derive(
            self._prk
        )

    def cipher(self, label: bytes, context: bytes) -> RecordCipher:
        """Return the record cipher for a label and a context."""
        return RecordCipher(self.derive(label, context, MATERIAL_BYTES))

    def keyed_hash(self, label: bytes, raw: bytes | bytearray | memoryview) -> bytes:
        """Return HMAC-SHA256 of ``raw`` under a key of its own."""
        return hmac.digest(self.derive(label), raw, "sha256")
