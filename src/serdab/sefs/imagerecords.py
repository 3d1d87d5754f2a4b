# SPDX-License-Identifier: Apache-2.0
"""Fetches the records of an image: each is checked against its hash, opened, inflated.

Above: ``image``. Below: ``imagekeys``, ``inflate``, ``hostdir``.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final, NamedTuple, final

from serdab.crypto.aead import TAG_BYTES, RecordCipher
from serdab.crypto.hashes import digest_function
from serdab.errors import AuthenticationError, FormatError
from serdab.sefs.cache import ByteCache
from serdab.sefs.hostdir import File, read_exact
from serdab.sefs.imageformat import (
    FLAG_PIECE,
    FLAG_ZSTD,
    R_DATA,
    R_PAGE,
    V1,
    Header,
    Pointer,
    record_aad,
)
from serdab.sefs.imagekeys import ImageKeys
from serdab.sefs.inflate import Inflater
from serdab.sefs.page import MAX_PAGE_BYTES

_CACHE: Final = 8 << 20
_WHOLE: Final = -1
_MAX_CIPHERS: Final = 4096
_UNIT: Final = 1 << 20


class Extent(NamedTuple):
    """A slot of an EXTENTS item."""

    offset: int
    stored: int
    pack: int
    number: int
    flags: int
    digest: bytes
    position: int


@final
class ImageRecords:
    """The records of one image. ``identifier`` gives the key identifier of a data pack."""

    def __init__(
        self,
        file: File,
        header: Header,
        keys: ImageKeys | None,
        identifier: Callable[[int], bytes],
    ) -> None:
        self._file = file
        self._header = header
        self._keys = keys
        self._identifier = identifier
        self._digest = digest_function(header.hash)
        self._pages_cipher = None if keys is None else keys.cipher(R_PAGE, header.meta_id)
        self._ciphers: dict[int, RecordCipher] = {}
        # By offset; what is compressed by itself within a record, by its position there as well.
        self._plain: ByteCache[tuple[int, int], bytes] = ByteCache(_CACHE)
        self._scratch = bytearray(max(header.chunk_size, header.page_size) + TAG_BYTES)
        self.inflater = Inflater(allowed=header.compression != 0 or header.version == V1)

    def _cipher(self, pack: int) -> RecordCipher | None:
        """Return the cipher of a data pack, None in an integrity-only image."""
        if self._keys is None:
            return None
        cipher = self._ciphers.get(pack)
        if cipher is None:
            identifier = self._identifier(pack)
            if len(self._ciphers) > _MAX_CIPHERS:
                self._ciphers.clear()
            cipher = self._ciphers[pack] = self._keys.cipher(R_DATA, identifier)
        return cipher

    def _fetch(self, offset: int, stored: int, digest: bytes, limit: int) -> memoryview:
        """Return the stored bytes, verified, in a buffer that the next call reuses."""
        if stored > limit + TAG_BYTES or stored == 0:
            raise FormatError("record of an impossible length", found=str(stored))
        if offset > self._header.total_size:
            raise FormatError("record beyond the end of the image")
        if stored > len(self._scratch):
            self._scratch = bytearray(stored)
        view = memoryview(self._scratch)[:stored]
        if self._file.pread_into(view, offset) != stored:
            raise AuthenticationError("the image ends before the record does")
        if not hmac.compare_digest(self._digest(view), digest):
            raise AuthenticationError("stored bytes do not match their hash")
        return view

    def _unsealed(
        self, cipher: RecordCipher | None, kind: int, number: int, flags: int, view: memoryview
    ) -> bytes:
        if cipher is None:
            return bytes(view)
        if len(view) <= TAG_BYTES:
            raise FormatError("record too short for its tag")
        return cipher.open_(number, view, record_aad(kind, flags, number, len(view) - TAG_BYTES))

    def page(self, where: Pointer) -> bytes:
        """Return the bytes of a page of the tree.

        Raises:
            AuthenticationError, FormatError: it is damaged, or was never made by a builder.
        """
        view = self._fetch(where.offset, where.stored, where.digest, MAX_PAGE_BYTES)
        plain = self._unsealed(self._pages_cipher, R_PAGE, where.number, where.flags, view)
        return self.inflater.record(plain, MAX_PAGE_BYTES) if where.flags else plain

    def read(self, extent: Extent, size: int, whole: int, skip: int, out: memoryview) -> None:
        """Read a part of one record of a file into ``out``; zeros follow what it holds.

        ``size``: of the file's records; ``whole``: how much of the file this one is; ``skip``:
        how much of that comes before what is wanted.
        """
        within = extent.position if extent.flags & FLAG_PIECE else _WHOLE
        plain = self._plain.get((extent.offset, within))
        if plain is None:
            if len(out) == whole and self._read_direct(extent, out):
                return
            plain = self._record(extent, max(size, self._header.chunk_size))
            if extent.flags & FLAG_PIECE:
                plain = self.inflater.piece(plain, extent.position, size)
                self._plain.put((extent.offset, within), plain, len(plain))
        start = skip if extent.flags & FLAG_PIECE else extent.position + skip
        part = plain[start : start + len(out)]
        out[: len(part)] = part
        if len(part) < len(out):
            out[len(part) :] = bytes(len(out) - len(part))

    def _read_direct(self, extent: Extent, out: memoryview) -> bool:
        """Open a record right into ``out`` if it is all that is wanted; return whether it was."""
        tag = TAG_BYTES if self._keys is not None else 0
        if extent.flags or extent.position or extent.stored != len(out) + tag:
            return False
        cipher = self._cipher(extent.pack)
        view = self._fetch(extent.offset, extent.stored, extent.digest, len(out))
        if cipher is None:
            out[:] = view
        else:
            cipher.open_into(
                extent.number, view, record_aad(R_DATA, 0, extent.number, len(out)), out
            )
        return True

    def _record(self, extent: Extent, limit: int) -> bytes:
        """Return the plaintext of a data record, which is kept for the next reader."""
        plain = self._plain.get((extent.offset, _WHOLE))
        if plain is None:
            # The cipher first: finding it may read a page, which reuses the buffer.
            cipher = self._cipher(extent.pack)
            view = self._fetch(extent.offset, extent.stored, extent.digest, limit)
            flags = extent.flags & FLAG_ZSTD
            plain = self._unsealed(cipher, R_DATA, extent.number, flags, view)
            if flags:
                plain = self.inflater.record(plain, limit)
            self._plain.put((extent.offset, _WHOLE), plain, len(plain))
        return plain

    def check_padding(self, offset: int, length: int) -> None:
        """Verify bytes that nothing refers to.

        Raises:
            AuthenticationError: they are not what was sealed.
        """
        if self._keys is None:
            return  # an integrity-only image has none: its header says so
        for start in range(0, length, _UNIT):
            count = min(_UNIT, length - start)
            expected = self._keys.padding(self._header.meta_id, start, count)
            if read_exact(self._file, count, offset + start) != expected:
                raise AuthenticationError("the padding was changed")
