# SPDX-License-Identifier: Apache-2.0
"""What nobody would see in a line is escaped there, whatever category Unicode has it in."""

from __future__ import annotations

import sys
import unicodedata
from typing import Final

import pytest

from serdab.characters import is_ignorable, is_seen
from serdab.config.names import fold
from serdab.errors import printable

#: Letters, marks and symbols by category, so ``str.isprintable`` lets them pass.
UNSEEN: Final = (
    "HANGUL CHOSEONG FILLER",
    "HANGUL JUNGSEONG FILLER",
    "HANGUL FILLER",
    "HALFWIDTH HANGUL FILLER",
    "COMBINING GRAPHEME JOINER",
    "KHMER VOWEL INHERENT AQ",
    "MONGOLIAN FREE VARIATION SELECTOR ONE",
    "VARIATION SELECTOR-16",
    "VARIATION SELECTOR-256",
    "BRAILLE PATTERN BLANK",
    "KHITAN SMALL SCRIPT FILLER",
    "MUSICAL SYMBOL NULL NOTEHEAD",
)


@pytest.mark.parametrize("name", UNSEEN)
def test_what_is_not_drawn_is_escaped(name: str) -> None:
    character = unicodedata.lookup(name)
    assert character.isprintable()
    escaped = character.encode("unicode_escape").decode()
    assert printable(f"build{character}/ok") == f"build{escaped}/ok"


def test_what_no_category_draws_is_escaped() -> None:
    """Controls, formats, surrogates, private, unassigned, and all separators but the space."""
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        if category[0] == "C" or (category[0] == "Z" and code != 0x20):
            assert not is_seen(chr(code)), hex(code)


def test_what_is_drawn_stays() -> None:
    seen = "äöü ß 漢字 한글 ᄀ עברית ภาษา é क्ष ⠓ ❤ \\ ~"
    assert printable(seen) == seen


def test_a_file_system_that_ignores_them_finds_the_reserved_name() -> None:
    for name in UNSEEN[:9]:
        character = unicodedata.lookup(name)
        assert is_ignorable(character)
        assert fold(f"Occlum{character}.json".encode()) == b"occlum.json"
