# SPDX-License-Identifier: Apache-2.0
"""What an extent slot of a volume says: a record, nothing, or one of the special things. Pure.

Above: ``extents``, ``datarecords``, ``content``. Below: ``segment`` (the pointer to a record).

On-disk format: 32 bytes each, told apart by the segment number they begin with (little-endian)::

    0                 all zero: absent. The lower layer shows through below ``lower_limit``
    below fff00000    a pointer to a record (see ``segment``)
    ffffffff          zeros that hide the lower layer; the rest is zero
    fffffffe          a part of a file of a lower layer (version 2):
                      length u32 | ino u64 | offset u64 | layer u32 | zero u32
                      what of the chunk the part does not fill is zero
    fffffffd          reserved and not written, reads as zeros (version 2):
                      zero u32 | stored u32 | zero; ``stored`` is what its record will take
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from serdab.crypto.aead import TAG_BYTES
from serdab.errors import FormatError
from serdab.sefs import keyspace as ks
from serdab.sefs.segment import ABSENT, HOLE, MAX_SEGMENT, POINTER, POINTER_BYTES, S_RESERVED

S_LOWER: Final = 0xFFFFFFFE
NOTHING: Final = (ABSENT, HOLE)
MAX_CHUNK: Final = 1 << ks.MOST_RECORD
"""Bytes of content in one record."""
_LOWER: Final = struct.Struct("<IIQQII")
_TOP: Final = 0xFF
"""The highest byte of the number of every special slot, and of no segment that ever was."""


class LowerPart(NamedTuple):
    """A part of a file of a lower layer."""

    ino: int
    offset: int
    length: int


def is_record(slot: bytes) -> bool:
    """Return whether a slot names a record."""
    return 0 < int.from_bytes(slot[:4], "little") < MAX_SEGMENT


def stored_bytes(value: bytes) -> int:
    """Return what the records take that the slots of an extent item name.

    Raises:
        FormatError: its length is no number of slots.
    """
    if len(value) % POINTER_BYTES:
        raise FormatError("extent item of an impossible length", found=str(len(value)))
    return sum(
        stored for segment, _, stored, _, _ in POINTER.iter_unpack(value) if segment < MAX_SEGMENT
    )


def dump_lower(part: LowerPart) -> bytes:
    """Return the slot of a part of the one lower layer."""
    return _LOWER.pack(S_LOWER, part.length, part.ino, part.offset, 0, 0)


def parse_lower(slot: bytes) -> LowerPart | None:
    """Return the part that a slot names, or None if it is another slot."""
    if slot[3] != _TOP:
        return None
    segment, length, ino, offset, _, _ = _LOWER.unpack(slot)
    return LowerPart(ino, offset, length) if segment == S_LOWER else None


def dump_reserved(chunk_bytes: int) -> bytes:
    """Return the slot of a chunk of which nothing is written."""
    return POINTER.pack(S_RESERVED, 0, chunk_bytes + TAG_BYTES, 0, bytes(TAG_BYTES))


def is_reserved(slot: bytes) -> bool:
    """Return whether a slot holds room for a record."""
    return slot[3] == _TOP and int.from_bytes(slot[:4], "little") == S_RESERVED


def check_group(ino: int, value: bytes, version: int) -> bytes:
    """Return the value of an extent item, checked but for what its records themselves show.

    Raises:
        FormatError: its length is no number of slots, or more than a group has; or a slot is none
            of this version.
    """
    if len(value) % POINTER_BYTES or len(value) > ks.GROUP * POINTER_BYTES:
        raise FormatError("extent item of an impossible length", subject=f"inode {ino}")
    tops = value[3::POINTER_BYTES]
    if _TOP in tops:
        for index, top in enumerate(tops):
            slot = value[index * POINTER_BYTES : (index + 1) * POINTER_BYTES]
            if top == _TOP and not (is_record(slot) or _is_special(slot, version)):
                raise FormatError("extent slot that says nothing", subject=f"inode {ino}")
    return value


def _is_special(slot: bytes, version: int) -> bool:
    if slot == HOLE:
        return True
    if version == ks.V1:
        return False
    segment, length, ino, offset, layer, zero = _LOWER.unpack(slot)
    if segment == S_LOWER:
        return (
            0 < length <= MAX_CHUNK
            and 1 <= ino <= ks.MAX_INO
            and offset + length <= ks.MAX_FILE_BYTES
            and not layer
            and not zero
        )
    _, at, stored, number, tag = POINTER.unpack(slot)
    return (
        segment == S_RESERVED
        and TAG_BYTES < stored <= MAX_CHUNK + TAG_BYTES
        and not (at or number or any(tag))
    )
