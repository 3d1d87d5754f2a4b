# SPDX-License-Identifier: Apache-2.0
"""Where the tree pages of a volume live, and the table of its segments.

Above: ``volume``. Below: ``segment``, ``page``.

On-disk format of the segment table: ``segment u32 | used u32 | live u32`` per segment, ascending.
"""

from __future__ import annotations

import struct
from typing import Final, final

from serdab.errors import AuthenticationError, FormatError
from serdab.sefs.cache import ByteCache
from serdab.sefs.page import MAX_PAGE_BYTES, Page, parse_page
from serdab.sefs.segment import POINTER, SegmentStore, Usage, Writer, page_aad, plain_length

_CACHE: Final = 48 << 20
_ENTRY: Final = struct.Struct("<III")


@final
class VolumePages:
    """Implements the page store and sink of ``tree`` over segments."""

    def __init__(self, segments: SegmentStore) -> None:
        self._segments = segments
        self.writer: Writer = segments.writer()
        self._stored: list[bytes] = []
        self._freed: list[bytes] = []
        self._cache: ByteCache[bytes, Page] = ByteCache(_CACHE)

    def load_page(self, pointer: bytes, *, level: int) -> Page:
        page = self._cache.get(pointer)
        if page is not None:
            if page.level != level:
                raise FormatError("tree page used at two levels")
            return page
        if len(pointer) != POINTER.size:
            raise FormatError("pointer of the wrong length", found=str(len(pointer)))
        try:
            length = plain_length(pointer)
            if not 0 < length <= MAX_PAGE_BYTES:
                raise FormatError("tree page of an impossible length", found=str(length))
            page = parse_page(self._segments.read(pointer, page_aad(level), length), level=level)
        except (AuthenticationError, FormatError) as exc:
            segment, offset, *_ = POINTER.unpack(pointer)
            raise type(exc)(
                exc.message,
                stage="read",
                subject=exc.subject or f"segment {segment:08x}, offset {offset}, tree page",
                found=exc.found,
                hint="the storage changed these bytes; `serdab fsck` lists what is damaged",
            ) from None
        self._cache.put(pointer, page, 3 * length)
        return page

    def store_page(self, raw: bytes, *, level: int) -> bytes:
        pointer = self.writer.append(raw, page_aad(level))
        self._stored.append(pointer)
        return pointer

    def free_page(self, pointer: bytes) -> None:
        self._segments.free(pointer)
        self._freed.append(pointer)
        self._cache.drop(pointer)

    def keep(self) -> None:
        """The tree that was being written is durable."""
        self._stored.clear()
        self._freed.clear()

    def undo(self) -> None:
        """The tree that was being written is given up: the old pages count again."""
        for pointer in self._freed:
            self._segments.claim(pointer)
        for pointer in self._stored:
            self._segments.free(pointer)
        self.keep()


def dump_table(usage: dict[int, Usage]) -> bytes:
    """Return the bytes of a segment table; never empty."""
    return b"".join(
        _ENTRY.pack(number, entry.used, max(entry.live, 0))
        for number, entry in sorted(usage.items())
    )


def parse_table(raw: bytes) -> dict[int, Usage]:
    """Return the use of each segment."""
    if len(raw) % _ENTRY.size:
        raise FormatError("segment table of an impossible length", found=str(len(raw)))
    return {number: Usage(used, live) for number, used, live in _ENTRY.iter_unpack(raw)}
