# SPDX-License-Identifier: Apache-2.0
"""The processes of a running instance, found from outside, and what must not remain of them.

Nothing here asks Serdab: parents, namespaces, open files and mounts are read from proc(5).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PATIENCE_S: Final = 60.0
_CGROUPS: Final = Path("/sys/fs/cgroup")


def wait_until(holds: Callable[[], bool], what: str, *, patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition; fail with ``what`` when it does not come."""
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {patience_s:.0f} s: {what}"
        time.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Process:
    """A process and when it started, so that a reused number is not taken for it."""

    pid: int
    started: str

    def is_alive(self) -> bool:
        """Return whether it runs; a zombie waits for its parent only."""
        fields = _stat(self.pid)
        return fields is not None and fields[19] == self.started and fields[0] not in "ZX"

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal it, if it is still the same process."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.is_alive():
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)

    def name(self) -> str:
        """Return what ps(1) calls it, nothing once it has ended."""
        try:
            return Path(f"/proc/{self.pid}/comm").read_text().strip()
        except OSError:
            return ""

    def parent(self) -> int:
        """Return the number of its parent, 0 once it has ended."""
        fields = _stat(self.pid)
        return 0 if fields is None else int(fields[1])

    def shown(self) -> str:
        """Return what an assertion says of it."""
        return f"{self.pid} {_command(self.pid)!r}"


@dataclass(frozen=True, slots=True)
class Family:
    """Everything that belongs to one ``serdab run``.

    ``volume`` is the fs server of the sealed volume, ``servers`` are all of them and their maker;
    ``launcher`` is pid 1 inside.
    ``connections`` are the FUSE mounts inside, by device number.
    """

    cli: Process
    kernel: Process
    volume: Process
    launcher: Process
    servers: tuple[Process, ...]
    inside: tuple[Process, ...]
    connections: frozenset[str]

    @staticmethod
    def find_kernel(cli: int) -> list[Process]:
        """Return the kernel process of a command that may still boot, or nothing."""
        pids = [pid for pid in _children(_parents(), cli) if "serdab.libos." in _command(pid)]
        return [process for pid in pids if (process := _process_or_none(pid)) is not None]

    def everybody(self) -> tuple[Process, ...]:
        """Return all of them, each once."""
        return (self.cli, self.kernel, *self.servers, self.launcher, *self.inside)

    def check_gone(self, connections: Path) -> None:
        """Wait until no process or mount of it is left; ``connections`` is a mounted fusectl."""
        wait_until(
            lambda: not any(process.is_alive() for process in self.everybody()),
            "end of " + ", ".join(p.shown() for p in self.everybody() if p.is_alive()),
        )

        # The kernel gives the lowest free device number, so whoever else mounts just then may have
        # one of ours by now. What is left without any mount is a leak; one of ours that is mounted
        # yet has a process or a mount point that shows it.
        def none_left() -> bool:
            left = self.connections & set(os.listdir(connections))
            return not left or not left - _mounted_anywhere()

        wait_until(none_left, f"the end of FUSE connections {sorted(self.connections)}")


def find_family(cli: int, instance: Path) -> Family:
    """Return the family of a ``serdab run`` whose program runs already."""
    (kernel,) = Family.find_kernel(cli)
    parents = _parents()
    below = [process.pid for process in descendants(cli) if process != kernel]
    ours = _pid_namespace(os.getpid())
    launchers = [
        pid for pid in _children(parents, kernel.pid) if _pid_namespace(pid) not in (ours, "")
    ]
    assert len(launchers) == 1, f"pid 1 inside: {[_command(pid) for pid in below]}"
    namespace = _pid_namespace(launchers[0])
    inside = [pid for pid in parents if _pid_namespace(pid) == namespace and pid != launchers[0]]
    servers = [pid for pid in below if _pid_namespace(pid) == ours]
    volume = [pid for pid in servers if holds(pid, instance / "run/mount")]
    assert len(volume) == 1, f"fs server of the volume: {[_command(pid) for pid in below]}"
    return Family(
        process_of(cli),
        kernel,
        process_of(volume[0]),
        process_of(launchers[0]),
        # The init FS's may be on its way out, and those inside come and go.
        tuple(process for pid in servers if (process := _process_or_none(pid)) is not None),
        tuple(process for pid in inside if (process := _process_or_none(pid)) is not None),
        _connections(launchers[0]),
    )


def descendants(pid: int) -> tuple[Process, ...]:
    """Return every process below one, at this moment."""
    parents = _parents()
    found: list[int] = []
    level = [pid]
    while level:
        level = [child for parent in level for child in _children(parents, parent)]
        found += level
    return tuple(process for child in found if (process := _process_or_none(child)) is not None)


def find_marked(variable: str, value: str) -> list[Process]:
    """Return the processes that have ``variable=value`` in their environment."""
    wanted = f"{variable}={value}".encode()
    found = []
    for pid in _pids():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        process = _process_or_none(pid)
        if wanted in variables and process is not None and process.is_alive():
            found.append(process)
    return found


def control_groups(makers: set[int]) -> list[Path]:
    """Return the control groups that were made by processes with these numbers."""
    names = {f"serdab-{maker}-" for maker in makers}
    found = []
    for folder, directories, _ in os.walk(_CGROUPS):
        for name in directories:
            if any(name.startswith(prefix) for prefix in names):
                found.append(Path(folder) / name)
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    """Return the fields of proc_pid_stat(5) from the state on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def state_of(pid: int) -> str:
    """Return the letter of a process's state, proc_pid_stat(5); empty once it is gone."""
    fields = _stat(pid)
    return "" if fields is None else fields[0]


def _parents() -> dict[int, int]:
    found = {}
    for pid in _pids():
        fields = _stat(pid)
        if fields is not None:
            found[pid] = int(fields[1])
    return found


def _children(parents: dict[int, int], pid: int) -> list[int]:
    return [child for child, parent in parents.items() if parent == pid]


def _process_or_none(pid: int) -> Process | None:
    fields = _stat(pid)
    return None if fields is None else Process(pid, fields[19])


def process_of(pid: int) -> Process:
    """Return a process that runs."""
    process = _process_or_none(pid)
    assert process is not None, f"process {pid} ended too early"
    return process


def _command(pid: int) -> str:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def _pid_namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def holds(pid: int, below: Path) -> bool:
    """Return whether a process has something open below a directory."""
    prefix = f"{below.resolve()}/"
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for name in names:
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}").startswith(prefix):
                return True
        except OSError:
            continue
    return False


def _connections(pid: int) -> frozenset[str]:
    """Return the minor numbers of the FUSE mounts that a process sees: their connections' names."""
    mine = _fuse_minors("self")
    return frozenset(_fuse_minors(str(pid)) - mine)


def _fuse_minors(who: str) -> set[str]:
    with open(f"/proc/{who}/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        lines = [line.split() for line in table]
    return {
        line[2].partition(":")[2] for line in lines if line[line.index("-") + 1] == "fuse.serdab"
    }


def _mounted_anywhere() -> set[str]:
    """Return the minor numbers of our FUSE mounts in all mount namespaces that have a process."""
    found: set[str] = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                found |= _fuse_minors(name)
    return found
