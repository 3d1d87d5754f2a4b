# SPDX-License-Identifier: Apache-2.0
"""Compressed records and pieces: bounded, and nothing but one frame that says how long it is.

Above: ``image``. Below: zstandard.

On-disk format of the content of a small file in an image of version 2 (the INLINE item)::

    00  the content as it is
    01  a frame of it

Security: what is read was verified, but an enemy may have made it. The frame declares its length,
which is held against a bound before anything is allocated, and against the outcome.
"""

from __future__ import annotations

from typing import Final, final

import zstandard

from serdab.errors import FormatError

PLAIN: Final = b"\0"
FRAME: Final = b"\1"
_MAX_WINDOW: Final = 1 << 23


@final
class Inflater:
    """Undoes the compression of an image."""

    def __init__(self, *, allowed: bool) -> None:
        """``allowed``: whether the header says that anything is compressed."""
        self._allowed = allowed
        self._inflate = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)

    def record(self, frame: bytes, limit: int) -> bytes:
        """Return what a record of one frame holds, at most ``limit`` bytes.

        Raises:
            FormatError: it is no such record.
        """
        return self._inflated(frame, limit, alone=True)

    def piece(self, record: bytes, position: int, limit: int) -> bytes:
        """Return what the frame holds that begins at ``position`` of a record."""
        return self._inflated(memoryview(record)[position:], limit, alone=False)

    def content(self, stored: bytes, limit: int) -> bytes:
        """Return the content of a small file."""
        mark, rest = stored[:1], stored[1:]
        if mark == FRAME:
            return self._inflated(rest, limit, alone=True)
        if mark != PLAIN or len(rest) > limit:
            raise FormatError("content of an inode that is neither plain nor a frame")
        return rest

    def _inflated(self, frame: bytes | memoryview, limit: int, *, alone: bool) -> bytes:
        if not self._allowed:
            raise FormatError("something is compressed in an image without compression")
        try:
            declared = zstandard.get_frame_parameters(frame).content_size
            if not 0 < declared <= limit:
                raise FormatError("compressed record of an impossible length", found=str(declared))
            raw = self._inflate.decompress(frame, max_output_size=limit, allow_extra_data=not alone)
        except zstandard.ZstdError as exc:
            raise FormatError("compressed record cannot be read", found=str(exc)) from None
        if len(raw) != declared:
            raise FormatError("compressed record lies about its length")
        return raw
