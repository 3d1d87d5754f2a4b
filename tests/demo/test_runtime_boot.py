# SPDX-License-Identifier: Apache-2.0
"""The demonstration of a root FS that was generated elsewhere, whole."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.user import OrdinaryUser

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 280
MODULE = "demos.runtime_boot.demo"

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.userns,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc"),
]


@pytest.mark.soak
def test_a_root_generated_elsewhere_boots_for_whoever_runs_the_tests() -> None:
    result = subprocess.run(
        [sys.executable, "-m", MODULE],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "All of it held" in result.stdout


def test_a_root_generated_elsewhere_boots_for_an_ordinary_user(as_user: OrdinaryUser) -> None:
    result = as_user.run(as_user.python, "-m", MODULE, cwd=as_user.checkout, timeout_s=LIMIT_S)
    assert result.returncode == 0, (result.stdout + result.stderr).decode(errors="replace")
    assert b"All of it held" in result.stdout
