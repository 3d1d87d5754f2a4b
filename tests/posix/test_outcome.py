# SPDX-License-Identifier: Apache-2.0
"""What suites say becomes counts, and only what known.md lists may differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.posix.__main__ import find_suite, report
from tests.posix.outcome import KNOWN, Known, Outcome, differences, load_known

SAID = """\
# FILE chmod/00.t
1..3
ok 1
not ok 2 - tried 'chmod x 0644', expected 0, got EPERM
not ok 3 # TODO some day
"""


def test_each_assertion_has_a_name() -> None:
    outcome = Outcome.parse(SAID)
    assert outcome.passed == {"chmod/00.t:1"}
    assert outcome.failed == {"chmod/00.t:2": "tried 'chmod x 0644', expected 0, got EPERM"}
    assert outcome.skipped == {"chmod/00.t:3"}


def test_programs_have_theirs() -> None:
    outcome = Outcome.parse(
        "ok open01\nskip open02 - TCONF\nnot ok fsx -l 9 - exit 1: bad\nnoise\n"
    )
    assert (outcome.passed, outcome.skipped) == ({"open01"}, {"open02"})
    assert outcome.failed == {"fsx -l 9": "exit 1: bad"}


def test_what_fails_on_the_kernel_too_is_no_difference() -> None:
    ours = Outcome({"a"}, {"b": "x", "c": "y"}, {"e"})
    theirs = Outcome({"a", "c", "d", "e"}, {"b": "x"})
    assert differences(ours, theirs) == {"c": "y", "d": "not run", "e": "skipped here only"}


def test_an_unknown_difference_fails(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = Outcome({"a"}, {"b3": "x"}), Outcome({"a", "b3"})
    known = [Known("ltp", "*", "b[0-9]", "why")]
    assert report("ltp", "mount", ours, theirs, known)
    assert not report("fsx", "mount", ours, theirs, known)
    assert "b3: x" in capsys.readouterr().out


def test_a_suite_of_which_nothing_passed_did_not_run() -> None:
    assert not report("ltp", "mount", Outcome(), Outcome(), [])


def test_known_differences_have_reasons() -> None:
    load_known(KNOWN.read_text())
    with pytest.raises(ValueError, match="reason"):
        load_known("| `ltp` | `*` | `x` | |")


def test_suites_are_found_below_what_is_given(tmp_path: Path) -> None:
    (tmp_path / "a/pjdfstest/tests").mkdir(parents=True)
    assert find_suite("pjdfstest", tmp_path) is None
    (tmp_path / "a/pjdfstest/pjdfstest").touch(mode=0o755)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/fsx").touch(mode=0o755)
    assert find_suite("pjdfstest", tmp_path) == tmp_path / "a/pjdfstest"
    assert find_suite("fsx", tmp_path) == tmp_path / "b/fsx"
    assert find_suite("ltp", tmp_path) is None
