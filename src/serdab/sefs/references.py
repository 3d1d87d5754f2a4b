# SPDX-License-Identifier: Apache-2.0
"""How many extents name a record, and whose: a record lives as long as one does.

Above: ``extents``, ``datarecords``, ``replay``. Below: ``items``, ``segment`` (live bytes).

Most records belong to one file, and nothing is noted of that beside its owner. Of one that several
extents name there is a SHARED item with their number, at least 2, and a RECORDS item of its own for
each of them. Its bytes count as live once.

In replay the items of the log say what the numbers are after each commit. What is live follows from
how the extents changed (:meth:`References.replayed`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, final

from serdab.errors import FormatError
from serdab.sefs import keyspace as ks
from serdab.sefs.items import Items
from serdab.sefs.segment import POINTER, POINTER_BYTES, SegmentStore
from serdab.sefs.slots import is_record, is_reserved

Owner = tuple[int, int]
"""An inode and the number of a chunk of it."""
_MOST: Final = (1 << 32) - 1
MOST_OWNERS: Final = 64
"""So many chunks are given one record: to move it is a step that somebody waits for."""


@final
class References:
    """The references to all records of one volume."""

    __slots__ = ("_before", "_changes", "_has_shared", "_items", "_segments")

    def __init__(self, items: Items, segments: SegmentStore) -> None:
        self._items = items
        self._segments = segments
        #: Whether any record has several owners; None: not looked yet.
        self._has_shared: bool | None = False if segments.version == ks.V1 else None
        #: In replay: of each record how many extents came to name it, and ceased to.
        self._changes: dict[bytes, list[int]] | None = None
        self._before: dict[bytes, bytes | None] = {}

    def _any(self) -> bool:
        if self._has_shared is None:
            shared = self._items.scan(ks.key(0, ks.T_SHARED))
            self._has_shared = next(shared, None) is not None
        return self._has_shared

    def count(self, pointer: bytes) -> int:
        """Return how many extents name a record that one does."""
        if not self._any():
            return 1
        value = self._items.get(_shared_key(pointer))
        return 1 if value is None else ks.parse_shared(value)

    def all_shared(self) -> dict[tuple[int, int], int]:
        """Return the number of each record, (segment, number), that several extents name."""
        if self._segments.version == ks.V1:
            return {}
        return {
            ks.parse_record_key(key): ks.parse_shared(value)
            for key, value in self._items.scan(ks.key(0, ks.T_SHARED))
        }

    def owners(self, pointer: bytes) -> list[Owner]:
        """Return who names a record of several owners, and may be some who did; [] of any other."""
        if self.count(pointer) == 1:
            return []
        segment, _, _, number, _ = POINTER.unpack(pointer)
        return list(self._owners(segment, number))

    def _owners(self, segment: int, number: int) -> Iterator[Owner]:
        start = ks.records_key(segment, number)
        for key, _ in self._items.scan(start[:9], start):
            if not key.startswith(start):
                return
            owner = ks.parse_owner_key(key)
            if owner is not None:
                yield owner

    def share(self, pointer: bytes, owner: Owner, another: Owner) -> None:
        """A record of ``owner`` is that of ``another`` too, whose extent names it next.

        Raises:
            FormatError: it has as many owners as can be counted.
        """
        count = self.count(pointer)
        if count >= _MOST:
            raise FormatError("a record of more owners than can be counted")
        self._has_shared = True
        for each in (owner, another) if count == 1 else (another,):
            self._items.put(*_owner_item(pointer, each))
        self._items.put(_shared_key(pointer), ks.dump_shared(count + 1))

    def share_run(self, pointers: bytes, owner: Owner, another: Owner) -> int:
        """Records of successive chunks are those of others too, whose extents name them next.

        Returns how many are: fewer if one has owners enough.
        """
        items, has_shared = self._items, self._any()
        (ino, chunk), (into, target) = owner, another
        for index, (segment, offset, stored, number, _) in enumerate(POINTER.iter_unpack(pointers)):
            key = ks.shared_key(segment, number)
            value = items.get(key) if has_shared else None
            count = 1 if value is None else ks.parse_shared(value)
            if count >= MOST_OWNERS:
                return index
            self._has_shared = True
            for each, at in ((ino, chunk), (into, target)) if count == 1 else ((into, target),):
                packed = ks.OWNER.pack(each, at + index, offset, stored)
                items.put(ks.owner_key(segment, number, each, at + index), packed)
            items.put(key, ks.dump_shared(count + 1))
        return len(pointers) // POINTER_BYTES

    def drop(self, slots: bytes | bytearray, owner: Owner) -> None:
        """These slots, of successive chunks from one on, say something else now."""
        if self._changes is not None:
            for slot in _each(slots):
                self._note(slot, 1)
        elif not self._any():
            self._segments.free_all(slots)
        else:
            ino, chunk = owner
            for index, slot in enumerate(_each(slots)):
                self._drop(slot, (ino, chunk + index))

    def _drop(self, slot: bytes, owner: Owner) -> None:
        count = self.count(slot) if is_record(slot) else 1
        if count == 1:
            self._segments.free_all(slot)
            return
        self._items.put(_owner_item(slot, owner)[0], None)
        self._items.put(_shared_key(slot), ks.dump_shared(count - 1) if count > 2 else None)

    # Replay -------------------------------------------------------------------------------

    def begin_replay(self) -> None:
        """A commit is about to be replayed."""
        if self._segments.version != ks.V1:
            self._changes = {}
            self._before.clear()

    def item_replayed(self, key: bytes) -> None:
        """A SHARED item is about to be replaced by the log's."""
        self._has_shared = True
        self._before.setdefault(key, self._items.get(key))

    def appear(self, slot: bytes) -> None:
        """An extent of the log has this slot, which is new to it."""
        if self._changes is None:
            if is_record(slot):
                self._segments.claim(slot)
        else:
            self._note(slot, 0)

    def _note(self, slot: bytes, which: int) -> None:
        if is_record(slot):
            assert self._changes is not None  # noqa: S101 - the callers looked
            self._changes.setdefault(slot, [0, 0])[which] += 1
        elif is_reserved(slot):
            self._segments.reserve(slot, freed=bool(which))

    def replayed(self) -> None:
        """The commit was replayed: let what its extents name first, or no longer, count.

        Raises:
            FormatError: its extents do not fit its numbers.
        """
        changes, self._changes = self._changes or {}, None
        for pointer, (added, removed) in changes.items():
            key = _shared_key(pointer)
            after = self._items.get(key)
            before = self._before.get(key, after)
            if before is not None:
                old = ks.parse_shared(before)
            elif after is not None:
                old = ks.parse_shared(after) - added + removed
            else:
                old = 1 if removed else 0
            new = old + added - removed
            # Without an item there is one reference, or none.
            fits_before = before is not None or old in (0, 1)
            fits_after = new in (0, 1) if after is None else new == ks.parse_shared(after)
            if not fits_before or not fits_after:
                raise FormatError("commit whose extents do not fit its references")
            if new and not old:
                self._segments.claim(pointer)
            elif old and not new:
                self._segments.free(pointer)


def _each(slots: bytes | bytearray) -> Iterator[bytes]:
    for start in range(0, len(slots), POINTER_BYTES):
        yield bytes(slots[start : start + POINTER_BYTES])


def _shared_key(pointer: bytes) -> bytes:
    segment, _, _, number, _ = POINTER.unpack(pointer)
    return ks.shared_key(segment, number)


def _owner_item(pointer: bytes, owner: Owner) -> tuple[bytes, bytes]:
    segment, offset, stored, number, _ = POINTER.unpack(pointer)
    ino, chunk = owner
    value = ks.OWNER.pack(ino, chunk, offset, stored)
    return ks.owner_key(segment, number, ino, chunk), value
