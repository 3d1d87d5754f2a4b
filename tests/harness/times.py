# SPDX-License-Identifier: Apache-2.0
"""What the suite costs, by directory: a table at the end of every run of the tests.

Seconds of the clock that tests took, their fixtures included, all workers added up, so that growth
is seen by whoever adds to it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import pytest

_COLUMNS: Final = 4
_STARTED_S: Final = pytest.StashKey[float]()


def directory_of(nodeid: str) -> str:
    """Return the directory below tests/ that a test lies in, or whatever else it lies in."""
    parts = nodeid.partition("::")[0].split("/")[:-1]
    return parts[1] if parts[:1] == ["tests"] and len(parts) > 1 else "/".join(parts) or "."


def table(reports: Iterable[pytest.TestReport], *, passed_s: float) -> list[str]:
    """Return the lines of the table, the dearest directory first."""
    seconds: defaultdict[str, float] = defaultdict(float)
    tests: defaultdict[str, int] = defaultdict(int)
    for report in reports:
        name = directory_of(report.nodeid)
        seconds[name] += report.duration
        tests[name] += report.when == "setup"
    dearest = sorted(seconds, key=lambda name: -seconds[name])
    cells = [f"{name} {seconds[name]:.0f}/{tests[name]}" for name in dearest]
    lines = [
        f"seconds/tests by directory, {sum(seconds.values()):.0f}/{sum(tests.values())}"
        f" in {passed_s:.0f} s:"
    ]
    for start in range(0, len(cells), _COLUMNS):
        row = cells[start : start + _COLUMNS]
        lines.append("  " + "".join(f"{cell:<24}" for cell in row).rstrip())
    return lines


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STARTED_S] = time.monotonic()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # The reports of all workers are here; a worker has no terminal.
    reports = [
        report
        for some in terminalreporter.stats.values()
        for report in some
        if isinstance(report, pytest.TestReport)
    ]
    passed_s = time.monotonic() - terminalreporter.config.stash[_STARTED_S]
    for line in table(reports, passed_s=passed_s):
        terminalreporter.write_line(line)
