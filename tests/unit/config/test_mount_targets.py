# SPDX-License-Identifier: Apache-2.0
"""The field ``targets`` of ``serdab.runtime_mounts``: two words, and no byte for the default."""

from __future__ import annotations

import pytest

from serdab.config.mounts import ANY, EVERYTHING, OWN, MountPolicy, dump_policy, parse_policy
from serdab.config.strict import Section
from serdab.errors import Error, UsageError


def fail(field: str, expected: str, found: str, hint: str) -> Error:
    return UsageError("refused", subject=field, expected=expected, found=found, hint=hint)


def parse(value: dict[str, object]) -> MountPolicy:
    return parse_policy(Section(value, "runtime_mounts", fail))


def test_who_does_not_use_it_keeps_the_bytes_of_the_measured_configuration() -> None:
    assert parse({}) == EVERYTHING
    assert parse({"targets": OWN}) == EVERYTHING
    assert "targets" not in dump_policy(EVERYTHING)


def test_what_is_dumped_is_parsed() -> None:
    policy = MountPolicy(targets=ANY)
    assert parse(dump_policy(policy)) == policy


@pytest.mark.parametrize("value", ["", "all", "ANY", None, True, ["any"]])
def test_another_word_is_refused(value: object) -> None:
    with pytest.raises(UsageError) as caught:
        parse({"targets": value})
    assert "targets" in caught.value.subject
