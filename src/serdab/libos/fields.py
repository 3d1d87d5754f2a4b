# SPDX-License-Identifier: Apache-2.0
"""Typed access to the fields of a record that came from another process. Pure.

Above: everything that parses a message. Below: ``messages``. A field that is missing or of another
type is a ``FormatError`` that names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serdab.errors import FormatError
from serdab.libos.messages import Value


def text(record: Mapping[str, Value], name: str) -> str:
    """Return a text field, or raise ``FormatError``."""
    value = record.get(name)
    if not isinstance(value, str):
        raise FormatError(f"a message lacks the text {name}")
    return value


def optional_text(record: Mapping[str, Value], name: str) -> str | None:
    """Return a text field or None."""
    return None if record.get(name) is None else text(record, name)


def raw(record: Mapping[str, Value], name: str) -> bytes:
    """Return a bytes field, or raise ``FormatError``."""
    value = record.get(name)
    if not isinstance(value, bytes):
        raise FormatError(f"a message lacks the bytes {name}")
    return value


def optional_raw(record: Mapping[str, Value], name: str) -> bytes | None:
    """Return a bytes field or None."""
    return None if record.get(name) is None else raw(record, name)


def number(record: Mapping[str, Value], name: str) -> int:
    """Return an integer field, or raise ``FormatError``."""
    value = record.get(name)
    if not isinstance(value, int):
        raise FormatError(f"a message lacks the number {name}")
    return value


def optional_number(record: Mapping[str, Value], name: str) -> int | None:
    """Return an integer field or None."""
    return None if record.get(name) is None else number(record, name)


def many(record: Mapping[str, Value], name: str) -> Sequence[Value]:
    """Return a list field, or raise ``FormatError``."""
    value = record.get(name)
    if not isinstance(value, list):
        raise FormatError(f"a message lacks the list {name}")
    return value


def byte_strings(record: Mapping[str, Value], name: str) -> tuple[bytes, ...]:
    """Return a list of bytes, or raise ``FormatError``."""
    items = many(record, name)
    out = tuple(item for item in items if isinstance(item, bytes))
    if len(out) != len(items):
        raise FormatError(f"a message lacks the byte strings {name}")
    return out
