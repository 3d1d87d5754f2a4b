# SPDX-License-Identifier: Apache-2.0
"""What a suite said, test by test, and which of its differences are known."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

KNOWN: Final = Path(__file__).with_name("known.md")

_LINE: Final = re.compile(r"(ok|not ok|skip) (.*)")
_NUMBERED: Final = re.compile(r"(\d+)(?: - | )?(.*)")


@dataclass(slots=True)
class Outcome:
    """Names of the tests that passed, failed (with why) and were skipped."""

    passed: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)

    @classmethod
    def parse(cls, text: str) -> Outcome:
        """Read what drive.sh says. What TAP calls TODO counts as skipped, as for prove(1)."""
        outcome, script = cls(), ""
        for line in text.splitlines():
            if line.startswith("# FILE "):
                script = line[7:]
                continue
            found = _LINE.fullmatch(line)
            if not found:
                continue
            verdict, rest = found.groups()
            if script:
                numbered = _NUMBERED.fullmatch(rest)
                number, why = numbered.groups() if numbered else ("?", rest)
                name = f"{script}:{number}"
            else:
                name, _, why = rest.partition(" - ")
            if verdict == "skip" or "# TODO" in rest or "# SKIP" in rest:
                outcome.skipped.add(name)
            elif verdict == "ok":
                outcome.passed.add(name)
            else:
                outcome.failed[name] = why
        return outcome

    def __str__(self) -> str:
        return f"{len(self.passed)} ok, {len(self.failed)} not, {len(self.skipped)} skipped"


@dataclass(frozen=True, slots=True)
class Known:
    """A line of known.md: patterns of the suite, the place and the test, and a reason."""

    suite: str
    place: str
    test: str
    reason: str

    def fits(self, suite: str, place: str, test: str) -> bool:
        return all(
            fnmatch.fnmatchcase(text, pattern)
            for text, pattern in (
                (suite, self.suite), (place, self.place), (test, self.test),
            )
        )  # fmt: skip


def load_known(text: str) -> list[Known]:
    """Read the table of known.md. Raises ValueError for a line without four columns."""
    lines = []
    for line in text.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) != 4 or not cells[3]:
                raise ValueError(f"known.md: expected suite, place, test, reason: {line}")
            suite, place, test = (cell.strip("`") for cell in cells[:3])
            lines.append(Known(suite, place, test, cells[3]))
    return lines


def differences(ours: Outcome, theirs: Outcome) -> dict[str, str]:
    """Return what fails, or is not there, on ours and not on the kernel's own file system."""
    found = {name: why for name, why in ours.failed.items() if name not in theirs.failed}
    said = ours.passed | ours.failed.keys() | ours.skipped
    for name in theirs.passed - said:
        found[name] = "not run"
    for name in theirs.passed & ours.skipped:
        found[name] = "skipped here only"
    return found
