# SPDX-License-Identifier: Apache-2.0
"""Cost is flat: many files (100 000 in ``make soak``) or a big one (2 GiB) boot like a small image,
and in little memory."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest

from tests.harness.instances import BuiltInstance, MakeInstance
from tests.harness.sampling import WHOLE
from tests.recovery.processes import descendants

MANY = 100_000 if WHOLE else 20_000
BIG = (2048 if WHOLE else 512) << 20
CHUNK = 128 << 10
MEMORY_KIB = 200 << 10
Seen = TypeVar("Seen")

pytestmark = [pytest.mark.fuse, pytest.mark.userns, pytest.mark.slow]


def write_many(image: Path) -> None:
    for number in range(MANY):
        if number % 1000 == 0:
            folder = image / f"many/{number // 1000:03}"
            folder.mkdir(parents=True)
        fd = os.open(folder / f"{number:06}", os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, b"%d\n" % number * 20)
        os.close(fd)


def write_big(image: Path) -> None:
    """Write chunks that all differ; each eighth does not compress."""
    noise = random.Random(8).randbytes(CHUNK)
    text = (b"a line that compresses\n" * (CHUNK // 23 + 1))[:CHUNK]
    with open(image / "big", "wb") as file:
        for number in range(BIG // CHUNK):
            body = text if number % 8 else noise
            file.write(number.to_bytes(8, "little") + body[8:])


def peak_kib_of_servers(pid: int) -> list[int]:
    """Return the peak memory of each fs server of a running instance."""
    peaks = []
    for child in descendants(pid):
        if child.name() == "serdab-fs":
            with suppress(FileNotFoundError, ProcessLookupError):
                status = Path(f"/proc/{child.pid}/status").read_text()
                # The server of the init FS is on its way out: it may have no memory any more.
                peaks += [int(size) for size in re.findall(r"^VmHWM:\s+(\d+)", status, re.M)]
    return peaks


def processor_seconds(pid: int) -> float:
    """Return what a run has taken of the processors so far: the clock tells of others too."""
    ticks = 0
    for process in (pid, *(process.pid for process in descendants(pid))):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # the server of the init FS, on its way out
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def run_and_look(instance: BuiltInstance, script: str, look: Callable[[int], Seen]) -> Seen:
    """Run a script inside to its end, and look at the processes while it waits."""
    key = ("--image-key", instance.key) if instance.key else ()
    process = instance.command.popen(
        "-C", instance.path, "run", *key, "/bin/sh", "-c", f"{script}; echo done; read line",
        stdin=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        seen = look(process.pid)
    finally:
        process.communicate(b"\n", timeout=60)
    assert process.returncode == 0
    return seen


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("fill", "script"),
    [
        (write_many, "ls -lR / >/dev/null 2>&1"),
        (write_big, "cat /big >/dev/null"),
    ],
    ids=["many files", "a big file"],
)
def test_a_big_image_costs_what_a_small_one_does(
    make_instance: MakeInstance, fill: Callable[[Path], None], script: str
) -> None:
    small = make_instance(name="small")
    big = make_instance(name="big", fill=fill)
    # Taken in turns, so that a busy moment hits both; the best of several tells the cost, since
    # what others do to the caches only adds to it.
    rounds = [[run_and_look(it, "true", processor_seconds) for it in (small, big)] for _ in "12345"]
    of_small, of_big = map(min, zip(*rounds, strict=True))
    assert of_big < 1.3 * of_small + 0.02, rounds
    peaks = run_and_look(big, script, peak_kib_of_servers)
    assert peaks, "no fs server found"
    assert max(peaks) < MEMORY_KIB, peaks
