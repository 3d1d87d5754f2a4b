# SPDX-License-Identifier: Apache-2.0
"""Instances for the recovery tests, and what kills them: see ``rounds``."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.cprogram import CompileC
from tests.recovery.rounds import Ward
from tests.sandbox.conftest import Box, Place, place

__all__ = ["place"]

RECORDER = Path(__file__).parent / "recorder.c"


@pytest.fixture(scope="session")
def connections(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kernel's own list of FUSE connections (fuse(4), fusectl)."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount fusectl")
    where = tmp_path_factory.mktemp("fusectl")
    subprocess.run(["mount", "-t", "fusectl", "none", where], check=True)
    yield where
    subprocess.run(["umount", where], check=True)


@pytest.fixture(scope="session")
def recorder(compile_c: CompileC) -> Path:
    """The checker that runs inside."""
    return compile_c(RECORDER.read_text())


@pytest.fixture
def box(place: Place, recorder: Path) -> Box:
    """A new instance with the recorder as /bin/probe, by root and by an ordinary user."""
    return place.build(recorder)


@pytest.fixture
def ward(box: Box, connections: Path) -> Iterator[Ward]:
    """What starts, kills and watches the instance; ends what is left of it on failure."""
    seed = int(os.environ.get("SERDAB_KILL_SEED", "0")) or int.from_bytes(os.urandom(4), "big")
    print(f"SERDAB_KILL_SEED={seed}")
    with Ward(box, connections, random.Random(seed)) as ward:
        yield ward
