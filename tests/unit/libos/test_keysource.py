# SPDX-License-Identifier: Apache-2.0
"""Which part of a key's origin differs: the words of a refusal, from words nobody verified."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serdab.libos.keysource import (
    AUTOMATIC,
    BUILT_IN,
    NAMED,
    USER,
    KeySource,
    parse_untrusted,
    wrong_key,
)
from serdab.structs import replace

OURS = KeySource(
    AUTOMATIC, platform="simulation", platform_id="ab" * 16, mrsigner="12" * 32, product="0"
)
GENERIC = "wrong key, or the anchor was damaged"


@pytest.mark.parametrize(
    ("theirs", "ours", "message", "expected"),
    [
        (replace(OURS, platform_id="cd" * 16), OURS, "another platform", "cd" * 16),
        (replace(OURS, platform="sev-snp"), OURS, "another kind of platform", "sev-snp"),
        (replace(OURS, mrsigner="34" * 32), OURS, "another signer", "34" * 32),
        (replace(OURS, product="7"), OURS, "another product id", "product 7"),
        (replace(OURS, mrenclave="56" * 32), OURS, "another build", "56" * 32),
        (OURS, replace(OURS, mrenclave="56" * 32), "another build", "not bound"),
        (KeySource(USER), OURS, "another kind of key", "an image key"),
        (OURS, KeySource(USER), "another kind of key", "the automatic key"),
        (replace(OURS, kind=BUILT_IN), OURS, "another kind of key", "built-in"),
        (KeySource(NAMED, name="a"), KeySource(NAMED, name="b"), "another named key", "named a"),
        (KeySource(USER), KeySource(USER), GENERIC, "the key that the volume was made with"),
        (OURS, OURS, GENERIC, "the key that the volume was made with"),
        # Volumes of before the platform's id was kept.
        (replace(OURS, platform_id=""), OURS, GENERIC, ""),
    ],
)
def test_the_difference_is_named(
    theirs: KeySource, ours: KeySource, message: str, expected: str
) -> None:
    error = wrong_key(theirs.dump(), ours.dump(), subject="run/anchor", stage="rootfs")
    assert (error.exit_code, error.kind) == (4, "wrong-key")
    assert (error.subject, error.stage) == ("run/anchor", "rootfs")
    assert message in error.message
    assert expected in error.expected
    assert error.found
    assert error.hint
    assert ("unverified" in error.expected) == (error.message != GENERIC)


def test_all_differences_are_listed_and_the_first_gives_the_message() -> None:
    theirs = replace(OURS, platform_id="cd" * 16, mrsigner="34" * 32, product="7")
    error = wrong_key(theirs.dump(), OURS.dump())
    assert "another platform" in error.message
    for part in ("platform id", "mrsigner", "product 7"):
        assert part in error.expected


def test_what_is_kept_is_read_again() -> None:
    for source in (
        OURS,
        replace(OURS, mrenclave="56" * 32),
        KeySource(USER),
        KeySource(NAMED, "n"),
    ):
        assert parse_untrusted(source.dump()) == source


def test_the_words_of_before_the_platform_id_are_read() -> None:
    old = {
        "key": "automatic",
        "platform": "simulation",
        "policy": f"mrsigner={'12' * 32} product=0",
    }
    assert parse_untrusted(json.dumps(old).encode()) == replace(OURS, platform_id="")


@given(st.binary(max_size=200) | st.recursive(st.text() | st.integers() | st.none(),
       lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["key", "platform", "policy"]) |
       st.text(), x)).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_hostile_words_give_a_refusal_and_nothing_else(raw: bytes) -> None:
    error = wrong_key(raw, OURS.dump())
    assert error.kind == "wrong-key"
    assert all(character.isprintable() for character in str(error))


@pytest.mark.parametrize("raw", [None, b"", b"{}", b"[]", b'{"key":"automatic"}', b"[" * 1000])
def test_unreadable_words_give_the_general_refusal(raw: bytes | None) -> None:
    assert wrong_key(raw, OURS.dump()).message == GENERIC
