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
    """Return a text field or None, which is said too: what is missing is not None."""
    return None if _present(record, name) is None else text(record, name)


def raw(record: Mapping[str, Value], name: str) -> bytes:
    """Return a bytes field, or raise ``FormatError``."""
    value = record.get(name)
    if not isinstance(value, bytes):
        raise FormatError(f"a message lacks the bytes {name}")
    return value


def optional_raw(record: Mapping[str, Value], name: str) -> bytes | None:
    """Return a bytes field or None, as :func:`optional_text`."""
    return None if _present(record, name) is None else raw(record, name)


def optional_record(record: Mapping[str, Value], name: str) -> Mapping[str, Value] | None:
    """Return a record within a record or None, as :func:`optional_text`."""
    return None if _present(record, name) is None else record_of(record[name], name)


def _present(record: Mapping[str, Value], name: str) -> Value:
    if name not in record:
        raise FormatError(f"a message lacks {name}")
    return record[name]


def number(record: Mapping[str, Value], name: str) -> int:
    """Return an integer field, or raise ``FormatError``."""
    value = record.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise FormatError(f"a message lacks the number {name}")
    return value


def optional_number(record: Mapping[str, Value], name: str) -> int | None:
    """Return an integer field or None, as :func:`optional_text`."""
    return None if _present(record, name) is None else number(record, name)


def flag(record: Mapping[str, Value], name: str) -> bool:
    """Return true or false, or raise ``FormatError``: what is missing is not false."""
    value = record.get(name)
    if not isinstance(value, bool):
        raise FormatError(f"a message lacks the flag {name}")
    return value


def record_of(value: Value, name: str) -> Mapping[str, Value]:
    """Return a record within a record, or raise ``FormatError``."""
    if not isinstance(value, dict):
        raise FormatError(f"a message lacks the record {name}")
    return value


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
