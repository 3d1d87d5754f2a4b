# SPDX-License-Identifier: Apache-2.0
"""Checks the items of a volume: each for itself, and what they say together.

Above: ``fsck``. Below: ``volume``, ``damage``.

Of version 2 each item is decoded, and held against the others: the live bytes of each segment are
those of the records that extents and pages name, each record counted once; a record that several
extents name says so, and by how many; the owners that space reclaim asks lead to every record; and
what is reserved is what the anchor says. Memory grows with the number of shared records, and with
that of the records of one segment.

The items of version 1 are looked at for their inodes only: what an older program let slip in its
accounts costs space and no content.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, final

from serdab.errors import AuthenticationError, FormatError
from serdab.sefs import keyspace as ks
from serdab.sefs.damage import Report, tolerant_items
from serdab.sefs.reclaim import owners_of
from serdab.sefs.segment import POINTER, POINTER_BYTES
from serdab.sefs.slots import check_group, is_record, is_reserved
from serdab.sefs.volume import Volume

_LEAST_RECORD: Final = 17
"""A record takes at least so many bytes: a byte and its tag."""
_KEY_LENGTHS: Final = {
    ks.T_INODE: (9,),
    ks.T_INLINE: (9,),
    ks.T_EXTENTS: (13,),
    ks.T_ORPHAN: (17,),
    ks.T_RECORDS: (17, 29),
    ks.T_SHARED: (17,),
}


@final
class VolumeCheck:
    """One pass over the items of a volume."""

    def __init__(self, volume: Volume, report: Report) -> None:
        self._volume = volume
        self._report = report
        self._is_deep = volume.version != ks.V1
        self._holders: set[int] = set()
        self._orphans: set[int] = set()
        self._shared: dict[tuple[int, int], int] = {}
        self._named: Counter[tuple[int, int]] = Counter()
        self._live: Counter[int] = Counter()
        self._pages: Counter[int] = Counter()
        self._reserved_bytes = 0

    def run(self) -> set[int]:
        """Check all; return the inodes that have items, other than those in use without a name."""
        report = self._report
        try:
            self._shared = self._volume.shared_records() if self._is_deep else {}
        except (AuthenticationError, FormatError) as exc:
            report.add("items", exc)  # and the pass below says where
        for key, value in self._volume.items_now(
            lambda tree: tolerant_items(tree, report, self._page)
        ):
            self._item(key, value)
        if self._is_deep and report.is_clean():  # else the sums are those of what is left
            self._accounts()
        return self._holders - self._orphans - {0}

    def _page(self, pointer: bytes) -> None:
        segment, _, stored, _, _ = POINTER.unpack(pointer)
        self._pages[segment] += stored

    def _item(self, key: bytes, value: bytes) -> None:
        ino = int.from_bytes(key[:8], "big")
        self._holders.add(ino)
        if key[8:9] == bytes((ks.T_ORPHAN,)):
            self._orphans.add(int.from_bytes(key[9:17], "big"))
        if not self._is_deep:
            return
        try:
            self._decode(ino, key, value)
        except FormatError as exc:
            self._report.add(f"inode {ino}" if ino else f"item {key.hex()}", exc)

    def _decode(self, ino: int, key: bytes, value: bytes) -> None:
        kind = key[8] if len(key) > 8 else 0
        if kind in _KEY_LENGTHS and len(key) not in _KEY_LENGTHS[kind]:
            raise FormatError("item with an impossible key", found=key.hex())
        match kind:
            case ks.T_INODE:
                ks.parse_inode(ino, value, self._volume.version)
            case ks.T_XATTR:
                ks.check_xattr(key[9:], value, self._volume.version)
            case ks.T_DIRENT:
                ks.parse_dirent_key(key)
                ks.parse_dirent(value)
            case ks.T_EXTENTS:
                self._extents(check_group(ino, value, self._volume.version))
            case ks.T_SHARED:
                ks.parse_shared(value)
            case ks.T_RECORDS:
                if not value or len(value) % ks.OWNER.size:
                    raise FormatError("owners of an impossible length", found=str(len(value)))
            case ks.T_INLINE | ks.T_ORPHAN:
                return
            case _:
                raise FormatError("item of a kind that no volume has", found=key.hex())

    def _extents(self, value: bytes) -> None:
        for start in range(0, len(value), POINTER_BYTES):
            slot = value[start : start + POINTER_BYTES]
            segment, _, stored, number, _ = POINTER.unpack(slot)
            if is_reserved(slot):
                self._reserved_bytes += stored
            elif is_record(slot):
                where = segment, number
                if where in self._shared:
                    self._named[where] += 1
                if self._named[where] <= 1:
                    self._live[segment] += stored

    def _accounts(self) -> None:
        report, volume = self._report, self._volume
        for where, count in self._shared.items():
            if self._named[where] != count:
                report.add(
                    f"record {where[1]} of segment {where[0]:08x}",
                    f"{count} extents are said to name it, {self._named[where]} do",
                )
        usage = volume.usage_by_segment()
        told = {number: max(entry.live, 0) for number, entry in usage.items()}
        for segment in sorted(self._live.keys() | self._pages.keys() | told.keys()):
            live = self._live[segment] + self._pages[segment]
            if told.get(segment, 0) != live:
                report.add(
                    f"segment {segment:08x}",
                    f"{told.get(segment, 0)} live bytes are counted, {live} are named",
                )
            elif self._owned(segment) != self._live[segment]:
                report.add(f"segment {segment:08x}", "records in it have no owner that is known")
        if volume.reserved_bytes != self._reserved_bytes:
            report.add(
                "reserved room",
                f"{volume.reserved_bytes} bytes are counted, {self._reserved_bytes} are named",
            )

    def _owned(self, segment: int) -> int:
        """Return the bytes of the records of a segment that known owners lead to."""
        if not self._live[segment]:
            return 0
        volume = self._volume
        seen = bytearray(volume.usage_by_segment()[segment].used // _LEAST_RECORD + 1)
        found = 0
        for _, value in owners_of(volume.current_items, segment):
            for ino, chunk, offset, stored in ks.OWNER.iter_unpack(value):
                pointer = POINTER.unpack(volume.slot(ino, chunk))
                number = pointer[3]
                is_here = pointer[:3] == (segment, offset, stored) and number < len(seen)
                if is_here and not seen[number]:
                    seen[number] = 1
                    found += stored
        return found
