# SPDX-License-Identifier: Apache-2.0
"""What tests must not leave on the machine: mounts, and processes.

A session that leaves something fails. A test that fails leaves something more often than not, and
that is ended at once, or the tests after it fail too and hide which one it was.

Only what this session made counts, since others may use the machine at the same time: mounts below
the session's directory, and processes that carry the session's mark in their environment, work
inside its directory, or are children of the test process.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.recovery.processes import Process

SESSION_VARIABLE: Final = "SERDAB_TEST_SESSION"
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


def find_mounts(below: Path) -> set[str]:
    """Return the mount points below a directory, and every Serdab mount named after it."""
    prefix = f"{below}/"
    found = set()
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            target = _OCTAL.sub(lambda m: chr(int(m[1], 8)), line.split()[4])
            if target.startswith(prefix):
                found.add(target)
    return found


def find_processes(mark: str, below: Path, *, patience_s: float) -> list[str]:
    """Return "pid: command line" of each process of the session that does not end in time."""
    deadline = time.monotonic() + patience_s
    while found := [shown for _, shown in _find_now(mark, below)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return found


def now_ticks() -> int:
    """Return the time in the unit of a process's start time: clock ticks since boot."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def end_processes(mark: str, below: Path, *, since: int, patience_s: float = 10) -> list[str]:
    """Kill the processes of the session that started at ``since`` (ticks) or later.

    Return "pid: command line" of each that was there. Those that are born meanwhile are found in
    the next round.
    """
    deadline = time.monotonic() + patience_s
    ended: dict[Process, str] = {}
    while left := {p: shown for p, shown in _find_now(mark, below) if int(p.started) >= since}:
        ended |= left
        for process in left:
            process.kill()
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return list(ended.values())


def end_mounts(targets: set[str]) -> list[str]:
    """Detach mounts; return those that were there."""
    for target in sorted(targets, reverse=True):
        subprocess.run(["umount", "--lazy", target], capture_output=True, check=False)
    return sorted(targets)


def _find_now(mark: str, below: Path) -> Iterator[tuple[Process, str]]:
    """Yield each process of the session with "pid: command line"."""
    wanted = f"{SESSION_VARIABLE}={mark}".encode()
    place = os.fsencode(below) + b"/"  # another session's may be called the same with a digit more
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        process = Path("/proc") / entry
        try:
            stat = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
            command = (process / "cmdline").read_bytes()
            ours = int(stat[1]) == os.getpid() or place in command
            # Another user's process shows its environment and directory to root alone.
            ours = ours or wanted in (process / "environ").read_bytes().split(b"\0")
            ours = ours or os.fsencode(os.readlink(process / "cwd") + "/").startswith(place)
        except OSError:
            continue
        if ours and stat[0] != "Z":
            shown = command.replace(b"\0", b" ").decode(errors="replace").strip()
            yield Process(int(entry), stat[19]), f"{entry}: {shown or '(no command line)'}"
