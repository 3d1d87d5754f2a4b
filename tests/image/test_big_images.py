# SPDX-License-Identifier: Apache-2.0
"""Cost is flat: 100 000 files, or one of 2 GiB, boot like a small image and in little memory."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.command import describe
from tests.harness.instances import BuiltInstance, MakeInstance

MANY = 100_000
BIG = 2 << 30
CHUNK = 128 << 10
MEMORY_KIB = 200 << 10

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


def seconds_of_true(instance: BuiltInstance) -> float:
    started_s = time.perf_counter()
    result = instance.run("/bin/true")
    elapsed_s = time.perf_counter() - started_s
    assert result.returncode == 0, describe(result)
    return elapsed_s


def descendants(pid: int) -> list[int]:
    """Return all processes below one, by the parents they have now."""
    below: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            below.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found, waiting = [], [pid]
    while waiting:
        children = below.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def peak_kib_of_servers(pid: int) -> list[int]:
    """Return the peak memory of each fs server of a running instance."""
    peaks = []
    for child in descendants(pid):
        if Path(f"/proc/{child}/comm").read_text() == "serdab-fs\n":
            status = Path(f"/proc/{child}/status").read_text()
            peaks.append(int(status.split("VmHWM:")[1].split()[0]))
    return peaks


def run_and_look(instance: BuiltInstance, script: str) -> list[int]:
    """Run a script inside to its end, and while it waits return the servers' peak memory."""
    key = ("--image-key", instance.key) if instance.key else ()
    process = instance.command.popen(
        "-C", instance.path, "run", *key, "/bin/sh", "-c", f"{script}; echo done; read line",
        stdin=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        peaks = peak_kib_of_servers(process.pid)
    finally:
        process.communicate(b"\n", timeout=60)
    assert process.returncode == 0
    return peaks


@pytest.mark.parametrize(
    ("fill", "script"),
    [
        (write_many, "ls -lR / >/dev/null 2>&1"),
        (write_big, "cat /big >/dev/null"),
    ],
    ids=["100 000 files", "a 2 GiB file"],
)
def test_a_big_image_costs_what_a_small_one_does(
    make_instance: MakeInstance, fill: Callable[[Path], None], script: str
) -> None:
    small = make_instance(name="small")
    big = make_instance(name="big", fill=fill)
    # Taken in turns, so that a busy moment hits both; the best of several tells the cost.
    pairs = [(seconds_of_true(small), seconds_of_true(big)) for _ in range(7)]
    of_small, of_big = (statistics.median(column) for column in zip(*pairs, strict=True))
    assert of_big < 1.3 * of_small + 0.02, pairs
    peaks = run_and_look(big, script)
    assert peaks, "no fs server found"
    assert max(peaks) < MEMORY_KIB, peaks
