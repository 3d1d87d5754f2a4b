# SPDX-License-Identifier: Apache-2.0
"""What the processes of a running instance hold, counted from outside (proc(5)).

Nothing leaked when the second of two counts is in nothing above the first.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.recovery.processes import Family, Process, descendants, find_family, holds, wait_until


@dataclass(frozen=True, slots=True)
class Balance:
    """``descriptors`` by process, ``threads`` of the kernel process, ``processes`` of ours outside,
    and ``mounts`` inside."""

    descriptors: dict[int, int]
    threads: int
    processes: frozenset[int]
    mounts: int

    def is_within(self, other: Balance) -> bool:
        """Return whether nothing is more than in ``other``."""
        return (
            all(count <= other.descriptors[pid] for pid, count in self.descriptors.items())
            and self.threads <= other.threads
            and self.processes <= other.processes
            and self.mounts <= other.mounts
        )


def server_of(cli: int, folder: Path) -> Process:
    """Return the fs server of a `serdab run` that has something open below a host directory."""
    serving: list[Process] = []

    def is_one() -> bool:
        # The one of the mount before may not have let go of everything yet.
        serving[:] = [process for process in descendants(cli) if holds(process.pid, folder)]
        return len(serving) == 1

    wait_until(is_one, f"one process that serves {folder}")
    return serving[0]


def has_found(cli: int, target: str) -> bool:
    """Return whether a worker of a `serdab run` holds the target of a call."""
    for process in descendants(cli):
        if process.name() != "serdab-mount":
            continue
        links = Path(f"/proc/{process.pid}/fd")
        with contextlib.suppress(OSError):
            for link in links.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if os.readlink(link) == target:
                        return True
    return False


class Watched:
    """A `serdab run` of a program that says `ready`, and waits for a line between its acts."""

    def __init__(self, process: subprocess.Popen[bytes], instance: Path) -> None:
        self.process = process
        self.instance = instance
        assert self.line() == "ready", self._failed()
        self.family: Family = find_family(process.pid, instance)
        self.before = self.take()

    def _failed(self) -> str:
        self.process.kill()
        return self.process.communicate()[1].decode(errors="replace")

    def line(self) -> str:
        """Return the next line that the program says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def go_on(self) -> None:
        """Let the program do what comes next."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def take(self) -> Balance:
        """Count now."""
        fixed = (self.family.kernel, self.family.launcher, *self._nursery())
        ours = [p for p in descendants(self.process.pid) if p not in self.family.inside]
        return Balance(
            {process.pid: len(os.listdir(f"/proc/{process.pid}/fd")) for process in fixed},
            len(os.listdir(f"/proc/{self.family.kernel.pid}/task")),
            frozenset(process.pid for process in ours),
            len(Path(f"/proc/{self.family.launcher.pid}/mountinfo").read_bytes().splitlines()),
        )

    def _nursery(self) -> list[Process]:
        """The process that makes fs servers: the parent of the volume's."""
        fields = Path(f"/proc/{self.family.volume.pid}/stat").read_text().rpartition(")")[2].split()
        return [process for process in self.family.servers if process.pid == int(fields[1])]

    def check_nothing_leaked(self) -> None:
        """Wait until nothing is more than it was before; fs servers end after their umount."""
        seen: list[Balance] = []

        def is_back() -> bool:
            seen[:] = [self.take()]
            return seen[0].is_within(self.before)

        try:
            wait_until(is_back, "the count from before")
        except AssertionError:
            raise AssertionError(f"before {self.before}\nafter  {seen[0]}") from None

    def server_of(self, folder: Path) -> Process:
        """Return the fs server that has something open below a host directory."""
        return server_of(self.process.pid, folder)

    def memory_of(self, processes: frozenset[int]) -> int:
        """Return what processes take of the memory, shared pages in proportion (PSS), in KiB."""
        total = 0
        for pid in processes:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total

    def finish(self) -> None:
        """Let the program end; fail if it, or the instance, did not end well."""
        out, err = self.process.communicate(b"\n", timeout=120)
        assert self.process.returncode == 0, out.decode() + err.decode()
