# SPDX-License-Identifier: Apache-2.0
"""The gallery of real programs, in turns: each run of the suite takes one as whoever runs it and
one as an ordinary user, of those that cost little; ``make soak`` takes all of them as both."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from demos.apps.gallery import APPS, App
from demos.apps.sealed import Failure, run
from tests.harness.user import OrdinaryUser

ROOT = Path(__file__).resolve().parents[2]
WORK = ("-m", "demos.apps", "--work")
LIMIT_S = 280

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


def cheap_app(made: Path) -> App:
    """Return one that this machine has; there must be some."""
    here = [app for app in APPS.values() if app.is_cheap and app.find(made) is not None]
    assert here, "python3, sqlite3, git, tmux: none is on this machine"
    return random.choice(here)


def as_whoever_runs_the_tests(name: str) -> None:
    result = subprocess.run(
        [sys.executable, *WORK, name],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


def as_ordinary_user(user: OrdinaryUser, name: str) -> None:
    result = user.run(user.python, *WORK, name, cwd=user.checkout, timeout_s=LIMIT_S)
    assert result.returncode == 0, (result.stdout + result.stderr).decode(errors="replace")


def test_a_program_works_for_whoever_runs_the_tests(tmp_path: Path) -> None:
    as_whoever_runs_the_tests(cheap_app(tmp_path).name)


def test_a_program_works_for_an_ordinary_user(as_user: OrdinaryUser, tmp_path: Path) -> None:
    as_ordinary_user(as_user, cheap_app(tmp_path).name)


@pytest.mark.soak
@pytest.mark.parametrize("name", APPS)
def test_all_of_them_work_for_whoever_runs_the_tests(name: str) -> None:
    as_whoever_runs_the_tests(name)


@pytest.mark.soak
@pytest.mark.parametrize("name", APPS)
def test_all_of_them_work_for_an_ordinary_user(as_user: OrdinaryUser, name: str) -> None:
    as_ordinary_user(as_user, name)


def test_what_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="exit 3\nbroken"):
        run(["/bin/sh", "-c", "echo broken; exit 3"], cwd=tmp_path)
