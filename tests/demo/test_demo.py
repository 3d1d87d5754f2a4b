# SPDX-License-Identifier: Apache-2.0
"""The demonstration, whole: it checks its own claims and fails at the first that does not hold."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.user import OrdinaryUser

ROOT = Path(__file__).resolve().parents[2]
PROCESSOR_S = 120  # what `make demo` may take after set-up; of the clock others take their part
HANGS_S = 280


@pytest.mark.fuse
@pytest.mark.userns
@pytest.mark.slow
def test_the_demo_holds_for_whoever_runs_the_tests() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, "-m", "demos.hello.demo"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "All of it held" in result.stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < PROCESSOR_S


@pytest.mark.fuse
@pytest.mark.userns
@pytest.mark.slow
def test_the_demo_holds_for_an_ordinary_user(as_user: OrdinaryUser) -> None:
    result = as_user.run(
        as_user.python, "-m", "demos.hello.demo", cwd=as_user.checkout, timeout_s=HANGS_S
    )
    assert result.returncode == 0, (result.stdout + result.stderr).decode(errors="replace")
    assert b"All of it held" in result.stdout
