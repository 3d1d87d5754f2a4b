# SPDX-License-Identifier: Apache-2.0
"""What the operator reads of refused calls is bounded, whoever refused them; nothing is lost."""

from __future__ import annotations

import math

from serdab.libos.intake import Intake
from serdab.libos.loop import Loop


def told(*reasons: str) -> list[str]:
    """Return the lines that refusals of one moment become."""
    lines: list[str] = []
    intake = Intake(
        Loop(),
        {},
        owner=(0, 0),
        accept=lambda listener, notification, copied: None,
        log=lambda level, line: lines.append(f"{level}: {line}"),
    )
    intake._room_until = math.inf  # however long this test takes
    for reason in reasons:
        intake.tell(reason)
    intake.flush()
    return lines


def test_each_refusal_is_a_line() -> None:
    assert told("mount: '/a': No such file", "mount: '/b': Not a directory") == [
        "error: mount: '/a': No such file",
        "error: mount: '/b': Not a directory",
    ]


def test_the_same_words_in_a_row_are_counted() -> None:
    assert told("a", "a", "a", "b", "a") == ["error: a (3 times)", "error: b", "error: a"]


def test_beyond_the_bound_they_are_only_counted() -> None:
    lines = told(*map(str, range(1000)))
    assert len(lines) == 257
    assert lines[-1] == "error: refused besides, too many to tell: 744 calls"
