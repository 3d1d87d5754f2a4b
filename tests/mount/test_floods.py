# SPDX-License-Identifier: Apache-2.0
"""A great many refused calls at once: others go on, and what it takes outside is bounded."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness.cprogram import CompileC
from tests.mount.conftest import HERE, Mounter, NewMounter
from tests.recovery.processes import descendants, find_family

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

#: Descriptors of a process where nobody has raised the limit (getrlimit(2)).
USUAL_FILES = 1024
#: Mounts and umounts that may be on their way, and what runs besides.
MOST_PROCESSES = 64 + 16
#: What the kernel process may take for a flood that nobody reads about.
MOST_KIB = 40_000
LIMITED = (
    "import os, resource, sys; "
    f"resource.setrlimit(resource.RLIMIT_NOFILE, ({USUAL_FILES}, {USUAL_FILES})); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture
def flooded(new_mounter: NewMounter, compile_c: CompileC) -> Mounter:
    flags = ("-static", "-D_GNU_SOURCE", "-pthread")
    flooder = compile_c((HERE / "flooder.c").read_text(), flags=flags)

    def fill(image: Path) -> None:
        shutil.copy(flooder, image / "bin/flooder")

    return new_mounter(fill)


@contextmanager
def flood(mounter: Mounter, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start the flooder; whatever happens, it is gone afterwards."""
    command = mounter.instance.command
    command = replace(command, prefix=(sys.executable, "-c", LIMITED, *_found(command.prefix)))
    process = command.popen(
        *("-C", str(mounter.path), "run", "/bin/flooder", *words), stdin=subprocess.PIPE
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _found(prefix: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command as execv(3) takes it."""
    return (shutil.which(prefix[0]) or prefix[0], *prefix[1:])


def test_calls_that_take_processes_wait_for_their_turn(flooded: Mounter) -> None:
    with flood(flooded, "500", "paths", "4") as process:
        most = [0]
        stop = threading.Event()

        def count() -> None:
            while not stop.wait(0.05):
                most[0] = max(most[0], len(descendants(process.pid)))

        counting = threading.Thread(target=count)
        counting.start()
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"failed 0\n"
        finally:
            stop.set()
            counting.join()
        _, err = process.communicate(b"\n", timeout=60)
    assert most[0] <= MOST_PROCESSES
    assert process.returncode == 0
    assert b"please report" not in err


def test_an_operator_who_does_not_read_holds_up_nobody(flooded: Mounter) -> None:
    with flood(flooded, "20", "words", "200") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"failed 0\n"
        kernel = find_family(process.pid, flooded.path).kernel
        status = Path(f"/proc/{kernel.pid}/status").read_text()
        (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
        _, err = process.communicate(b"\n", timeout=60)
    assert int(peak) < MOST_KIB
    assert process.returncode == 0
    assert b"unknown type 'type-" in err
    assert b"refused besides, too many to tell: " in err
