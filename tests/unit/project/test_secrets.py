# SPDX-License-Identifier: Apache-2.0
"""No value that holds a key shows it in its representation, and so in no log and no traceback."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import serdab
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
    return dataclasses.is_dataclass(cls) and any(
        "key" in field.name and "bytes" in str(field.type) and field.name not in _PUBLIC
        for field in dataclasses.fields(cls)
    )


def test_there_are_such_values() -> None:
    assert {cls.__name__ for cls in classes() if holds_key(cls)} >= {"Orders", "BootRequest"}


@pytest.mark.parametrize("cls", sorted([cls for cls in classes() if holds_key(cls)], key=str))
def test_a_value_with_a_key_writes_its_own_representation(cls: type) -> None:
    # The one that dataclasses make is wrapped, against recursion, and shows every field.
    assert not hasattr(cls.__repr__, "__wrapped__")


def test_a_key_shows_nothing() -> None:
    key = Key(bytes(range(16)))
    assert f"{key} {key!r} {[key]}" == "Key(redacted) Key(redacted) [Key(redacted)]"
