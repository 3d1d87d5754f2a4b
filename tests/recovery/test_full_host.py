# SPDX-License-Identifier: Apache-2.0
"""The host runs full: told at write, nothing promised is lost, removing works, room comes back."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness.cprogram import CompileC
from tests.recovery.conftest import seeded
from tests.recovery.processes import wait_until
from tests.recovery.rounds import Run, Ward
from tests.sandbox.conftest import Place

pytestmark = [pytest.mark.fuse, pytest.mark.userns, pytest.mark.root, pytest.mark.slow]

FILLER: Final = Path(__file__).parent / "filler.c"
HOST_MIB: Final = 160
BLOCK: Final = 64 << 10
#: Space comes back by checkpoints that begin a second after there is something to give.
RETURN_S: Final = 60.0


@pytest.fixture(scope="session")
def filler(compile_c: CompileC) -> Path:
    return compile_c(FILLER.read_text())


@pytest.fixture
def small(place: Place, filler: Path, connections: Path) -> Iterator[Ward]:
    """An instance whose run/ lies on a file system of its own, a small one."""
    box = place.build(filler)
    run = box.path / "run"
    run.mkdir(exist_ok=True)
    options = f"size={HOST_MIB}m,mode=0700"
    if place.owner is not None:
        options += f",uid={place.owner[0]},gid={place.owner[1]}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", run], check=True)
    try:
        with Ward(box, connections, seeded(), has_own_mount=True) as ward:
            yield ward
    finally:
        wait_until(
            lambda: (
                subprocess.run(["umount", run], check=False, capture_output=True).returncode == 0
            ),
            f"umount of {run}",
        )


def start(ward: Ward) -> Run:
    return ward.start("/bin/probe", "/data", stdin=subprocess.PIPE)


def free_bytes(ward: Ward) -> int:
    status = os.statvfs(ward.box.path / "run")
    return status.f_bavail * status.f_frsize


def count(run: Run, command: str, word: str) -> int:
    answer = run.ask(command)
    assert answer[0] == word, f"{command}: {answer}"
    return int(answer[1])


def fill(run: Run) -> int:
    """Let it write until it cannot; return the blocks that were made durable."""
    word, call, code, blocks = run.ask("fill", patience_s=180)
    assert word == "full"
    assert int(code) == errno.ENOSPC, f"{call}: {os.strerror(int(code))}"
    assert call in ("write", "open"), f"ENOSPC came from {call}, after the write was accepted"
    return int(blocks)


def kill_all(ward: Ward, run: Run) -> None:
    for process in run.find_family().everybody():
        process.kill()
    ward.settle(run)
    ward.check_gone(run)


def end(ward: Ward, run: Run) -> None:
    assert run.process.stdin is not None
    run.process.stdin.close()
    errors = ward.settle(run)
    assert run.process.returncode == 0, errors
    ward.check_gone(run)


def wait_for_room(ward: Ward, wanted: int) -> None:
    wait_until(
        lambda: free_bytes(ward) >= wanted,
        f"{wanted} free bytes on the host, which has {free_bytes(ward)}",
        patience_s=RETURN_S,
    )


def test_a_program_that_fills_the_host_is_told_at_write(small: Ward) -> None:
    run = start(small)
    durable = fill(run)
    assert durable * BLOCK > HOST_MIB << 19, f"full after {durable * BLOCK >> 20} MiB"
    kill_all(small, run)

    run = start(small)
    have = count(run, "verify", "have")
    assert have >= durable
    before = free_bytes(small)
    dropped = count(run, "drop", "dropped")
    assert dropped > 2
    left = count(run, "verify", "have")
    # Every second file went, of 4 MiB but for the last.
    wait_for_room(small, before + (have - left) * BLOCK // 2)
    assert count(run, "more 128", "wrote") == 128
    assert count(run, "verify", "have") >= left + 128
    fill(run)
    kept = count(run, "verify", "have")
    end(small, run)

    run = start(small)
    assert count(run, "verify", "have") >= kept
    count(run, "clear", "dropped")
    wait_for_room(small, HOST_MIB << 19)
    assert count(run, "more 256", "wrote") == 256
    end(small, run)


def test_another_process_that_fills_the_host_costs_nothing_that_was_promised(small: Ward) -> None:
    run = start(small)
    assert count(run, "more 256", "wrote") == 256
    hog = small.box.path / "run/hog"
    take_everything(hog)
    durable = 256 + fill(run)
    assert count(run, "verify", "have") >= durable
    kill_all(small, run)

    take_everything(hog)
    run = start(small)
    have = count(run, "verify", "have")
    assert have >= durable
    assert count(run, "drop", "dropped") > 1
    left = count(run, "verify", "have")
    hog.unlink()
    assert count(run, "more 128", "wrote") == 128
    assert count(run, "verify", "have") >= left + 128
    end(small, run)


def take_everything(hog: Path) -> None:
    """Write into a file until the host has no room."""
    with hog.open("ab", buffering=0) as file:
        for piece in (bytes(1 << 20), bytes(4096)):
            code = 0
            while not code:
                try:
                    file.write(piece)
                except OSError as exc:
                    code = exc.errno or errno.EIO
            assert code == errno.ENOSPC
