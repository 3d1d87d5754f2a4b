# SPDX-License-Identifier: Apache-2.0
"""What a test session must not leave on the machine: mounts, and processes.

Only what this session made counts, since others may use the machine at the same time: mounts below
the session's directory, and processes that carry the session's mark in their environment, work
inside its directory, or are children of the test process.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Final

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
    while found := _find_now(mark, below):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return found


def _find_now(mark: str, below: Path) -> list[str]:
    wanted = f"{SESSION_VARIABLE}={mark}".encode()
    place = os.fsencode(below)
    found = []
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
            ours = ours or os.fsencode(os.readlink(process / "cwd")).startswith(place)
        except OSError:
            continue
        if ours and stat[0] != "Z":
            shown = command.replace(b"\0", b" ").decode(errors="replace").strip()
            found.append(f"{entry}: {shown or '(no command line)'}")
    return found
