# SPDX-License-Identifier: Apache-2.0
"""Instances for the recovery tests, and what kills them: see ``rounds``."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.cprogram import CompileC
from tests.recovery.rounds import Ward
from tests.sandbox.conftest import Box, Place, place

__all__ = ["place"]

RECORDER = Path(__file__).parent / "recorder.c"
LEDGER = Path(__file__).parent / "ledger.c"


def seeded() -> random.Random:
    """Return a source of chance that a failed test names."""
    seed = int(os.environ.get("SERDAB_KILL_SEED", "0")) or int.from_bytes(os.urandom(4), "big")
    print(f"SERDAB_KILL_SEED={seed}")
    return random.Random(seed)


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


@pytest.fixture(scope="session")
def ledger_files(compile_c: CompileC) -> dict[str, bytes]:
    """The ledger as /bin/ledger, with the host's SQLite and what else it is linked with."""
    # Needed in spite of its place before the source, and by its file: there may be no link to it.
    flags = ("-Wl,--no-as-needed", "-l:libsqlite3.so.0")
    program = compile_c(LEDGER.read_text(), flags=flags)
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"(/\S+) \(0x", listed)
    return {path: Path(path).read_bytes() for path in libraries} | {
        "/bin/ledger": program.read_bytes()
    }


@pytest.fixture
def ledger_ward(
    place: Place, recorder: Path, ledger_files: dict[str, bytes], connections: Path
) -> Iterator[Ward]:
    """A ward whose instance has the ledger; the test names its program."""
    with Ward(place.build(recorder, files=ledger_files), connections, seeded()) as ward:
        yield ward


@pytest.fixture
def ward(box: Box, connections: Path) -> Iterator[Ward]:
    """What starts, kills and watches the instance; ends what is left of it on failure."""
    with Ward(box, connections, seeded()) as ward:
        yield ward
