# SPDX-License-Identifier: Apache-2.0
"""The sandbox of one instance: namespaces, ids, limits, the trees of its two stages, programs.

Above: ``boot``, ``kernel``. Below: ``launcher``, ``tree``, ``filter``, ``idmaps``, ``limits``.

Security: rules that hold whatever the caller does: no kuid 0 inside, no_new_privs, the default
capability set of containers, the filter of ``filter``, an own session keyring, abstract sockets
out of reach where the kernel has Landlock scopes.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Any, Final

from serdab.errors import EnvironmentRefused, Error, NotAllowedError, NotFoundError
from serdab.libos import filter as call_filter
from serdab.libos import idmaps, idslots, limits
from serdab.libos.early import Started
from serdab.libos.launcher import (
    FEATURE_IPC_BOUND,
    FEATURE_LANDLOCK_SCOPE,
    SPAWN_FAILURE,
    Launcher,
    Setup,
    SpawnRequest,
    StepFailed,
    gone_error,
)
from serdab.libos.loop import Future, Loop
from serdab.libos.tree import Tree, plan
from serdab.linux.capability import Capability, mask
from serdab.structs import frozen

#: What podman gives a container by default, as far as it means anything inside.
CAPABILITIES: Final = (
    Capability.CHOWN,
    Capability.DAC_OVERRIDE,
    Capability.FOWNER,
    Capability.FSETID,
    Capability.KILL,
    Capability.NET_BIND_SERVICE,
    Capability.SETFCAP,
    Capability.SETGID,
    Capability.SETPCAP,
    Capability.SETUID,
    Capability.SYS_CHROOT,
)

_SHARED_IDS: Final = (
    "no range of ids is left for this instance alone: it shares one with others (subuid(5): give "
    "root more)"
)
_STAGE_FILTER: Final = 4
_STAGE_CHDIR: Final = 2
_STAGE_EXEC: Final = 3
_NOT_FOUND: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
_HINT_OF_FORMAT: Final = (
    "it is neither a script that begins with #! nor a program for this machine and 64 bits: "
    "`file` and `readelf -h` tell what it is"
)
_HINT_OF_MODE: Final = "its mode is that of the source tree; `serdab build` seals it anew"
_NOT_EXECUTABLE: Final = frozenset({errno.EACCES, errno.ENOEXEC, errno.EISDIR, errno.EPERM})


@frozen
class Listeners:
    """Who takes over what the sandbox produces.

    ``on_stop(program, signal, lent)``, ``on_exit(program, status)``, before others hear of it.
    """

    on_listener: Callable[[int], None]
    on_fuse: Callable[[int, int, int], None]
    on_stop: Callable[[Program, int, int], None]
    on_exit: Callable[[Program, int], None]
    on_gone: Callable[[], None]


class Program:
    """A program that was started. ``ended`` gives its wait status.

    ``is_followed``: it has a terminal of its own. ``lent`` are the LENT_* bits of its end.
    ``had_terminal``: when it was stopped, and it has not gone on since.
    ``sent``: what the terminal sent to our process group and was passed on to it, and what its
    keys send but somebody else did;
    ``is_to_stop``: SIGTSTP was among it, and it has neither stopped nor gone on since.
    """

    __slots__ = (
        "ended",
        "had_terminal",
        "is_followed",
        "is_to_stop",
        "lent",
        "own_session",
        "sent",
        "serial",
    )

    def __init__(
        self, serial: int, ended: Future[int], *, own_session: bool, is_followed: bool
    ) -> None:
        self.serial = serial
        self.ended = ended
        self.is_followed = is_followed
        self.own_session = own_session
        self.lent = 0
        self.had_terminal = False
        self.is_to_stop = False
        self.sent: set[int] = set()


class Sandbox:
    """Takes over a launcher that was started early, while others verify."""

    def __init__(self, loop: Loop, started: Started, listeners: Listeners) -> None:
        self._loop = loop
        self._listeners = listeners
        self._programs: dict[int, Program] = {}
        self._group: limits.ControlGroup | None = None
        self._pidfd = -1
        #: Its user and mount namespace, open from when they exist until pid 1 has ended.
        self.namespaces: tuple[int, ...] = ()
        #: Its PID namespace, as long; -1 before and after.
        self.pid_namespace = -1
        #: How proc_pid_ns(5) names the two, to compare a caller's with.
        self.user_namespace = ""
        self.mount_namespace = ""
        self.ids = idmaps.choose_here(idslots.take)
        self.has_scopes = False
        #: Decided before set_up: not in the caller's session.
        self.own_session = True
        self.is_gone = False
        self.gone: Future[None] = loop.future()
        self._launcher = Launcher(
            loop,
            started,
            on_listener=lambda _, fd: listeners.on_listener(fd),
            on_fuse=listeners.on_fuse,
            on_exit=self._on_exit,
            on_stop=self._on_stop,
            on_gone=self._on_gone,
        )

    @property
    def pid(self) -> int:
        """The process id of pid 1 outside."""
        return self._launcher.pid

    async def enter(self) -> None:
        """Wait for the namespaces and map their ids.

        Raises:
            EnvironmentRefused: this machine lacks something.
            Error: pid 1 has ended, as when the boot was ended meanwhile.
        """
        pid = await self._launcher.started()
        self._pidfd = os.pidfd_open(pid)
        self._loop.watch(self._pidfd, self._on_death)
        try:
            # Now: once pid 1 has hidden its memory, its /proc directory is closed to its user.
            for name in ("user", "mnt"):
                fd = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
                self.namespaces += (fd,)
            self.pid_namespace = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            self.user_namespace = os.readlink(f"/proc/{pid}/ns/user")
            self.mount_namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        except (FileNotFoundError, ProcessLookupError) as exc:
            raise gone_error() from exc  # a zombie has none, proc_pid_ns(5)
        idmaps.write(pid, self.ids)

    async def set_up(
        self, wanted: limits.Wanted, *, fuse_count: int, own_network: bool
    ) -> tuple[str, ...]:
        """Limit and prepare pid 1; return lines for the operator.

        Raises:
            EnvironmentRefused: this machine lacks something.
            Error: pid 1 has ended.
        """
        if self.is_gone:
            raise gone_error()  # and its number may be somebody else's by now
        self._group = limits.control_group(wanted)
        if self._group is not None:
            try:
                self._group.add(self._launcher.pid)
            except ProcessLookupError as exc:
                raise gone_error() from exc
        has_group = self._group is not None
        features = await self._launcher.set_up(
            Setup(
                capabilities=mask(CAPABILITIES),
                fuse_count=fuse_count,
                limits=limits.rlimits(wanted, has_group=has_group),
                filter=call_filter.build(call_filter.options_for(os.uname().machine)),
                drop_groups=self.ids.drop_groups,
                own_network=own_network,
                shm_bytes=wanted.shm_bytes,
                own_session=self.own_session,
            )
        )
        self.has_scopes = bool(features & FEATURE_LANDLOCK_SCOPE)
        is_ipc_bound = bool(features & FEATURE_IPC_BOUND)
        line = limits.describe(wanted, has_group=has_group, is_ipc_bound=is_ipc_bound)
        lines = (line, _SHARED_IDS if self.ids.is_shared else "")
        return tuple(filter(None, lines))

    def open_server_group(self) -> list[int]:
        """Return descriptors of the control group of fs servers, for ``limits.join``."""
        return [] if self._group is None else self._group.open_servers()

    def remove_group(self) -> None:
        """Remove the control group, when the fs servers have ended too."""
        if self._group is not None:
            self._group.remove()

    def memory_kills(self) -> int:
        """Return how many processes inside died of the memory limit; 0 without a control group."""
        return 0 if self._group is None else self._group.memory_kills()

    async def switch_root(self, tree: Tree, fds: tuple[int, ...] = ()) -> None:
        """Build a tree and make it the root of everything inside.

        Raises:
            Error: a step was refused; the root is what it was.
        """
        steps = plan(tree)
        try:
            await self._launcher.run_plan(steps.raw, fds)
        except StepFailed as exc:
            what = steps.words[exc.step] if exc.step < len(steps.words) else f"step {exc.step}"
            if what == "a new proc" and exc.code == errno.EPERM:
                raise refused_proc() from None
            kind = EnvironmentRefused if exc.code in (errno.EPERM, errno.ENODEV) else Error
            raise kind(
                f"the tree of mounts cannot be built: {what}",
                stage="sandbox",
                subject=what,
                found=os.strerror(exc.code),
                hint="`serdab doctor` says what this machine lacks",
            ) from None

    async def spawn(self, request: SpawnRequest) -> Program:
        """Start a program; returns once exec has succeeded.

        Raises:
            NotFoundError, NotAllowedError: exec's reason.
            EnvironmentRefused: the filter cannot be installed on this kernel.
            Error: any other failure.
        """
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            try:
                serial = await self._launcher.spawn(request, writer)
            except OSError as exc:
                raise Error(
                    "no process can be made",
                    stage="app",
                    subject=os.fsdecode(request.path),
                    found=os.strerror(exc.errno or 0),
                    hint="resource_limits.max_num_of_threads in Occlum.json is the limit inside",
                ) from None
            finally:
                os.close(writer)
            program = Program(
                serial,
                self._loop.future(),
                own_session=request.own_session,
                is_followed=request.terminal >= 0,
            )
            self._programs[serial] = program
            outcome = await self._read_status(reader)
        finally:
            os.close(reader)
        if len(outcome) == SPAWN_FAILURE.size:
            code, stage = SPAWN_FAILURE.unpack(outcome)
            raise _spawn_error(request, code, stage)
        return program

    async def _read_status(self, reader: int) -> bytes:
        """Return what the child wrote before it ended; nothing when it became the program."""
        done: Future[Any] = self._loop.future()

        def readable() -> None:
            self._loop.unwatch(reader)
            done.set_result(os.read(reader, 64))

        self._loop.watch(reader, readable)
        return bytes(await done)

    def kill(
        self, signal_number: int, program: Program | None = None, *, group: bool = False
    ) -> None:
        """Signal one program or its process group, or every process inside."""
        if not self.is_gone:
            serial = 0 if program is None else program.serial
            self._launcher.kill(serial, signal_number, group=group)

    def programs(self) -> list[Program]:
        """Return those that were started and have not ended."""
        return list(self._programs.values())

    def lend(self, program: Program, terminal: int) -> None:
        """Give the session's terminal to a program's group, and let that go on."""
        if not self.is_gone:
            self._launcher.lend(program.serial, terminal)

    async def has_terminal(self) -> bool:
        """Return whether a group inside has the terminal that was lent."""
        try:
            return not self.is_gone and await self._launcher.has_terminal()
        except Error:
            return False  # pid 1 has ended

    def leave_session(self) -> None:
        """Leave the caller's session, for good."""
        if not self.is_gone:
            self._launcher.leave_session()

    async def is_empty(self) -> bool:
        """Return whether no process is left inside but pid 1."""
        try:
            return self.is_gone or await self._launcher.is_empty()
        except Error:
            return True  # pid 1 has ended, and took everybody along

    async def open_terminal(self) -> int:
        """Return the master side of a new pseudo-terminal of the instance's own devpts.

        Raises:
            Error: there is none to be had.
        """
        try:
            return await self._launcher.open_terminal()
        except OSError as exc:
            raise Error(
                "no terminal can be made in the instance",
                stage="app",
                subject="/dev/pts/ptmx",
                expected="the instance's devpts",
                found=os.strerror(exc.errno or 0),
                hint="a program may have mounted something over /dev/pts; kernel.pty.max limits "
                "how many there are",
            ) from None

    async def write_back(self) -> None:
        """Let dirty pages go to the root's fs server.

        Raises:
            OSError: what syncfs(2) said.
        """
        await self._launcher.sync()

    def end(self) -> None:
        """End pid 1, and with it every process and every mount inside; ``gone`` says when."""
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        elif not self.is_gone:
            self._launcher.close()
            self._on_gone()

    def _on_exit(self, serial: int, status: int, lent: int) -> None:
        program = self._programs.pop(serial, None)
        if program is not None:
            program.lent = lent
            self._listeners.on_exit(program, status)
            program.ended.set_result(status)

    def _on_stop(self, serial: int, number: int, lent: int) -> None:
        if serial in self._programs:
            self._listeners.on_stop(self._programs[serial], number, lent)

    def _on_death(self) -> None:
        # First of all: a mount namespace that somebody holds keeps its mounts.
        for fd in self.namespaces:
            os.close(fd)
        self.namespaces = ()
        if self.pid_namespace >= 0:
            os.close(self.pid_namespace)
            self.pid_namespace = -1
        self._loop.unwatch(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        os.waitpid(self._launcher.pid, 0)
        self._launcher.close()
        self._on_gone()

    def _on_gone(self) -> None:
        if self.is_gone or self._pidfd >= 0:
            return  # what closed its socket may still have mounts: its death is what counts
        self.is_gone = True
        for program in self._programs.values():
            program.ended.set_result(9)  # as if killed: pid 1 took it along
        self._programs.clear()
        self.gone.set_result(None)
        self._listeners.on_gone()


def _spawn_error(request: SpawnRequest, code: int, stage: int) -> Error:
    path = os.fsdecode(request.path)
    found = os.strerror(code)
    if stage == _STAGE_EXEC and code in _NOT_FOUND:
        return NotFoundError(
            "no such program in the root FS",
            stage="app",
            subject=path,
            expected="a program",
            found=found,
            hint="a script's interpreter or a binary's loader may be what is missing",
        )
    if stage == _STAGE_EXEC and code in _NOT_EXECUTABLE:
        return NotAllowedError(
            "the program cannot be executed",
            stage="app",
            subject=path,
            expected="an executable file",
            found=found,
            hint=_HINT_OF_FORMAT if code == errno.ENOEXEC else _HINT_OF_MODE,
        )
    if stage == _STAGE_CHDIR:
        return Error(
            "no such working directory", stage="app", subject=os.fsdecode(request.cwd), found=found
        )
    if stage == _STAGE_FILTER:
        return EnvironmentRefused(
            "the system call filter cannot be installed",
            stage="sandbox",
            subject="seccomp(2)",
            expected="Linux 5.19 or newer with CONFIG_SECCOMP_FILTER",
            found=found,
        )
    return Error("the program could not be started", stage="app", subject=path, found=found)


def refused_proc() -> EnvironmentRefused:
    """Return the refusal where the kernel admits no /proc of the sandbox's own."""
    from serdab.linux.mounts import masks_of_proc

    masks = masks_of_proc()
    return EnvironmentRefused(
        "/proc is masked here, and the kernel admits no new one" if masks else "no new /proc here",
        stage="sandbox",
        subject="/proc",
        expected="one that nothing is mounted over",
        found=", ".join(masks) or "the kernel refuses it",
        hint="podman: --security-opt unmask=ALL; docker: --security-opt systempaths=unconfined; "
        "Kubernetes: procMount: Unmasked; the outer /proc is no substitute",
    )
