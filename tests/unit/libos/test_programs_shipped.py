# SPDX-License-Identifier: Apache-2.0
"""The shipped programs are what their sources build, and their digests are on record."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import serdab

INIT = Path(serdab.__file__).parent / "init"
TOOL = Path(__file__).resolve().parents[3] / "tools" / "build_init.py"


def test_every_program_has_its_digest_on_record() -> None:
    lines = [line.split("  ") for line in (INIT / "DIGESTS").read_text().splitlines()]
    recorded = {path: digest for digest, path in lines}
    shipped = {
        str(path.relative_to(INIT)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (INIT / "bin").glob("*/*")
    }
    assert shipped == recorded


def test_they_are_small_and_static() -> None:
    for path in (INIT / "bin").glob("*/*"):
        raw = path.read_bytes()
        assert raw[:4] == b"\x7fELF"
        assert b"/ld-" not in raw
        assert len(raw) < 32 << 10


def test_init_tells_of_an_error_that_nobody_else_tells_of() -> None:
    # Nobody answers system call 363 here.
    (init,) = (INIT / "bin").glob(f"{os.uname().machine}/init")
    result = subprocess.run([init], capture_output=True, check=False)
    assert result.returncode == 1
    assert result.stderr == b"init: the root file system was not mounted: error 38\n"


def test_the_sources_build_the_same_bytes() -> None:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no ziglang")
    result = subprocess.run(
        [sys.executable, TOOL, "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
