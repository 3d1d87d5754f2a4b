# SPDX-License-Identifier: Apache-2.0
"""The program that embeds an instance, and the one that docs/pal.md shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo.test_documents import blocks
from tests.harness.instances import MakeInstance
from tests.harness.user import OrdinaryUser

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


def test_the_embedding_program_holds_for_whoever_runs_the_tests() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "demos.embed.embed"],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "All of it held" in result.stdout


def test_the_embedding_program_holds_for_an_ordinary_user(as_user: OrdinaryUser) -> None:
    result = as_user.run(as_user.python, "-m", "demos.embed.embed", cwd=as_user.checkout)
    assert result.returncode == 0, (result.stdout + result.stderr).decode(errors="replace")
    assert b"All of it held" in result.stdout


def test_the_program_of_the_document_works_as_it_stands_there(make_instance: MakeInstance) -> None:
    instance = make_instance(encrypted=False, name="hello")
    (program,) = blocks("docs/pal.md", "python")
    prefix = instance.command.prefix[: instance.command.prefix.index("-m")]
    result = subprocess.run(
        [*prefix, "-c", program],
        cwd=instance.path.parent, env=instance.command.env, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout == "hello from inside\n0\n"
