# SPDX-License-Identifier: Apache-2.0
"""No value that holds a key shows it in its representation, and so in no log and no traceback."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import serdab
from serdab import structs
from serdab.keys import Key

# Commitments and names, no keys.
_PUBLIC = ("key_separation", "key_check")


def classes() -> Iterator[type]:
    for found in pkgutil.walk_packages(serdab.__path__, "serdab."):
        if found.name == "serdab.__main__":
            continue
        module = importlib.import_module(found.name)
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == found.name:
                yield value


def holds_key(cls: type) -> bool:
    """Return whether a field is called a key and is bytes, or a collection of them."""
    kinds = getattr(cls, "__annotations__", {})
    return any(
        "key" in name and "bytes" in str(kinds.get(name)) and name not in _PUBLIC
        for name in getattr(cls, "__match_args__", ())
    )


def test_there_are_such_values() -> None:
    assert {cls.__name__ for cls in classes() if holds_key(cls)} >= {"Orders", "BootRequest"}


@pytest.mark.parametrize("cls", sorted([cls for cls in classes() if holds_key(cls)], key=str))
def test_a_value_with_a_key_writes_its_own_representation(cls: type) -> None:
    assert cls.__dict__["__repr__"] is not structs._show  # which shows every field


def test_a_key_shows_nothing() -> None:
    key = Key(bytes(range(16)))
    assert f"{key} {key!r} {[key]}" == "Key(redacted) Key(redacted) [Key(redacted)]"
