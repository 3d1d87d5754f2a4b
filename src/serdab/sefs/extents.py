# SPDX-License-Identifier: Apache-2.0
"""Which record, hole or nothing each chunk of a file has: the extent items, and their changes.

Above: ``datarecords``, ``content``. Below: ``items``, ``slots`` (what a slot says), ``references``
(which counts what of a segment is in use).

A changed group stays here until a checkpoint, since later changes to it are likely; it goes into
the items when a commit asks for them (:meth:`Extents.save`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final, final

from serdab.sefs import keyspace as ks
from serdab.sefs.cache import ByteCache
from serdab.sefs.items import Items
from serdab.sefs.references import References
from serdab.sefs.segment import ABSENT, POINTER, POINTER_BYTES, Record
from serdab.sefs.slots import NOTHING, check_group

_GROUP_CACHE: Final = 4 << 20
_MAX_COUNTS: Final = 4096
GROUP_BYTES: Final = 512
"""What a changed group takes beside its pointers, twice: here and among the items."""
END: Final = 1 << 62
"""As the end of a discarded range: all that follows."""


@final
class Extents:
    """The pointers of all chunks of one volume, in groups of ``keyspace.GROUP``."""

    def __init__(self, items: Items, references: References, version: int) -> None:
        self._items = items
        self._references = references
        self._version = version
        self._changed: dict[int, dict[int, bytearray]] = {}
        self._unsaved: set[tuple[int, int]] = set()
        self.changed_bytes = 0
        """What the changed groups take in memory."""
        self._clean: ByteCache[tuple[int, int], bytes] = ByteCache(_GROUP_CACHE)
        #: How many chunks have a record, of inodes that were asked for.
        self._counts: dict[int, int] = {}

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
        return value

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
        if ino in self._counts:
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
        if ino in self._counts:
            self._counts[ino] += _held(pointers) - _held(old)
        value[start:end] = pointers
        self._unsaved.add((ino, group))

    def clear(self, ino: int, first: int) -> None:
        """Let the chunks from ``first`` on have nothing."""
        group, index = divmod(first, ks.GROUP)
        for number in sorted({*self._stored(ino, group), *self._changed.get(ino, ())}):
            if number > group or (number == group and not index):
                if ino in self._counts:
                    self._counts[ino] -= _held(self.group(ino, number))
                self._drop_group(ino, number)
            elif number == group:
                for slot in range(index, len(self.group(ino, number)) // POINTER_BYTES):
                    self.set_pointer(ino, number * ks.GROUP + slot, ABSENT)

    def drop(self, ino: int) -> None:
        """Let no chunk have anything, of an inode that goes away."""
        groups = self._groups(ino)
        changed = self._changed.pop(ino, {})
        self.changed_bytes -= sum(len(value) + GROUP_BYTES for value in changed.values())
        self._counts.pop(ino, None)
        for group, pointers in groups.items():
            self._references.drop(pointers, (ino, group * ks.GROUP))
            self._clean.drop((ino, group))
            self._unsaved.discard((ino, group))
            self._items.drop(ks.group_key(ino, group))

    def has_more(self, ino: int, most: int) -> bool:
        """Return whether an inode has more than so many groups."""
        found = len(self._changed.get(ino, ())) + len(list(islice(self._stored(ino, 0), most + 1)))
        return found > most

    def drop_some(self, ino: int, first: int, most: int) -> int:
        """Drop up to ``most`` groups of an inode that goes away, and of which none before ``first``
        is stored; return where to go on, END if none may be left.
        """
        changed = list(islice(self._changed.get(ino, ()), most))
        stored = list(islice(self._stored(ino, first), most - len(changed)))
        for group in (*changed, *stored):
            self._drop_group(ino, group)
        if len(changed) + len(stored) < most:
            return END
        return stored[-1] + 1 if stored else first

    def _drop_group(self, ino: int, group: int) -> None:
        self._references.drop(self.group(ino, group), (ino, group * ks.GROUP))
        changed = self._changed.get(ino, {})
        value = changed.pop(group, None)
        if value is not None:
            self.changed_bytes -= len(value) + GROUP_BYTES
        self._clean.drop((ino, group))
        self._unsaved.discard((ino, group))
        self._items.drop(ks.group_key(ino, group))

    def count(self, ino: int) -> int:
        """Return how many chunks have a record, room for one, or a part of a lower layer."""
        found = self._counts.get(ino)
        if found is None:
            found = sum(_held(pointers) for pointers in self._groups(ino).values())
            if len(self._counts) >= _MAX_COUNTS:
                self._counts.clear()
            self._counts[ino] = found
        return found

    def _groups(self, ino: int) -> dict[int, bytes | bytearray]:
        groups: dict[int, bytes | bytearray] = {
            int.from_bytes(key[9:], "big"): self._checked(ino, value)
            for key, value in self._items.scan(ks.key(ino, ks.T_EXTENTS))
        }
        groups.update(self._changed.get(ino, {}))
        return groups

    def _stored(self, ino: int, first: int) -> Iterator[int]:
        """Yield the extent items from a group on, in order."""
        if first <= ks.MAX_GROUP:
            start = ks.group_key(ino, first)
            for key, _ in self._items.scan(ks.key(ino, ks.T_EXTENTS), start):
                yield int.from_bytes(key[9:], "big")

    def next_held(self, ino: int, chunk: int) -> int:
        """Return the first chunk from ``chunk`` on that may have something; END if none has."""
        group = chunk // ks.GROUP
        if group <= ks.MAX_GROUP and self.group(ino, group):
            return chunk
        groups = (*self._changed.get(ino, ()), next(self._stored(ino, group + 1), END))
        first: int = min(number for number in groups if number > group) * ks.GROUP
        return min(first, END)

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
        self._unsaved.clear()
        self.changed_bytes = 0


def _held(pointers: bytes | bytearray) -> int:
    """Return how many of these slots have something."""
    starts = range(0, len(pointers), POINTER_BYTES)
    return sum(pointers[start : start + POINTER_BYTES] not in NOTHING for start in starts)
