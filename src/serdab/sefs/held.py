# SPDX-License-Identifier: Apache-2.0
"""Where a file has content, and how much of it: asked of memory, extents and the lower layer.

Above: ``content``, whose base it is. Below: ``extents``, ``dirty``, the lower ``Layer``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from serdab.sefs import keyspace as ks
from serdab.sefs.dirty import DirtyFile
from serdab.sefs.extents import END, Extents
from serdab.sefs.segment import ABSENT, HOLE
from serdab.sefs.slots import is_record, parse_lower
from serdab.vfs.api import Inode
from serdab.vfs.layer import Layer

STEP_CHUNKS: Final = 64
"""So many chunks are dealt with in one step: some milliseconds."""


class Held:
    """See the module."""

    def __init__(self, extents: Extents, chunk_size: int, lower: Layer | None) -> None:
        self._extents = extents
        self._chunk_size = chunk_size
        self._lower = lower
        # Bound once: reading asks for one of each chunk.
        self._pointer, self._set_pointer = extents.pointer, extents.set_pointer
        self._dirty: dict[int, DirtyFile] = {}

    def chunk_size(self, inode: Inode) -> int:
        """Return how long the chunks of a file are."""
        return ks.record_size(inode.flags, self._chunk_size)

    def live_inode(self, ino: int) -> Inode | None:
        """Return the object whose content is dirty, if any."""
        opened = self._dirty.get(ino)
        return opened.inode if opened is not None else None

    def is_dirty(self, inode: Inode, chunk: int) -> bool:
        """Return whether a chunk is in memory."""
        opened = self._dirty.get(inode.ino)
        return opened is not None and chunk in opened.chunks

    def _next_held(self, ino: int, chunk: int) -> int:
        """Return the first chunk from ``chunk`` on that may be held here; END if there is none."""
        first = self._extents.next_held(ino, chunk)
        opened = self._dirty.get(ino)
        return first if opened is None or first == chunk else min(first, opened.next(chunk))

    def ranges(self, inode: Inode, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the stored ranges within [start, end), in order.

        Empty ones are signs of progress: before them is nothing that was not yielded.
        """
        end = min(end, inode.size)
        if inode.flags & ks.F_INLINE:
            if start < min(end, ks.INLINE_MAX):
                yield start, min(end, ks.INLINE_MAX)
            return
        size = self.chunk_size(inode)
        while start < end:
            chunk = start // size
            held = self._next_held(inode.ino, chunk)
            stop = min(max(held, chunk + 1) * size, end)
            pointer = self._pointer(inode.ino, chunk) if held == chunk else ABSENT
            if is_record(pointer):
                stop = min((chunk + self._extents.run(inode.ino, chunk)) * size, end)
                yield start, stop
            elif self.is_dirty(inode, chunk):
                yield start, stop
            elif (part := parse_lower(pointer)) is not None and self._lower is not None:
                # Where the chunk is, seen from where the part of the lower layer is.
                shift = chunk * size - part.offset
                limit = min(stop, chunk * size + part.length)
                for low, high in self._lower.data_ranges(part.ino, start - shift, limit - shift):
                    yield low + shift, high + shift
            elif pointer == ABSENT and inode.flags & ks.F_LOWER and self._lower is not None:
                limit = min(stop, inode.lower_limit)
                if start < limit:
                    yield from self._lower.data_ranges(inode.ino, start, limit)
            start = stop
            yield start, start

    def is_measured(self, inode: Inode) -> bool:
        """Return whether ``taken_bytes`` answers at once."""
        if inode.flags & ks.F_INLINE:
            return True
        opened = self._dirty.get(inode.ino)
        return self._extents.is_counted(inode.ino) and (
            opened is None or len(opened.chunks) <= STEP_CHUNKS or not opened.unmeasured()
        )

    def measure_steps(self, inode: Inode) -> Iterator[None]:
        """Find out what ``taken_bytes`` needs."""
        while not self._extents.is_counted(inode.ino):
            self._extents.count_on(inode.ino)
            yield
        while not self.is_measured(inode):
            self._measure(self._dirty[inode.ino], STEP_CHUNKS)
            yield

    def _measure(self, opened: DirtyFile, most: int) -> None:
        for chunk in opened.unmeasured()[:most]:
            slot = self._pointer(opened.inode.ino, chunk)
            opened.chunks[chunk].is_fresh = slot in (ABSENT, HOLE)

    def taken_bytes(self, inode: Inode) -> int:
        """Return about how much of a file takes space: whole chunks, the lower layer's part whole.

        Not more than its size.
        """
        if inode.flags & ks.F_INLINE:
            return min(inode.size, ks.INLINE_MAX)
        chunks = self._extents.count(inode.ino)
        opened = self._dirty.get(inode.ino)
        if opened is not None:
            self._measure(opened, END)
            chunks += [held.is_fresh for held in opened.chunks.values()].count(True)
        below = inode.lower_limit if inode.flags & ks.F_LOWER else 0
        return min(chunks * self.chunk_size(inode) + below, inode.size)
