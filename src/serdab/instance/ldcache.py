# SPDX-License-Identifier: Apache-2.0
"""The cache of glibc's loader, ``/etc/ld.so.cache``: read and written without running ldconfig.

On-disk format:
    That of glibc's ``cache_file_new`` (sysdeps/generic/dl-cache.h): magic and version (20 bytes),
    count u32, length of strings u32, flags u8 + 3 bytes, extension offset u32, 12 bytes unused;
    entries of flags i32, key u32, value u32, os version u32, hwcap u64; then the strings, whose
    offsets count from the start of the header. Entries are sorted in falling order of the loader's
    own comparison, since it searches by halving. Older files put another table in front.
"""

from __future__ import annotations

import functools
import struct
from typing import Final

from serdab.structs import frozen

_MAGIC: Final = b"glibc-ld.so.cache1.1"
_OLD_MAGIC: Final = b"ld.so-1.7.0"
_HEADER: Final = struct.Struct("<20sIIB3xI12x")
_ENTRY: Final = struct.Struct("<iIIIQ")
_LITTLE_ENDIAN: Final = 2
# The upper half of an entry's hwcap when the lower is the number of a glibc-hwcaps directory.
_HWCAPS_EXTENSION: Final = 1 << 30
_MAX_LIBRARIES: Final = 1 << 20
# ELF libraries of the sixth libc, by machine (FLAG_ELF_LIBC6 and the FLAG_* of ldconfig.h).
FLAGS: Final = {"EM_X86_64": 0x0303, "EM_AARCH64": 0x0A03, "EM_386": 0x0003}


@frozen
class Entry:
    """One library: its name, where it is, which kind; ``is_variant``: for some processors only."""

    name: str
    path: str
    flags: int
    is_variant: bool = False


def parse(raw: bytes) -> list[tuple[str, str, int]]:
    """Return (name, path, flags) of every entry for all processors.

    A file that is no cache gives an empty list, as it does to the loader.
    """
    return [(one.name, one.path, one.flags) for one in entries(raw) if not one.is_variant]


def entries(raw: bytes) -> list[Entry]:
    """Return every entry, but those for processors that loaders before 2.37 told apart."""
    start = 0
    if raw.startswith(_OLD_MAGIC):
        start = raw.find(_MAGIC)
    if start < 0 or not raw.startswith(_MAGIC, start) or len(raw) < start + _HEADER.size:
        return []
    _, count, _, _, _ = _HEADER.unpack_from(raw, start)
    out = []
    for index in range(min(count, _MAX_LIBRARIES)):
        position = start + _HEADER.size + index * _ENTRY.size
        if position + _ENTRY.size > len(raw):
            break
        flags, key, value, _, hwcap = _ENTRY.unpack_from(raw, position)
        if hwcap == 0 or hwcap >> 32 == _HWCAPS_EXTENSION:
            name, path = _string(raw, start + key), _string(raw, start + value)
            out.append(Entry(name, path, flags, is_variant=hwcap != 0))
    return out


def _string(raw: bytes, offset: int) -> str:
    end = raw.find(b"\0", offset)
    return raw[offset:end].decode("utf-8", "surrogateescape") if 0 <= offset < end else ""


def dump(entries: list[tuple[str, str, int]]) -> bytes:
    """Return a cache with (name, path, flags) entries."""
    order = sorted(entries, key=lambda entry: (_falling(entry[0]), entry[2], entry[1]))
    strings = bytearray()
    base = _HEADER.size + len(order) * _ENTRY.size
    table = bytearray()
    for name, path, flags in order:
        offsets = []
        for text in (name, path):
            offsets.append(base + len(strings))
            strings += text.encode("utf-8", "surrogateescape") + b"\0"
        table += _ENTRY.pack(flags, offsets[0], offsets[1], 0, 0)
    header = _HEADER.pack(_MAGIC, len(order), len(strings), _LITTLE_ENDIAN, 0)
    return header + bytes(table) + bytes(strings)


def _compare(first: str, second: str) -> int:
    """Compare two names as the loader does: runs of digits by their value."""
    left, right = (
        first.encode("utf-8", "surrogateescape"),
        second.encode("utf-8", "surrogateescape"),
    )
    a = b = 0
    while a < len(left):
        left_digit = left[a : a + 1].isdigit()
        right_digit = right[b : b + 1].isdigit()
        if left_digit and right_digit:
            end_a, end_b = a, b
            while left[end_a : end_a + 1].isdigit():
                end_a += 1
            while right[end_b : end_b + 1].isdigit():
                end_b += 1
            difference = int(left[a:end_a]) - int(right[b:end_b])
            if difference:
                return difference
            a, b = end_a, end_b
        elif left_digit:
            return 1
        elif right_digit:
            return -1
        else:
            other = right[b] if b < len(right) else 0
            if left[a] != other:
                return left[a] - other
            a += 1
            b += 1
    return -(right[b] if b < len(right) else 0)


def _compare_falling(first: str, second: str) -> int:
    return _compare(second, first)


_falling = functools.cmp_to_key(_compare_falling)
