# SPDX-License-Identifier: Apache-2.0
"""The keys of an encrypted image, by format version. Pure.

Above: ``image``, ``packwriter``. Below: ``crypto``, ``imageformat``.

Security:
    1. Data packs and pages have labels of their own, for the hash that makes an identifier and for
       the key that an identifier makes: no input of the one kind has a key of the other. Version 1
       had one label for both, and is read only.
    2. Who opens an image by its key alone has no root MAC to compare. So the key check covers the
       whole header: were a field not covered, the storage could change it, and another chunk size
       moves every byte of a file.
"""

from __future__ import annotations

from typing import Final, final

from serdab.crypto.aead import RecordCipher
from serdab.crypto.hashes import noise
from serdab.crypto.kdf import KeySchedule
from serdab.keys import Key
from serdab.sefs.imageformat import R_DATA, R_PAGE, V1, V2, without_key_check

_KIND: Final = b"image"
_CIPHERS: Final = {
    V1: {R_DATA: b"image pack", R_PAGE: b"image pack"},
    V2: {R_DATA: b"image data", R_PAGE: b"image pages"},
}
_IDENTITIES: Final = {R_DATA: b"image data identifier", R_PAGE: b"image pages identifier"}


@final
class ImageKeys:
    """All keys of one image."""

    __slots__ = ("_labels", "schedule")

    def __init__(self, key: Key, version: int) -> None:
        self._labels = _CIPHERS[version]
        self.schedule = KeySchedule(key, kind=_KIND, uuid=bytes(16), version=version)

    def cipher(self, kind: int, identifier: bytes) -> RecordCipher:
        """Return the cipher of a data pack (R_DATA) or of the pages (R_PAGE)."""
        return self.schedule.cipher(self._labels[kind], identifier)

    def identity(self, kind: int) -> bytes:
        """Return the key of the hash that makes identifiers of a kind, as version 2 has it."""
        return self.schedule.derive(_IDENTITIES[kind])

    def check(self, header: bytes) -> bytes:
        """Return what tells a wrong key from damage; it commits to key and header."""
        return self.schedule.keyed_hash(b"image key check", without_key_check(header))

    def padding(self, meta_id: bytes, start: int, length: int) -> bytes:
        """Return a part of the padding of an image."""
        return noise(self.schedule.derive(b"image padding", meta_id), start, length)
