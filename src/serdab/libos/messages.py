# SPDX-License-Identifier: Apache-2.0
"""How values travel between Serdab's own processes: dump and parse. Pure.

Plain values only: None, bool, int, bytes, str, list and dict with str keys. A reader of untrusted
bytes (a peer that was taken over) gets plain values or ``FormatError``, never code, and never
deeper than a fixed depth.

Format: one tag byte per value. ``n`` None, ``t`` true, ``f`` false, ``i`` 64-bit signed integer,
``b`` and ``s`` bytes and UTF-8 text (with surrogates, as file names have them) after a 32-bit
length, ``l`` and ``d`` list and dict after a 32-bit count. Little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from serdab.errors import FormatError, InternalError

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

Value = None | bool | int | bytes | str | Sequence["Value"] | Mapping[str, "Value"]

_LENGTH: Final = struct.Struct("<I")
_INTEGER: Final = struct.Struct("<q")
_MAX_DEPTH: Final = 16


def dump(value: Value) -> bytes:
    """Return the bytes of a value."""
    out = bytearray()
    _dump(value, out)
    return bytes(out)


def _dump(value: Value, out: bytearray) -> None:
    if value is None:
        out += b"n"
    elif value is True:
        out += b"t"
    elif value is False:
        out += b"f"
    elif isinstance(value, int):
        out += b"i" + _INTEGER.pack(value)
    elif isinstance(value, bytes):
        out += b"b" + _LENGTH.pack(len(value)) + value
    elif isinstance(value, str):
        raw = value.encode("utf-8", "surrogateescape")
        out += b"s" + _LENGTH.pack(len(raw)) + raw
    elif isinstance(value, Mapping):
        out += b"d" + _LENGTH.pack(len(value))
        for key, item in value.items():
            _dump(key, out)
            _dump(item, out)
    elif isinstance(value, Sequence):
        out += b"l" + _LENGTH.pack(len(value))
        for item in value:
            _dump(item, out)
    else:
        raise InternalError(f"a {type(value).__name__} cannot be sent")


def parse(raw: bytes) -> Value:
    """Return the value in ``raw``.

    Raises:
        FormatError: it is not exactly one value.
    """
    try:
        value, end = _parse(raw, 0, 0)
    except (struct.error, IndexError, UnicodeDecodeError) as exc:
        raise FormatError("a message between processes is malformed", found=str(exc)) from None
    if end != len(raw):
        raise FormatError("a message between processes is too long")
    return value


def parse_record(raw: bytes) -> dict[str, Value]:
    """Return the dict in ``raw``.

    Raises:
        FormatError: it is not one.
    """
    value = parse(raw)
    if not isinstance(value, dict):
        raise FormatError("a message between processes is not a record")
    return value


def _parse(raw: bytes, at: int, depth: int) -> tuple[Value, int]:
    tag = raw[at : at + 1]
    at += 1
    if tag == b"n":
        return None, at
    if tag == b"t":
        return True, at
    if tag == b"f":
        return False, at
    if tag == b"i":
        return _INTEGER.unpack_from(raw, at)[0], at + 8
    (length,) = _LENGTH.unpack_from(raw, at)
    at += 4
    if tag in (b"b", b"s"):
        piece = raw[at : at + length]
        if len(piece) != length:
            raise FormatError("a message between processes is cut off")
        at += length
        return (piece if tag == b"b" else piece.decode("utf-8", "surrogateescape")), at
    if depth == _MAX_DEPTH or length > len(raw) - at:
        raise FormatError("a message between processes is too deep or cut off")
    if tag == b"l":
        items: list[Value] = []
        for _ in range(length):
            item, at = _parse(raw, at, depth + 1)
            items.append(item)
        return items, at
    if tag == b"d":
        record: dict[str, Value] = {}
        for _ in range(length):
            key, at = _parse(raw, at, depth + 1)
            if not isinstance(key, str):
                raise FormatError("a message between processes has a key that is no text")
            record[key], at = _parse(raw, at, depth + 1)
        return record, at
    raise FormatError("a message between processes has an unknown tag")
