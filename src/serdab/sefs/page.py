# SPDX-License-Identifier: Apache-2.0
"""One page of a tree: a sorted run of (key, value) items in bytes. Pure.

Above: ``tree``. Below: nothing.

On-disk format (integers little-endian)::

    0   u8   level         0 = leaf; an interior page's values are pointers to pages of level-1
    1   u8   zero
    2   u16  count         n, at least 1
    4   u32  key_end[n]    end of key i within the key area
    ..  u32  value_end[n]  end of value i within the value area
    ..  keys, joined       strictly increasing as bytes
    ..  values, joined     nothing follows

An interior item's key is the first key of the child page.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, final

from serdab.errors import FormatError

Item = tuple[bytes, bytes]

_HEAD: Final = struct.Struct("<BBH")
MAX_PAGE_BYTES: Final = 1 << 20
MAX_LEVEL: Final = 12
ITEM_OVERHEAD: Final = 8


@final
class Page:
    """A decoded page; ``values`` are sliced on demand."""

    __slots__ = ("_raw", "_value_base", "_value_ends", "keys", "level")

    def __init__(
        self, level: int, keys: list[bytes], raw: bytes, value_ends: Sequence[int], base: int
    ) -> None:
        self.level = level
        self.keys = keys
        self._raw = raw
        self._value_ends = value_ends
        self._value_base = base

    def value(self, index: int) -> bytes:
        """Return value ``index``."""
        start = self._value_base + (self._value_ends[index - 1] if index else 0)
        return self._raw[start : self._value_base + self._value_ends[index]]

    def items(self) -> list[Item]:
        """Return all items in order."""
        return [(key, self.value(i)) for i, key in enumerate(self.keys)]

    def size_bytes(self) -> int:
        """Return the length of the page's bytes."""
        return len(self._raw)


def parse_page(raw: bytes, *, level: int) -> Page:
    """Return the page, checked as if an enemy who knows the key had written it.

    Raises:
        FormatError: a field is out of range, or keys are not strictly increasing.
    """
    if len(raw) < _HEAD.size or len(raw) > MAX_PAGE_BYTES:
        raise FormatError("tree page of an impossible length", found=str(len(raw)))
    got_level, zero, count = _HEAD.unpack_from(raw)
    if got_level != level or zero != 0 or count == 0:
        raise FormatError(
            "tree page of the wrong level", expected=str(level), found=f"{got_level}, {count} items"
        )
    key_base = _HEAD.size + 8 * count
    if key_base > len(raw):
        raise FormatError("tree page shorter than its item table")
    ends = struct.unpack_from(f"<{2 * count}I", raw, _HEAD.size)
    key_ends, value_ends = ends[:count], ends[count:]
    value_base = key_base + key_ends[-1]
    if value_base + value_ends[-1] != len(raw):
        raise FormatError("tree page with bytes that belong to no item")
    keys = []
    start = previous = 0
    for end in key_ends:
        if end <= start:
            raise FormatError("tree page with an empty key")
        keys.append(raw[key_base + start : key_base + end])
        start = end
    for end in value_ends:
        if end < previous:
            raise FormatError("tree page with overlapping values")
        previous = end
    for i in range(1, count):
        if keys[i - 1] >= keys[i]:
            raise FormatError("tree page with keys out of order")
    return Page(level, keys, raw, value_ends, value_base)


def page_bytes(items: Sequence[Item]) -> int:
    """Return how long the page of these items is."""
    return _HEAD.size + sum(len(key) + len(value) + ITEM_OVERHEAD for key, value in items)


def dump_page(level: int, items: Sequence[Item]) -> bytes:
    """Return the bytes of a page. ``items`` are sorted and not empty."""
    key_ends: list[int] = []
    value_ends: list[int] = []
    key_total = value_total = 0
    for key, value in items:
        key_total += len(key)
        value_total += len(value)
        key_ends.append(key_total)
        value_ends.append(value_total)
    return b"".join(
        (
            _HEAD.pack(level, 0, len(items)),
            struct.pack(f"<{2 * len(items)}I", *key_ends, *value_ends),
            *[key for key, _ in items],
            *[value for _, value in items],
        )
    )


def split_items(items: Sequence[Item], page_size: int) -> list[Sequence[Item]]:
    """Cut a run of items into pages of about equal size, none above ``page_size`` if avoidable.

    The result depends on the items alone, so equal content gives equal pages.
    """
    sizes = [len(key) + len(value) + ITEM_OVERHEAD for key, value in items]
    total = sum(sizes)
    if total + _HEAD.size <= page_size:
        return [items]
    goal = total / -(-total // (page_size - _HEAD.size))
    pages: list[Sequence[Item]] = []
    start = filled = 0
    for i, size in enumerate(sizes):
        if i > start and filled + size / 2 > goal:
            pages.append(items[start:i])
            start, filled = i, 0
        filled += size
    pages.append(items[start:])
    return pages
