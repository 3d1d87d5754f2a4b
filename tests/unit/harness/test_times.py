# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Final, Literal

import pytest

from tests.harness.times import directory_of, table


@pytest.mark.parametrize(
    ("nodeid", "name"),
    [
        ("tests/unit/harness/test_times.py::test_x[tests/a]", "unit"),
        ("tests/boot/test_tree.py::TestX::test_y", "boot"),
        ("tests/test_x.py::test_y", "tests"),
        ("test_x.py::test_y", "."),
    ],
)
def test_a_test_belongs_to_the_directory_below_tests(nodeid: str, name: str) -> None:
    assert directory_of(nodeid) == name


Phase = Literal["setup", "call", "teardown"]
PHASES: Final[tuple[Phase, ...]] = ("setup", "call", "teardown")


def phase(nodeid: str, when: Phase, seconds: float) -> pytest.TestReport:
    return pytest.TestReport(nodeid, ("x", 0, ""), {}, "passed", None, when, duration=seconds)


def test_fixtures_count_and_the_dearest_comes_first() -> None:
    reports = [phase("tests/a/x.py::x", when, 1) for when in PHASES]
    reports += [phase("tests/b/x.py::x", when, 2) for when in PHASES]
    reports += [phase("tests/b/x.py::y", "setup", 4)]
    assert table(reports, passed_s=7.1) == [
        "seconds/tests by directory, 13/3 in 7 s:",
        "  b 10/2                  a 3/1",
    ]
