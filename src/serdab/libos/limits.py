# SPDX-License-Identifier: Apache-2.0
"""Limits on everything that runs inside: control groups where they can be had, else rlimits.

Above: ``sandbox``. Beside: ``shares``, which bounds what programs make us keep in memory.
cgroups(7): version 2 where a directory is writable for us, version 1 as root.

A control group counts the whole instance. It has two children: one for programs, in which the
kernel finds somebody to kill when their memory is used up, and one for the fs servers, whose bound
is above what they are made to take; so no program's memory ends a server. Without a control group
RLIMIT_NPROC counts the instance's processes too (the kernel keeps that count per user namespace
since Linux 5.14), and RLIMIT_DATA bounds each process by itself: a weaker promise, which
``describe`` words.
"""

from __future__ import annotations

import os
import resource
import time
from typing import Final

from serdab.structs import frozen

_ROOT: Final = "/sys/fs/cgroup"
_PREFIX: Final = "serdab-"
_PROGRAMS: Final = "programs"
_SERVERS: Final = "servers"
_REMOVE_PATIENCE_S: Final = 2.0
_NO_CORE: Final = 1


@frozen
class Wanted:
    """What the configuration asks for; None is no limit.

    ``servers_bytes`` and ``servers`` are for the fs servers, with a margin; 0 is no limit.
    ``shm_bytes``: of System V shared memory; 0 is no limit. Nothing inside leaves a core file,
    and with ``may_dump_core`` a program may still ask for one.
    """

    processes: int | None = None
    memory_bytes: int | None = None
    stack_bytes: int | None = None
    may_dump_core: bool = False
    servers_bytes: int = 0
    servers: int = 0
    shm_bytes: int = 0


class ControlGroup:
    """The directories that were made for one instance, one per hierarchy."""

    def __init__(self, directories: tuple[str, ...]) -> None:
        self._directories = directories

    def add(self, pid: int) -> None:
        """Move a process to the programs; what it forks follows it."""
        for directory in self._directories:
            _write(f"{directory}/{_PROGRAMS}", "cgroup.procs", str(pid))

    def open_servers(self) -> list[int]:
        """Return descriptors for ``join``, by which a process moves itself to the fs servers."""
        return [
            os.open(f"{directory}/{_SERVERS}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            for directory in self._directories
        ]

    def memory_kills(self) -> int:
        """Return how many programs the kernel killed because the memory limit was reached."""
        for directory in self._directories:
            for name in ("memory.events", "memory.oom_control"):
                try:
                    with open(f"{directory}/{_PROGRAMS}/{name}", encoding="ascii") as file:
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
            while not _remove(directory):
                if time.monotonic() > until:
                    break  # the next run removes what is empty by then
                time.sleep(0.005)


def join(fds: list[int]) -> None:
    """Move the calling process to the groups that the descriptors are of.

    Raises:
        OSError: the kernel refuses.
    """
    for fd in fds:
        os.write(fd, b"0")


def _remove(directory: str) -> bool:
    """Remove a group with its children; return False while a process is in it."""
    for path in (f"{directory}/{_PROGRAMS}", f"{directory}/{_SERVERS}", directory):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


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
            _remove(os.path.join(parent, name))  # else processes are in it


@frozen
class _Settings:
    """What is written to the group and its children; ``optional`` may be missing."""

    programs: dict[str, str]
    servers: dict[str, str]
    optional: frozenset[str] = frozenset()
    controllers: str = ""


def _make(parent: str, settings: _Settings) -> str:
    _sweep(parent)
    directory = os.path.join(parent, f"{_PREFIX}{os.getpid()}-{os.urandom(3).hex()}")
    os.mkdir(directory)
    try:
        if settings.controllers:
            _write(directory, "cgroup.subtree_control", settings.controllers)
        for name, values in ((_PROGRAMS, settings.programs), (_SERVERS, settings.servers)):
            os.mkdir(f"{directory}/{name}")
            for file, value in values.items():
                try:
                    _write(f"{directory}/{name}", file, value)
                except OSError:
                    if file not in settings.optional:
                        raise
    except BaseException:
        _remove(directory)
        raise
    return directory


def _with_pids(wanted: Wanted) -> tuple[dict[str, str], dict[str, str]]:
    if wanted.processes is None:
        return {}, {}
    # Our pid 1 is one of them.
    programs = {"pids.max": str(wanted.processes + 1)}
    return programs, {"pids.max": str(wanted.servers)} if wanted.servers else {}


def _version_1(own: dict[str, str], wanted: Wanted) -> tuple[str, ...]:
    made: list[str] = []
    wishes: list[tuple[str, _Settings]] = []
    memory, swap = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
    if wanted.memory_bytes is not None:
        size, servers = str(wanted.memory_bytes), str(wanted.servers_bytes or -1)
        # What lies in sockets counts by itself in version 1; version 2 counts it with the rest.
        sockets = "memory.kmem.tcp.limit_in_bytes"
        programs = {memory: size, swap: size, sockets: size}
        optional = frozenset({swap, sockets})
        wishes.append(("memory", _Settings(programs, {memory: servers}, optional)))
    if wanted.processes is not None:
        wishes.append(("pids", _Settings(*_with_pids(wanted))))
    try:
        for controller, settings in wishes:
            parent = f"{_ROOT}/{controller}{own[controller]}".rstrip("/")
            made.append(_make(parent, settings))
    except BaseException:
        ControlGroup(tuple(made)).remove()
        raise
    return tuple(made)


def _version_2(own: str, wanted: Wanted) -> tuple[str, ...]:
    programs, servers = _with_pids(wanted)
    if wanted.memory_bytes is not None:
        programs |= {"memory.max": str(wanted.memory_bytes), "memory.swap.max": "0"}
        servers |= {"memory.max": str(wanted.servers_bytes or "max")}
    settings = _Settings(programs, servers, frozenset({"memory.swap.max"}), "+memory +pids")
    last: OSError = FileNotFoundError("no writable control group")
    # A group with processes cannot hand controllers to children, so the parent is tried first.
    for path in dict.fromkeys((os.path.dirname(own), own)):
        parent = f"{_ROOT}{path}".rstrip("/")
        try:
            try:
                _write(parent, "cgroup.subtree_control", "+memory +pids")
            except OSError:
                pass  # it may be on already; if not, the settings below do not exist
            return (_make(parent, settings),)
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


def describe(wanted: Wanted, *, has_group: bool, is_ipc_bound: bool) -> str:
    """Return how far the limits reach, for a line to the operator; empty when they hold.

    ``is_ipc_bound``: System V shared memory and messages were limited.
    """
    if wanted.memory_bytes is None or has_group:
        return ""
    loose = "memfd_create(2)" if is_ipc_bound else "memfd_create(2), shmget(2) and msgget(2)"
    return (
        "no control group here: the memory limit holds for each process by itself, and for file "
        f"systems in memory; not for the sum, nor for the memory of {loose}"
    )
