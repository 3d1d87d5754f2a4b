# SPDX-License-Identifier: Apache-2.0
"""The kernel process's side of the launcher: start it, tell it what to do, hear what happened.

Above: ``sandbox``. Below: ``loop``, ``channel``. The layouts are those of
``init/src/protocol.h``; both ends ship together.

Security: the launcher is executed from a sealed file in memory, so that ``/proc/1/exe`` inside is
no file of the host (the class of CVE-2019-5736). What it sends is still parsed with care: it
shares its memory image with nothing the application runs, but it is the nearest to it.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
from collections.abc import Callable
from typing import Any, Final

from serdab.errors import EnvironmentRefused, Error, InternalError
from serdab.libos.channel import close_all, receive_raw, send_raw
from serdab.libos.early import Started
from serdab.libos.loop import Future, Loop
from serdab.linux.process import sealed_file
from serdab.structs import frozen

HEADER: Final = struct.Struct("<HHIiI")
SETUP: Final = struct.Struct("<QIIIIIIII")
LIMIT: Final = struct.Struct("<IIQQ")
SPAWN_FAILURE: Final = struct.Struct("<iI")

_SETUP, _PLAN, _SPAWN, _KILL, _SYNC, _TERMINAL, _LEND, _WHOSE, _LEAVE = range(1, 10)
_STARTED, _READY, _FUSE, _DONE, _SPAWNED, _LISTENER, _EXITED, _SYNCED = range(64, 72)
_TERMINAL_OPEN, _STOPPED, _KILLED, _WHOSE_IS = range(72, 76)
#: Answers that say which request they belong to.
_NUMBERED: Final = frozenset({_SPAWNED, _SYNCED, _TERMINAL_OPEN})

_SPAWN_TERMINAL: Final = 1
_KILL_GROUP, _KILL_TELL = 1, 2

FEATURE_LANDLOCK_SCOPE: Final = 1
FEATURE_IPC_BOUND: Final = 2
_MOST_SHM_PAGES: Final = (1 << 31) - 1

#: In what is told of a stop or an end: a group inside has the terminal that was lent.
LENT_IS_HERE: Final = 1
#: Likewise: what the terminal sent meanwhile to the group that had it.
LENT_SIGNALS: Final[dict[int, int]] = {
    signal.SIGHUP: 2,
    signal.SIGINT: 4,
    signal.SIGQUIT: 8,
    signal.SIGTSTP: 16,
}

#: What the launcher does between OP_SETUP and OP_READY, by the number it reports.
_SETUP_STEPS: Final = (
    "",
    "opening /dev/fuse",
    "dropping groups",
    "becoming the inner group",
    "becoming the inner root",
    "hiding its memory",
    "asking for the parent's death signal",
    "no_new_privs",
    "an own session",
    "an own network namespace",
    "making mounts private",
    "a session keyring",
    "keeping process ids for itself",
)


class StepFailed(Exception):
    """A mount step was refused by the system: its number and errno."""

    def __init__(self, step: int, code: int) -> None:
        super().__init__(f"step {step}: {os.strerror(code)}")
        self.step = step
        self.code = code


@frozen
class Setup:
    """What the sandbox is given once. ``limits``: (resource, soft, hard).

    ``shm_bytes``: of System V shared memory; 0: as the kernel has it. ``own_session``: not the
    caller's.
    """

    capabilities: int
    fuse_count: int
    limits: tuple[tuple[int, int, int], ...]
    filter: bytes
    drop_groups: bool
    own_network: bool
    shm_bytes: int
    own_session: bool


@frozen
class SpawnRequest:
    """A program to start: strings as bytes, three descriptors, a status pipe.

    ``own_session``: not in that of the caller, whose terminal is not lent.
    ``terminal``: which of ``fds`` controls a session of the program's own (-1: none, and the
    program leads a process group in the session of pid 1, as under ``run``: the leader of a session
    could not call setpgid(2), and would get the first terminal it opens).
    """

    path: bytes
    cwd: bytes
    argv: tuple[bytes, ...]
    env: tuple[bytes, ...]
    umask: int
    fds: tuple[int, int, int]
    own_session: bool = False
    terminal: int = -1


def dump_setup(setup: Setup) -> bytes:
    """Return struct setup with what follows it."""
    count = len(setup.filter) // 8
    raw = SETUP.pack(
        setup.capabilities,
        setup.fuse_count,
        len(setup.limits),
        count,
        int(setup.drop_groups),
        int(setup.own_network),
        min(setup.shm_bytes >> 12, _MOST_SHM_PAGES),
        int(setup.own_session),
        0,
    )
    return (
        raw
        + b"".join(LIMIT.pack(r, 0, soft, hard) for r, soft, hard in setup.limits)
        + setup.filter
    )


def dump_strings(request: SpawnRequest) -> bytes:
    """Return the strings of a program as the launcher reads them."""
    strings = (request.path, request.cwd, *request.argv, *request.env)
    if any(b"\0" in text for text in strings):
        raise InternalError("a NUL byte in an argument was not refused earlier")
    head = struct.pack("<II", len(request.argv), len(request.env))
    return head + b"".join(text + b"\0" for text in strings)


class Launcher:
    """Speaks with pid 1 of an instance, from the launcher's start on.

    ``on_listener(serial, fd)`` takes over the seccomp listener of a program, ``on_fuse(index, fd,
    device)`` the descriptor of a mount that was just made, ``on_exit(serial, status, lent)`` hears
    of a program's end, ``on_stop(serial, signal, lent)`` that one was stopped, both with LENT_*
    bits, ``on_gone()`` that pid 1 is no more.
    """

    def __init__(
        self,
        loop: Loop,
        started: Started,
        *,
        on_listener: Callable[[int, int], None],
        on_fuse: Callable[[int, int, int], None],
        on_exit: Callable[[int, int, int], None],
        on_stop: Callable[[int, int, int], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._on_listener = on_listener
        self._on = {_EXITED: on_exit, _STOPPED: on_stop}
        self._on_fuse = on_fuse
        self._on_gone = on_gone
        self._waiting: dict[tuple[int, int], Future[Any]] = {}
        self._has_gone = False
        self._serial = 0
        self.pid = 0
        self._end = started.end
        self._starter = started.starter
        # Expected from the start: it may be there before anybody asks.
        self._started = self._expect(_STARTED, 0)
        loop.watch(self._end.fileno(), self._readable)

    def _expect(self, op: int, serial: int) -> Future[Any]:
        future: Future[Any] = self._loop.future()
        if self._has_gone:
            future.set_error(gone_error())
        else:
            self._waiting[op, serial] = future
        return future

    def _readable(self) -> None:
        payload, fds = receive_raw(self._end, HEADER.size)
        if len(payload) != HEADER.size:
            close_all(fds)
            self._gone()
            return
        op, flags, serial, result, value = HEADER.unpack(payload)
        if op == _LISTENER and len(fds) == 1:
            self._on_listener(serial, fds[0])
        elif op == _FUSE and len(fds) == 1:
            self._on_fuse(serial, fds[0], value)
        elif op == _TERMINAL_OPEN and len(fds) == 1:
            waiting = self._waiting.pop((op, serial), None)
            if waiting is None:
                close_all(fds)
            else:
                waiting.set_result((serial, 0, fds[0]))
        else:
            close_all(fds)
            if op in self._on:
                self._on[op](serial, value, flags)
                return
            key = (op, serial if op in _NUMBERED else 0)
            future = self._waiting.pop(key, None)
            if future is not None:
                future.set_result((serial, result, value))

    def _gone(self, *, tell: bool = True) -> None:
        self._loop.unwatch(self._end.fileno())
        self._has_gone = True
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_error(gone_error())
        if tell:
            self._on_gone()

    async def started(self) -> int:
        """Wait until the namespaces exist; return the process id of pid 1 outside.

        Raises:
            EnvironmentRefused: this machine does not let us make them.
        """
        _, result, value = await self._started
        os.waitpid(self._starter, 0)
        if result < 0:
            raise EnvironmentRefused(
                "this machine refuses user namespaces",
                stage="sandbox",
                subject="clone(CLONE_NEWUSER)",
                found=os.strerror(-result),
                hint="see user.max_user_namespaces, kernel.unprivileged_userns_clone and "
                "kernel.apparmor_restrict_unprivileged_userns in sysctl(8)",
            )
        self.pid = value
        return int(value)

    async def set_up(self, setup: Setup) -> int:
        """Let pid 1 prepare itself, after the id maps were written; return FEATURE_* bits.

        Raises:
            EnvironmentRefused: something that is needed is missing.
        """
        future = self._expect(_READY, 0)
        self._send(_SETUP, body=dump_setup(setup))
        step, result, features = await future
        if result < 0:
            what = _SETUP_STEPS[step] if step < len(_SETUP_STEPS) else f"step {step}"
            hint = "`serdab doctor` says what this machine lacks"
            if step == 1:
                hint = "the module fuse must be loaded and /dev/fuse open to this user (0666)"
            raise EnvironmentRefused(
                f"the sandbox failed at {what}",
                stage="sandbox",
                subject=what,
                found=os.strerror(-result),
                hint=hint,
            )
        return int(features)

    async def run_plan(self, plan: bytes, fds: tuple[int, ...] = ()) -> None:
        """Run mount steps.

        Raises:
            StepFailed: one was refused; the root is what it was before.
        """
        future = self._expect(_DONE, 0)
        self._send(_PLAN, body=plan, fds=fds)
        step, result, _ = await future
        if result < 0:
            raise StepFailed(step, -result)

    async def spawn(self, request: SpawnRequest, status_fd: int) -> int:
        """Start a program; return its serial. ``status_fd``: where exec's failure is written.

        Raises:
            OSError: no process could be made.
        """
        self._serial += 1
        serial = self._serial
        future = self._expect(_SPAWNED, serial)
        strings = sealed_file("program", dump_strings(request))
        try:
            self._send(
                _SPAWN,
                flags=_SPAWN_TERMINAL if request.terminal >= 0 else 0,
                serial=serial,
                result=max(request.terminal, 0),
                value=request.umask,
                fds=(strings, *request.fds, status_fd),
            )
        finally:
            os.close(strings)
        _, result, _ = await future
        if result < 0:
            raise OSError(-result, os.strerror(-result), "starting a process")
        return serial

    def kill(self, serial: int, signal_number: int, *, group: bool = False) -> None:
        """Signal a program (0: every process inside); one that has ended is not an error.

        ``group``: its whole process group.
        """
        flags = _KILL_GROUP if group else 0
        self._send(_KILL, flags=flags, serial=serial, result=signal_number)

    async def is_empty(self) -> bool:
        """Return whether no process is left inside but pid 1."""
        future = self._expect(_KILLED, 0)
        self._send(_KILL, flags=_KILL_TELL)
        _, result, _ = await future
        return int(result) == -errno.ESRCH

    def lend(self, serial: int, terminal: int) -> None:
        """Give the session's terminal to a program's group, and let that go on."""
        self._send(_LEND, serial=serial, fds=(terminal,))

    async def has_terminal(self) -> bool:
        """Return whether a group inside has the terminal that was lent."""
        future = self._expect(_WHOSE_IS, 0)
        self._send(_WHOSE)
        _, _, value = await future
        return bool(value)

    def leave_session(self) -> None:
        """Let pid 1 go into a session of its own: programs are an orphaned job from here on."""
        self._send(_LEAVE)

    async def open_terminal(self) -> int:
        """Return the master side of a new pseudo-terminal of the instance.

        Raises:
            OSError: there is none, or programs have put something else in its place.
        """
        self._serial += 1
        future = self._expect(_TERMINAL_OPEN, self._serial)
        self._send(_TERMINAL, serial=self._serial)
        _, result, fd = await future
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return int(fd)

    async def sync(self) -> None:
        """Let dirty pages of the root and of every mount go to their fs servers.

        Raises:
            OSError: what syncfs(2) said.
        """
        self._serial += 1
        future = self._expect(_SYNCED, self._serial)
        # pid 1 may find something else at its own /proc.
        table = os.open(f"/proc/{self.pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._send(_SYNC, serial=self._serial, fds=(table,))
        finally:
            os.close(table)
        _, result, _ = await future
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def _send(
        self,
        op: int,
        *,
        flags: int = 0,
        serial: int = 0,
        result: int = 0,
        value: int = 0,
        body: bytes = b"",
        fds: tuple[int, ...] = (),
    ) -> None:
        if self._has_gone:
            return  # whoever waits for an answer was told, or is told when they ask for it
        try:
            send_raw(self._end, HEADER.pack(op, flags, serial, result, value) + body, fds)
        except (BrokenPipeError, ConnectionResetError):
            # The end of file is told by _readable; whoever waits for an answer hears it there.
            pass

    def close(self) -> None:
        """Let go of pid 1, which then ends with everything inside."""
        if self._end.fileno() >= 0:
            self._gone(tell=False)
            self._end.close()


def gone_error() -> Error:
    return Error("the sandbox ended unexpectedly", stage="sandbox", subject="launcher")
