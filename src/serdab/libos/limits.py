# SPDX-License-Identifier: Apache-2.0
"""Limits on everything that runs inside: control groups where they can be had, else rlimits.

Above: ``sandbox``. cgroups(7): version 2 where a directory is writable for us, version 1 as root.

A control group counts the whole instance. Without one, RLIMIT_NPROC counts the instance's
processes too (the kernel keeps that count per user namespace since Linux 5.14), and RLIMIT_DATA
bounds each process by itself: a weaker promise, which ``describe`` words.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from typing import Final

_ROOT: Final = "/sys/fs/cgroup"
_PREFIX: Final = "serdab-"
_REMOVE_PATIENCE_S: Final = 2.0
_NO_CORE: Final = 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the configuration asks for; None is no limit.

    Nothing inside leaves a core file, and with ``may_dump_core`` a program may still ask for one.
    """

    processes: int | None = None
    memory_bytes: int | None = None
    stack_bytes: int | None = None
    may_dump_core: bool = False


class ControlGroup:
    """The directories that were made for one instance, one per hierarchy."""

    def __init__(self, directories: tuple[str, ...]) -> None:
        self._directories = directories

    def add(self, pid: int) -> None:
        """Move a process in; what it forks follows it."""
        for directory in self._directories:
            _write(directory, "cgroup.procs", str(pid))

    def memory_kills(self) -> int:
        """Return how many processes the kernel killed because the memory limit was reached."""
        for directory in self._directories:
            for name in ("memory.events", "memory.oom_control"):
                try:
                    with open(os.path.join(directory, name), encoding="ascii") as file:
                        lines = file.readlines()
                except FileNotFoundError:
                    continue  # the other version, or another controller's directory
                for line in lines:
                    word, _, count = line.partition(" ")
                    if word == "oom_kill":
                        return int(count)
        return 0

    def remove(self) -> None:
        """Remove the directories; the last process may take a moment to leave."""
        until = time.monotonic() + _REMOVE_PATIENCE_S
        for directory in self._directories:
            while True:
                try:
                    os.rmdir(directory)
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > until:
                        break  # the next run removes what is empty by then
                    time.sleep(0.005)
                else:
                    break


def _write(directory: str, name: str, text: str) -> None:
    fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    finally:
        os.close(fd)


def _own_groups() -> dict[str, str]:
    """Return the path of our own group by controller; the empty name is version 2."""
    out: dict[str, str] = {}
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            for controller in controllers.split(","):
                out[controller] = path
    return out


def _sweep(parent: str) -> None:
    """Remove what a run that was killed has left: empty groups whose maker is gone."""
    for name in os.listdir(parent):
        maker = name.removeprefix(_PREFIX).partition("-")[0]
        if name.startswith(_PREFIX) and maker.isdecimal() and not os.path.exists(f"/proc/{maker}"):
            try:
                os.rmdir(os.path.join(parent, name))
            except OSError:
                continue  # processes in it, or somebody else was faster


def _make(parent: str, settings: dict[str, str], optional: frozenset[str]) -> str:
    _sweep(parent)
    directory = os.path.join(parent, f"{_PREFIX}{os.getpid()}-{os.urandom(3).hex()}")
    os.mkdir(directory)
    try:
        for name, value in settings.items():
            try:
                _write(directory, name, value)
            except OSError:
                if name not in optional:
                    raise
    except BaseException:
        os.rmdir(directory)
        raise
    return directory


def _version_1(own: dict[str, str], wanted: Wanted) -> tuple[str, ...]:
    made: list[str] = []
    wishes: list[tuple[str, dict[str, str]]] = []
    if wanted.memory_bytes is not None:
        size = str(wanted.memory_bytes)
        wishes.append(
            ("memory", {"memory.limit_in_bytes": size, "memory.memsw.limit_in_bytes": size})
        )
    if wanted.processes is not None:
        # Our pid 1 is one of them.
        wishes.append(("pids", {"pids.max": str(wanted.processes + 1)}))
    try:
        for controller, settings in wishes:
            parent = f"{_ROOT}/{controller}{own[controller]}".rstrip("/")
            made.append(_make(parent, settings, frozenset({"memory.memsw.limit_in_bytes"})))
    except BaseException:
        ControlGroup(tuple(made)).remove()
        raise
    return tuple(made)


def _version_2(own: str, wanted: Wanted) -> tuple[str, ...]:
    settings: dict[str, str] = {}
    if wanted.memory_bytes is not None:
        settings |= {"memory.max": str(wanted.memory_bytes), "memory.swap.max": "0"}
    if wanted.processes is not None:
        settings["pids.max"] = str(wanted.processes + 1)
    last: OSError = FileNotFoundError("no writable control group")
    # A group with processes cannot hand controllers to children, so the parent is tried first.
    for path in dict.fromkeys((os.path.dirname(own), own)):
        parent = f"{_ROOT}{path}".rstrip("/")
        try:
            try:
                _write(parent, "cgroup.subtree_control", "+memory +pids")
            except OSError:
                pass  # it may be on already; if not, the settings below do not exist
            return (_make(parent, settings, frozenset({"memory.swap.max"})),)
        except OSError as exc:
            last = exc
    raise last


def control_group(wanted: Wanted) -> ControlGroup | None:
    """Return a group with these limits, or None where none can be made."""
    if wanted.processes is None and wanted.memory_bytes is None:
        return None
    try:
        own = _own_groups()
        if os.path.exists(f"{_ROOT}/cgroup.controllers"):
            return ControlGroup(_version_2(own.get("", "/"), wanted))
        return ControlGroup(_version_1(own, wanted))
    except (OSError, KeyError):
        return None


def rlimits(wanted: Wanted, *, has_group: bool) -> tuple[tuple[int, int, int], ...]:
    """Return (resource, soft, hard) for every program."""
    # 1, not 0: core(5) does not enforce the limit where core_pattern is a pipe, so that the memory
    # of a program, keys of init included, would go to the host; 1 is what stops that, too
    # (do_coredump() in Linux).
    out: list[tuple[int, int]] = [(resource.RLIMIT_CORE, _NO_CORE)]
    raisable = {resource.RLIMIT_STACK}
    if wanted.may_dump_core:
        raisable.add(resource.RLIMIT_CORE)
    if wanted.stack_bytes is not None:
        out.append((resource.RLIMIT_STACK, wanted.stack_bytes))
    if not has_group:
        if wanted.processes is not None:
            out.append((resource.RLIMIT_NPROC, wanted.processes + 1))
        if wanted.memory_bytes is not None:
            out.append((resource.RLIMIT_DATA, wanted.memory_bytes))
    limits: list[tuple[int, int, int]] = []
    for what, value in out:
        _, hard = resource.getrlimit(what)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        # A stack may be grown again by the program, up to what the host allows.
        top = hard if what in raisable else value
        limits.append((what, value, top if top != resource.RLIM_INFINITY else (1 << 64) - 1))
    return tuple(limits)


def describe(wanted: Wanted, *, has_group: bool) -> str:
    """Return how far the limits reach, for a line to the operator; empty when there are none."""
    if wanted.memory_bytes is None or has_group:
        return ""
    return "no control group here: the memory limit holds for each process by itself"
