# SPDX-License-Identifier: Apache-2.0
"""How much programs may mount: numbers with bounds, measured only where they differ."""

from __future__ import annotations

import json

import pytest

from serdab.config.mounts import (
    EVERYTHING,
    MOST_MOUNTS,
    MOST_VOLUMES,
    MountPolicy,
    dump_policy,
    parse_policy,
)
from serdab.config.strict import load_object
from serdab.errors import Error, UsageError


def _fail(path: str, expected: str, found: str, _hint: str) -> Error:
    return UsageError("refused", subject=path, expected=expected, found=found)


def _parse(**values: object) -> MountPolicy:
    return parse_policy(load_object(json.dumps(values).encode(), _fail))


def test_without_a_word_there_are_64_mounts_and_1024_volumes() -> None:
    assert (_parse().max_mounts, _parse().max_volumes) == (64, 1024)
    assert _parse() == EVERYTHING


@pytest.mark.parametrize("name", ["max_mounts", "max_volumes"])
@pytest.mark.parametrize("value", [0, -1, MOST_VOLUMES + 1, True, "64", 1.5, None])
def test_other_numbers_are_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError) as refused:
        _parse(**{name: value})
    assert refused.value.subject == name


def test_the_bounds_themselves_are_admitted() -> None:
    for mounts, volumes in ((1, 1), (MOST_MOUNTS, MOST_VOLUMES)):
        policy = _parse(max_mounts=mounts, max_volumes=volumes)
        assert (policy.max_mounts, policy.max_volumes) == (mounts, volumes)
    with pytest.raises(UsageError):
        _parse(max_mounts=MOST_MOUNTS + 1)


def test_what_is_measured_is_read_back_and_defaults_keep_old_bytes() -> None:
    policy = MountPolicy(programs=("/bin/app",), max_mounts=3, max_volumes=7)
    assert _parse(**dump_policy(policy)) == policy
    assert "max_mounts" not in dump_policy(MountPolicy(programs=("/bin/app",)))
