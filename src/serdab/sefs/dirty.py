# SPDX-License-Identifier: Apache-2.0
"""What of file content is in memory only, and what memory held once and holds no more. Pure.

Above: ``content``. Below: ``extents`` (the end of all chunks).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, final

from serdab.sefs.extents import END
from serdab.vfs.api import Inode

DISCARD_BYTES: Final = 160
"""About what one discarded range takes in memory; in a commit it is less."""


class DirtyChunk:
    """Content newer than any record. Bytes beyond ``buf`` are zero.

    ``low`` and ``high`` bound what no commit has yet; equal: nothing. ``cost`` is what it takes
    beside its bytes, here and in what names its record. ``is_fresh``: whether its slot has nothing
    so far; None: nobody asked yet.
    """

    __slots__ = ("buf", "cost", "high", "is_fresh", "low")

    def __init__(self, buf: bytearray, cost: int = 0) -> None:
        self.buf = buf
        self.cost = cost
        self.low = self.high = 0
        self.is_fresh: bool | None = None

    def touch(self, low: int, high: int) -> None:
        """A range changed."""
        if self.low == self.high:
            self.low, self.high = low, high
            return
        if low < self.low:
            self.low = low
        if high > self.high:
            self.high = high

    def bytes(self) -> int:
        """Return what it takes."""
        return len(self.buf) + self.cost


class DirtyFile:
    """An inode with dirty chunks."""

    __slots__ = ("chunks", "inode", "order")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.chunks: dict[int, DirtyChunk] = {}
        #: The numbers of the chunks in order, once somebody searched; some may be gone since.
        #: Who adds a chunk puts it here too.
        self.order: list[int] | None = None

    def unmeasured(self) -> list[int]:
        """Return the chunks of which nobody asked whether they are fresh."""
        return [chunk for chunk, held in self.chunks.items() if held.is_fresh is None]

    def next(self, chunk: int) -> int:
        """Return the first dirty chunk from ``chunk`` on; END if there is none."""
        chunks = self.chunks
        if chunk in chunks:
            return chunk
        order = self.order
        if order is None or len(order) > 2 * len(chunks) + 64:
            order = self.order = sorted(chunks)
        for at in range(bisect_left(order, chunk), len(order)):
            if order[at] in chunks:
                return order[at]
        return END


@final
class Discards:
    """Ranges of chunks that memory no longer holds, though a commit may have them in its log.

    Replay applies them before all else, so their order does not matter, and one that lies within
    another says nothing: a program that truncates in a loop makes one.
    """

    __slots__ = ("_count", "_single", "_tails")

    def __init__(self) -> None:
        self._tails: dict[int, int] = {}
        self._single: dict[int, set[int]] = {}
        self._count = 0

    def add_from(self, ino: int, first: int) -> None:
        """All chunks from ``first`` on."""
        tail = self._tails.get(ino)
        if tail is not None and tail <= first:
            return
        self._tails[ino] = first
        self._count += tail is None
        single = self._single.pop(ino, None)
        if single is not None:
            kept = {chunk for chunk in single if chunk < first}
            self._count -= len(single) - len(kept)
            if kept:
                self._single[ino] = kept

    def add(self, ino: int, chunk: int) -> None:
        """One chunk."""
        if chunk < self._tails.get(ino, END):
            single = self._single.setdefault(ino, set())
            before = len(single)
            single.add(chunk)
            self._count += len(single) - before

    def dump(self) -> list[tuple[int, int, int]]:
        """Return (ino, first, end) of each range."""
        ranges = [(ino, first, END) for ino, first in self._tails.items()]
        ranges += [
            (ino, chunk, chunk + 1) for ino, chunks in self._single.items() for chunk in chunks
        ]
        return sorted(ranges)

    def bytes(self) -> int:
        """Return about what they take in memory."""
        return DISCARD_BYTES * self._count

    def clear(self) -> None:
        """A commit has them."""
        self._tails.clear()
        self._single.clear()
        self._count = 0
