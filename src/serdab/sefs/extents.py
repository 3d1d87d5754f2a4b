# SPDX-License-Identifier: Apache-2.0
"""Which record, hole or nothing each chunk of a file has: the extent items, and their changes.

Above: ``datarecords``, ``content``. Below: ``items``, ``slots`` (what a slot says), ``references``
(which counts what of a segment is in use).

A changed group stays here until a checkpoint, since later changes to it are likely; it goes into
the items when a commit asks for them (:meth:`Extents.save`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import islice
from typing import Final, final

from serdab.sefs import keyspace as ks
from serdab.sefs.cache import ByteCache
from serdab.sefs.items import Items
from serdab.sefs.references import References
from serdab.sefs.segment import ABSENT, MAX_SEGMENT, POINTER, POINTER_BYTES, Record
from serdab.sefs.slots import NOTHING, check_group

_GROUP_CACHE: Final = 4 << 20
_MAX_COUNTS: Final = 4096
GROUP_BYTES: Final = 512
"""What a changed group takes beside its pointers, twice: here and among the items."""
END: Final = 1 << 62
"""As the end of a discarded range: all that follows."""
STEP_GROUPS: Final = 64
"""So many groups are dealt with in one step: some milliseconds."""


@final
class Extents:
    """The pointers of all chunks of one volume, in groups of ``keyspace.GROUP``."""

    def __init__(self, items: Items, references: References, version: int) -> None:
        self._items = items
        self._references = references
        self._version = version
        self._changed: dict[int, dict[int, bytearray]] = {}
        #: The numbers of the changed groups in order, of inodes that were searched.
        self._order: dict[int, list[int]] = {}
        self._unsaved: set[tuple[int, int]] = set()
        self.changed_bytes = 0
        """What the changed groups take in memory."""
        self._clean: ByteCache[tuple[int, int], bytes] = ByteCache(_GROUP_CACHE)
        #: How many chunks have a record, of inodes that were asked for.
        self._counts: dict[int, int] = {}
        #: Of those whose count has begun only: the group from which on nothing is counted yet.
        self._counted_to: dict[int, int] = {}

    def group(self, ino: int, group: int) -> bytes | bytearray:
        """Return the pointers of a group up to the last one that is there.

        Raises:
            FormatError: the item is of an impossible length.
        """
        changed = self._changed.get(ino)
        if changed is not None and group in changed:
            return changed[group]
        value = self._clean.get((ino, group))
        if value is None:
            value = self._checked(ino, self._items.get(ks.group_key(ino, group)) or b"")
            self._clean.put((ino, group), value, len(value) + 64)
        return value

    def _checked(self, ino: int, value: bytes) -> bytes:
        return check_group(ino, value, self._version)

    def pointer(self, ino: int, chunk: int) -> bytes:
        """Return the slot of a chunk (see ``slots``)."""
        group, index = divmod(chunk, ks.GROUP)
        if group > ks.MAX_GROUP:
            return ABSENT
        start = index * POINTER_BYTES
        return bytes(self.group(ino, group)[start : start + POINTER_BYTES]) or ABSENT

    def slots(self, ino: int, chunk: int, most: int) -> bytes:
        """Return the slots of up to ``most`` chunks from one on, of one group."""
        group, index = divmod(chunk, ks.GROUP)
        start = index * POINTER_BYTES
        return bytes(self.group(ino, group)[start : start + most * POINTER_BYTES])

    def free_slots(self, ino: int, chunk: int, most: int) -> int:
        """Return how many chunks from one on, up to ``most`` and of one group, have nothing."""
        if chunk // ks.GROUP > ks.MAX_GROUP:
            return 0
        slots = self.slots(ino, chunk, most)
        if left := slots.lstrip(b"\0"):
            return (len(slots) - len(left)) // POINTER_BYTES
        return min(most, ks.GROUP - chunk % ks.GROUP)

    def records(self, ino: int, chunk: int, most: int) -> list[Record]:
        """Return what the pointers of up to ``most`` chunks say, of one group."""
        group, index = divmod(chunk, ks.GROUP)
        start = index * POINTER_BYTES
        pointers = self.group(ino, group)[start : start + most * POINTER_BYTES]
        return list(POINTER.iter_unpack(pointers))

    def _changing(self, ino: int, group: int) -> bytearray:
        """Return a group that may be written to."""
        changed = self._changed.setdefault(ino, {})
        value = changed.get(group)
        if value is None:
            value = changed[group] = bytearray(self.group(ino, group))
            self.changed_bytes += len(value) + GROUP_BYTES
            self._clean.drop((ino, group))
            if ino in self._order:
                insort(self._order[ino], group)
        return value

    def _ordered(self, ino: int) -> list[int]:
        """Return the numbers of the changed groups in order."""
        order = self._order.get(ino)
        if order is None:
            changed = self._changed.get(ino)
            if changed is None:
                return []
            order = self._order[ino] = sorted(changed)
        return order

    def _is_counted(self, ino: int, group: int) -> bool:
        """Return whether a count is kept that holds this group."""
        if ino not in self._counts:
            return False
        return not self._counted_to or group < self._counted_to.get(ino, END)

    def _reach(self, value: bytearray, length: int) -> None:
        """Make a changed group at least so long."""
        more = length - len(value)
        if more > 0:
            value.extend(bytes(more))
            self.changed_bytes += more

    def cost(self, ino: int, chunk: int) -> int:
        """Return what naming a new record of a chunk takes in memory, until a checkpoint."""
        group, index = divmod(chunk, ks.GROUP)
        if group in self._changed.get(ino, ()):
            return 0
        return 2 * (index + 1) * POINTER_BYTES + GROUP_BYTES

    def set_pointer(self, ino: int, chunk: int, pointer: bytes) -> None:
        """Replace the pointer of a chunk; the record it had is free."""
        old = self.pointer(ino, chunk)
        if old == pointer:
            return
        group, index = divmod(chunk, ks.GROUP)
        value = self._changing(ino, group)
        start = index * POINTER_BYTES
        self._reach(value, start + POINTER_BYTES)
        if old not in NOTHING:
            self._references.drop(old, (ino, chunk))
        if ino in self._counts and self._is_counted(ino, group):
            self._counts[ino] += (pointer not in NOTHING) - (old not in NOTHING)
        value[start : start + POINTER_BYTES] = pointer
        self._unsaved.add((ino, group))

    def set_records(self, ino: int, chunk: int, pointers: bytes) -> None:
        """Replace the pointers of chunks of one group by those of new records."""
        group, index = divmod(chunk, ks.GROUP)
        value = self._changing(ino, group)
        start = index * POINTER_BYTES
        end = start + len(pointers)
        self._reach(value, start)
        old = value[start:end]
        self.changed_bytes += len(pointers) - len(old)
        self._references.drop(old, (ino, chunk))
        if ino in self._counts and self._is_counted(ino, group):
            self._counts[ino] += _held(pointers) - _held(old)
        value[start:end] = pointers
        self._unsaved.add((ino, group))

    def clear(self, ino: int, first: int, end: int = END) -> None:
        """Let the chunks from ``first`` on have nothing; from ``end`` on they have nothing."""
        while end > first:
            end = self.clear_last(ino, first, end)

    def clear_last(self, ino: int, first: int, end: int) -> int:
        """Let the last chunks of [first, end) that have something have nothing, in one step.

        From ``end`` on no chunk has anything. Returns the new such end; ``first`` if that was all.
        """
        low = first // ks.GROUP
        for _ in range(STEP_GROUPS):
            group = self._last_group(ino, low, -(-end // ks.GROUP))
            if group < low:
                return first
            self._clear_group(ino, group, first)
            end = max(group * ks.GROUP, first)
        return end

    def _last_group(self, ino: int, low: int, end: int) -> int:
        """Return the last group of [low, end) that may have something; -1 if none has."""
        order = self._ordered(ino)
        at = bisect_left(order, end) - 1
        group = order[at] if at >= 0 else -1
        limit = ks.group_key(ino, min(end, ks.MAX_GROUP)) + (b"" if end <= ks.MAX_GROUP else b"\0")
        key = self._items.last(ks.group_key(ino, min(low, ks.MAX_GROUP)), limit)
        if key is not None:
            group = max(group, int.from_bytes(key[9:], "big"))
        return group if group >= low else -1

    def _clear_group(self, ino: int, group: int, first: int) -> None:
        """Let the chunks of a group from ``first`` on have nothing."""
        start = max(first - group * ks.GROUP, 0) * POINTER_BYTES
        if len(self.group(ino, group)) <= start:
            return
        value = self._changing(ino, group)
        old = value[start:]
        self._references.drop(old, (ino, group * ks.GROUP + start // POINTER_BYTES))
        if self._is_counted(ino, group):
            self._counts[ino] -= _held(old)
        del value[start:]
        self.changed_bytes -= len(old)
        self._unsaved.add((ino, group))

    def drop(self, ino: int, group: int = 0) -> int:
        """Let the next groups from one on have nothing, in one step, of an inode that goes away.

        Returns the group to go on from; END if that was all.
        """
        if group == 0:
            self._counts.pop(ino, None)
            self._counted_to.pop(ino, None)
            stored = self._items.scan(ks.key(ino, ks.T_EXTENTS))
            if ino not in self._changed and next(stored, None) is None:
                return END  # a small file
        changed = self._changed.get(ino, {})
        groups = self._some_groups(ino, group)
        for number, pointers in groups.items():
            self._references.drop(pointers, (ino, number * ks.GROUP))
            value = changed.pop(number, None)
            if value is not None:
                self.changed_bytes -= len(value) + GROUP_BYTES
            self._clean.drop((ino, number))
            self._unsaved.discard((ino, number))
            self._items.drop(ks.group_key(ino, number))
        if len(groups) == STEP_GROUPS:
            last = max(groups)
            if ino in self._order:
                del self._order[ino][: bisect_right(self._order[ino], last)]
            return last + 1
        self._order.pop(ino, None)
        self._changed.pop(ino, None)
        return END

    def is_counted(self, ino: int) -> bool:
        """Return whether :meth:`count` answers at once."""
        return ino in self._counts and ino not in self._counted_to

    def count(self, ino: int) -> int:
        """Return how many chunks have a record, room for one, or a part of a lower layer."""
        while not self.is_counted(ino):
            self.count_on(ino)
        return self._counts[ino]

    def count_on(self, ino: int) -> None:
        """Count the next groups, in one step; :meth:`is_counted` says whether that was all."""
        if ino not in self._counts:
            if len(self._counts) >= _MAX_COUNTS:
                self._counts.clear()
                self._counted_to.clear()
            self._counts[ino] = 0
        groups = self._some_groups(ino, self._counted_to.get(ino, 0))
        self._counts[ino] += sum(map(_held, groups.values()))
        if len(groups) == STEP_GROUPS:
            self._counted_to[ino] = max(groups) + 1
        else:
            self._counted_to.pop(ino, None)

    def _some_groups(self, ino: int, first: int) -> dict[int, bytes | bytearray]:
        """Return the next groups from one on, STEP_GROUPS if there are more."""
        if first > ks.MAX_GROUP:
            return {}
        found: dict[int, bytes | bytearray] = {
            int.from_bytes(key[9:], "big"): self._checked(ino, value)
            for key, value in islice(self._scan(ino, first), STEP_GROUPS)
        }
        changed = self._changed.get(ino)
        if not changed:
            return found
        order = self._ordered(ino)
        at = bisect_left(order, first)
        for number in order[at : at + STEP_GROUPS]:
            found[number] = changed[number]
        if len(found) > STEP_GROUPS:
            return {number: found[number] for number in sorted(found)[:STEP_GROUPS]}
        return found

    def _scan(self, ino: int, first: int) -> Iterator[tuple[bytes, bytes]]:
        return self._items.scan(ks.key(ino, ks.T_EXTENTS), ks.group_key(ino, first))

    def next_held(self, ino: int, chunk: int) -> int:
        """Return the first chunk from ``chunk`` on that may have something; END if none has."""
        group, index = divmod(chunk, ks.GROUP)
        # Groups that were emptied and not saved are passed over, but not any number of them.
        for _ in range(STEP_GROUPS):
            if group > ks.MAX_GROUP:
                return END
            rest = self.group(ino, group)[index * POINTER_BYTES :]
            if rest and (left := len(rest.lstrip(b"\0"))):
                return group * ks.GROUP + index + (len(rest) - left) // POINTER_BYTES
            group, index = self._next_group(ino, group + 1), 0
        return min(group * ks.GROUP, END)

    def _next_group(self, ino: int, first: int) -> int:
        """Return the first group from one on that may have something; END if none has."""
        if first > ks.MAX_GROUP:
            return END
        item = next(self._scan(ino, first), None)
        group = END if item is None else int.from_bytes(item[0][9:], "big")
        order = self._ordered(ino)
        at = bisect_left(order, first)
        return min(group, order[at]) if at < len(order) else group

    def run(self, ino: int, chunk: int) -> int:
        """Return how many chunks from one on have records, of one group."""
        group, index = divmod(chunk, ks.GROUP)
        pointers = self.group(ino, group)[index * POINTER_BYTES :]
        count = 0
        for segment, _, _, _, _ in POINTER.iter_unpack(pointers):
            if not 0 < segment < MAX_SEGMENT:
                break
            count += 1
        return count

    def save(self) -> None:
        """Put the changed groups into the items."""
        for ino, group in self._unsaved:
            value = bytes(self._changed[ino][group])
            end = len(value)
            while end and value[end - POINTER_BYTES : end] == ABSENT:
                end -= POINTER_BYTES
            self._items.put(ks.group_key(ino, group), value[:end] or None)
        self._unsaved.clear()

    def settle(self) -> None:
        """A checkpoint holds everything now."""
        self._changed.clear()
        self._order.clear()
        self._unsaved.clear()
        self.changed_bytes = 0


def _held(pointers: bytes | bytearray) -> int:
    """Return how many of these slots have something."""
    starts = range(0, len(pointers), POINTER_BYTES)
    return sum(pointers[start : start + POINTER_BYTES] not in NOTHING for start in starts)
