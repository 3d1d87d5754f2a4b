# SPDX-License-Identifier: Apache-2.0
"""The records that hold file content: sealed, owned, shared, moved and copied.

Above: ``content`` (what a byte of a file is), ``reclaim``. Below: ``extents`` (which slot a chunk
has), ``references`` (how many name a record), ``segment``.

Who owns a record is noted for space reclaim, which knows a record by where it lies. What is noted
may be out of date: an owner counts while its extent names the record.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, final

from serdab.crypto.aead import TAG_BYTES
from serdab.errors import AuthenticationError, FormatError
from serdab.sefs import keyspace as ks
from serdab.sefs.extents import Extents
from serdab.sefs.items import Items
from serdab.sefs.references import Owner, References
from serdab.sefs.segment import ABSENT, HOLE, POINTER, POINTER_BYTES, SegmentStore, Writer
from serdab.sefs.slots import MAX_CHUNK, is_record, is_reserved

_OWNERS_PER_ITEM: Final = 128
_OWNER_BYTES: Final = 200


@final
class DataRecords:
    """The data records of one volume."""

    def __init__(
        self, items: Items, segments: SegmentStore, extents: Extents, references: References
    ) -> None:
        self._items = items
        self._segments = segments
        self._extents = extents
        self._references = references
        self.writer: Writer = segments.writer()
        self._owners: dict[int, list[tuple[int, bytes]]] = {}
        self._owner_count = 0

    def seal(self, ino: int, chunk: int, plain: bytes | bytearray | memoryview) -> None:
        """Give a chunk a record of this content."""
        pointer = self.writer.append_data(plain, ino, chunk)
        self._own(ino, chunk, 1, pointer)
        self._extents.set_pointer(ino, chunk, pointer)

    def seal_run(self, ino: int, chunk: int, plain: memoryview, size: int) -> int:
        """Seal whole chunks of ``size``, as many as go to the host together; return how many."""
        most = min(len(plain) // size, ks.GROUP - chunk % ks.GROUP)
        # In this order: what was written before is not lost when the host fails here.
        count = min(self.writer.make_room(size + TAG_BYTES), most)
        pointers = self.writer.append_run(plain[: count * size], size, ino, chunk)
        self._own(ino, chunk, count, pointers)
        self._extents.set_records(ino, chunk, pointers)
        return count

    # Owners -------------------------------------------------------------------------------

    def _own(self, ino: int, chunk: int, count: int, pointers: bytes) -> None:
        segment, offset, stored, number, _ = POINTER.unpack_from(pointers)
        self._owner_count += count
        pack = ks.OWNER.pack
        self._owners.setdefault(segment, []).extend(
            (number + index, pack(ino, chunk + index, offset + index * stored, stored))
            for index in range(count)
        )

    def noted_bytes(self) -> int:
        """Return about what is noted of owners takes in memory, and at most on the host."""
        return self._owner_count * _OWNER_BYTES

    def save_owners(self) -> None:
        """Put who owns the new records into the items, for space reclaim to ask."""
        for segment, owners in self._owners.items():
            for start in range(0, len(owners), _OWNERS_PER_ITEM):
                part = owners[start : start + _OWNERS_PER_ITEM]
                value = b"".join(owner for _, owner in part)
                self._items.put(ks.records_key(segment, part[0][0]), value)
        self._owners.clear()
        self._owner_count = 0

    def share(self, source: Owner, into: Owner) -> None:
        """Let a chunk be the record of another one.

        Preconditions: ``source`` has a record.
        """
        pointer = self._extents.pointer(*source)
        if self._extents.pointer(*into) != pointer:
            self._references.share(pointer, source, into)
            self._extents.set_pointer(*into, pointer)

    def share_run(self, source: Owner, into: Owner, count: int) -> int:
        """Let successive chunks that have nothing be the records of others; return how many are.

        Preconditions: the ``count`` chunks from ``source`` on have records.
        """
        pointers = self._extents.slots(*source, count)
        pointers = pointers[: self._extents.free_slots(*into, count) * POINTER_BYTES]
        count = self._references.share_run(pointers, source, into)
        if count:
            self._extents.set_records(*into, pointers[: count * POINTER_BYTES])
        return count

    def reserve(self, ino: int, chunk: int, slot: bytes) -> None:
        """Give a chunk a slot that holds room for a record."""
        if self._extents.pointer(ino, chunk) == slot:
            return
        self._segments.reserve(slot)
        self._extents.set_pointer(ino, chunk, slot)

    def move(self, ino: int, chunk: int, segment: int, offset: int, stored: int) -> None:
        """Seal a record anew elsewhere, if this owner still names it, for all who do."""
        pointer = self._extents.pointer(ino, chunk)
        if POINTER.unpack(pointer)[:3] != (segment, offset, stored) or not is_record(pointer):
            return
        plain = self._segments.read_data(pointer, ino, chunk, MAX_CHUNK)
        first = (ino, chunk)
        others = [
            owner
            for owner in self._references.owners(pointer)
            if owner != first and self._extents.pointer(*owner) == pointer
        ]
        self.seal(ino, chunk, plain)
        for owner in others:
            self.share(first, owner)

    # Copying ------------------------------------------------------------------------------

    def copy_group(self, into: DataRecords, ino: int, group: int) -> Iterator[tuple[int, str]]:
        """Seal the chunks of a group in another volume; yield (chunk, problem) of bad ones."""
        for index in range(len(self._extents.group(ino, group)) // POINTER_BYTES):
            chunk = group * ks.GROUP + index
            slot = self._extents.pointer(ino, chunk)
            if slot == ABSENT:
                continue
            if not is_record(slot):
                into.put_slot(ino, chunk, slot)
                continue
            twin = self._copied_twin(into, slot, (ino, chunk))
            if twin is not None:
                into.share(twin, (ino, chunk))
                continue
            try:
                plain = self._segments.read_data(slot, ino, chunk, MAX_CHUNK)
            except (AuthenticationError, FormatError) as exc:
                into.put_hole(ino, chunk)
                yield chunk, str(exc)
            else:
                into.seal(ino, chunk, plain)

    def _copied_twin(self, into: DataRecords, pointer: bytes, owner: Owner) -> Owner | None:
        """Return another owner of the record that was copied already."""
        for other in self._references.owners(pointer):
            is_owner = other != owner and self._extents.pointer(*other) == pointer
            if is_owner and is_record(into._extents.pointer(*other)):
                return other
        return None

    def put_slot(self, ino: int, chunk: int, slot: bytes) -> None:
        """Give a chunk a slot of another volume that names no record there."""
        if is_reserved(slot):
            self.reserve(ino, chunk, slot)
        else:
            self._extents.set_pointer(ino, chunk, slot)

    def put_hole(self, ino: int, chunk: int) -> None:
        """Let a chunk be zeros, whatever the lower layer has."""
        self._extents.set_pointer(ino, chunk, HOLE)
