# SPDX-License-Identifier: Apache-2.0
"""Space reclaim: moves what is alive out of segments that are mostly dead.

Above: ``volume`` (which calls it within a checkpoint). Below: ``content``, ``tree``, ``segment``.

A segment without live bytes is deleted once neither durable anchor refers to it. For that a
checkpoint moves the live records of the worst segments: file data by asking the RECORDS items who
owned them and whether the owner still points there, tree pages by walking the interior pages,
which are few. Moved records are verified and sealed anew, so this is the scrubber too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Final, final

from serdab.errors import FormatError
from serdab.sefs import keyspace as ks
from serdab.sefs.content import Content
from serdab.sefs.items import Items
from serdab.sefs.page import dump_page
from serdab.sefs.segment import POINTER, SegmentStore
from serdab.sefs.tree import PageSink, Root

DEAD_SHARE: Final = 0.3
"""A segment with a larger dead share is worth moving."""

SMALL_COUNT: Final = 16
"""So many small segments may stay; each session that writes leaves one or two."""
SMALL_PART: Final = 16
"""A segment is small below this part of a full one."""


def choose_victims(segments: SegmentStore, budget: int, spare: Collection[int]) -> set[int]:
    """Return segments to be emptied, the deadest first, whose live bytes fit the budget."""
    small = {
        number
        for number, usage in segments.usage.items()
        if usage.used * SMALL_PART < segments.limits.segment_bytes
    }
    if len(small) <= SMALL_COUNT:
        small = set()
    candidates = sorted(
        (usage.live / usage.used, number)
        for number, usage in segments.usage.items()
        if usage.live > 0
        and usage.used
        and (usage.live < usage.used * (1 - DEAD_SHARE) or number in small)
        and number not in spare
        and not segments.is_open(number)
    )
    victims = set()
    for _, number in candidates:
        budget -= segments.usage[number].live
        if budget < 0:
            break
        victims.add(number)
    return victims


def owners_of(items: Items, segment: int) -> list[tuple[bytes, bytes]]:
    """Return the RECORDS items of a segment."""
    prefix = ks.key(0, ks.T_RECORDS)
    found = []
    for key, value in items.scan(prefix, ks.records_key(segment, 0)):
        if int.from_bytes(key[9:13], "big") != segment:
            break
        found.append((key, value))
    return found


def move_data(items: Items, content: Content, victims: Collection[int]) -> None:
    """Seal the live data records of the victims anew.

    Raises:
        AuthenticationError: a live record does not verify; nothing of it was moved.
    """
    for _ in move_data_steps(items, content, victims):
        pass


def move_data_steps(items: Items, content: Content, victims: Collection[int]) -> Iterator[None]:
    """Like :func:`move_data`, in steps; what changes in between is not moved."""
    for segment in victims:
        for _, value in owners_of(items, segment):
            if len(value) % ks.OWNER.size:
                raise FormatError("owners of an impossible length", found=str(len(value)))
            for ino, chunk, offset, stored in ks.OWNER.iter_unpack(value):
                content.records.move(ino, chunk, segment, offset, stored)
            yield


def forget_owners(items: Items, segments: SegmentStore) -> None:
    """Drop the RECORDS items of segments that hold nothing alive."""
    for number, usage in list(segments.usage.items()):
        if usage.live <= 0 and not segments.is_open(number):
            for key, _ in owners_of(items, number):
                items.put(key, None)


def move_pages(
    sink: PageSink, root: Root, victims: Collection[int], most: float = math.inf
) -> Root:
    """Store tree pages that lie in a victim anew, at most so many, and the paths to them."""
    if not root.pointer or not victims:
        return root
    return Root(_Mover(sink, victims, most).moved(root.pointer, root.level), root.level)


@final
class _Mover:
    def __init__(self, sink: PageSink, victims: Collection[int], most: float) -> None:
        self._sink = sink
        self._victims = victims
        self._left = most

    def moved(self, pointer: bytes, level: int) -> bytes:
        """Return the pointer of the page after its subtree left the victims."""
        is_in = POINTER.unpack(pointer)[0] in self._victims
        if self._left <= 0 or (level == 0 and not is_in):
            return pointer
        page = self._sink.load_page(pointer, level=level)
        items = page.items()
        changed = is_in
        if level:
            for index, (key, child) in enumerate(items):
                new = self.moved(child, level - 1)
                if new != child:
                    items[index] = (key, new)
                    changed = True
        if not changed:
            return pointer
        self._left -= 1
        self._sink.free_page(pointer)
        return self._sink.store_page(dump_page(level, items), level=level)
