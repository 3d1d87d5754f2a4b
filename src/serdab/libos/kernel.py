# SPDX-License-Identifier: Apache-2.0
"""The kernel process: one per running instance. Boots it, starts programs, takes it down.

Above: ``pal`` (its peer on the control channel). Below: ``boot``, ``sandbox``, ``notify``.

It never walks a path inside the application's tree: it would wait for an fs server that may wait
for it. It lives in the caller's session and process group, where it hears what is meant for the
job that its programs are, see ``jobs``. When the control channel closes, whatever the reason, it
takes the instance down in order and ends.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import time
import traceback
from typing import Final, NoReturn

from serdab.errors import EnvironmentRefused, Error, FormatError, shortage_of
from serdab.libos import filter as call_filter
from serdab.libos.boot import Boot, Parts, measured_lines
from serdab.libos.channel import Channel, close_all
from serdab.libos.early import Early
from serdab.libos.environment import check_entry_point
from serdab.libos.fields import byte_strings, number, raw
from serdab.libos.fsclient import FsServer
from serdab.libos.ground import Ground
from serdab.libos.intake import CallError, Look
from serdab.libos.interpreter import KEYBOARD
from serdab.libos.jobs import Jobs
from serdab.libos.launcher import SpawnRequest
from serdab.libos.loop import Loop
from serdab.libos.messages import Value
from serdab.libos.mounts import RuntimeMounts
from serdab.libos.notify import Caller, Handlers, Notifications
from serdab.libos.request import BootRequest, take_key
from serdab.libos.sandbox import Listeners, Program, Sandbox
from serdab.libos.shares import Shares
from serdab.libos.streams import Streams, check_streams
from serdab.linux.dirfd import DirFd
from serdab.linux.memory import Memory

_CLOSE_PATIENCE_S: Final = 600.0
_QUIET_S: Final = 10.0
_TERM_PATIENCE_S: Final = 5.0
_LOOK_EVERY_S: Final = 0.01
_READ_PATIENCE_S: Final = 1.0


class Kernel:
    """The state of the process."""

    def __init__(self, loop: Loop, channel: Channel, early: Early) -> None:
        self._loop = loop
        self._channel = channel
        self._nursery = early.nursery
        self._nursery.renew = self._renew_nursery
        self._all_servers: list[FsServer] = []
        self._programs: dict[int, Program] = {}
        self._boot: Boot | None = None
        self._is_going_down = False
        self._is_unwanted = False
        self._memory_kills = 0
        self._is_booted = False
        self._last_moment = math.inf
        self._lock_fds: list[int] = []
        self._lost_lines = 0
        # Everything that takes time to start is started before anything is verified: none of it
        # holds a secret, and none of it acts before it is told to.
        self._root_server = self._new_server("root FS")
        self._init_server = self._new_server("init FS")
        self._sandbox = Sandbox(
            loop,
            early.launcher,
            Listeners(
                on_listener=lambda fd: self._notifications.add(fd),
                on_fuse=self._on_fuse,
                on_stop=self._on_stop,
                on_exit=lambda program, status: self._jobs.ended(program, status),
                on_gone=self._on_gone,
            ),
        )
        self._jobs = Jobs(loop, self._sandbox, early.autogroup)
        self._mounts = RuntimeMounts(
            loop,
            self._sandbox,
            new_server=self._new_mount_server,
            policy=lambda: None if self._boot is None else self._boot.chain.config.runtime_mounts,
            rules=lambda: None if self._boot is None else self._boot.mount_rules(),
            shares=lambda: Shares(None) if self._boot is None else self._boot.shares(),
            on_device=_raise_read_ahead,
            log=self._log,
        )
        ids = self._sandbox.ids
        owner = (ids.uids[0][1], ids.gids[0][1])
        numbers = call_filter.options_for(os.uname().machine).numbers
        self._notifications = Notifications(
            loop,
            numbers,
            handlers=Handlers(
                look_at_root=Look("rootfs", self._look_at_root, lambda _thread: None),
                mount_root=self._mount_root,
                look_at_mount=self._mounts.look_at_mount,
                mount=self._mounts.mount,
                look_at_umount=self._mounts.look_at_umount,
                umount=self._mounts.umount,
                sync=self._sync,
            ),
            owner=owner,
            log=self._log,
        )
        self._streams = Streams(*owner)
        loop.watch(channel.fileno(), self._readable)

    def _new_server(self, name: str) -> FsServer:
        server = FsServer(self._loop, name, nursery=self._nursery, log=self._log)
        self._all_servers.append(server)
        return server

    def _group_servers(self) -> None:
        group = self._sandbox.open_server_group()
        try:
            self._nursery.join(group)
            for server in self._all_servers:
                server.join(group)
        finally:
            close_all(group)

    def _renew_nursery(self) -> tuple[Channel, int] | None:
        """Start another nursery where the first one was killed; None if that cannot be."""
        if self._boot is None or not self._is_booted:
            return None  # what it should be is not known yet; the boot fails, and says so
        from serdab.libos.renewal import start_nursery

        try:
            made = start_nursery(self._boot.chain.descriptor.code_digest)
        except (Error, OSError) as exc:
            self._log("error", f"the nursery of fs servers was killed, and no other starts: {exc}")
            return None
        self._log("notice", "the nursery of fs servers was killed: another one was started")
        group = self._sandbox.open_server_group()
        try:
            made[0].send({"op": "join"}, tuple(group))
        finally:
            close_all(group)
        return made

    def _tell(self, record: dict[str, Value], fds: tuple[int, ...] = ()) -> None:
        # What was refused before comes before: a program's end is told after its refusals.
        self._notifications.flush()
        self._send(record, fds)

    def _send(self, record: dict[str, Value], fds: tuple[int, ...] = ()) -> None:
        try:
            self._channel.send(record, fds)
        except OSError:
            pass  # the caller is gone: _readable hears it and takes the instance down

    def _log(self, level: str, line: str) -> None:
        if self._boot is not None and not self._boot.may_log(level):
            return
        # Whoever does not read must not hold up calls: it may be a pipe that a program has filled.
        if not self._channel.has_room(0 if self._lost_lines else _READ_PATIENCE_S):
            self._lost_lines += 1
            return
        if self._lost_lines:
            lost = f"{self._lost_lines} lines are lost: they were not read in time"
            self._lost_lines = 0
            self._send({"op": "log", "level": "error", "line": lost})
        self._send({"op": "log", "level": level, "line": line})

    def _on_fuse(self, index: int, fd: int, device: int) -> None:
        boot = self._boot
        server = None if boot is None else boot.servers.get(index)
        if server is None:
            os.close(fd)
            return
        is_root = server in (self._init_server, self._root_server)
        server.serve(fd, self._sandbox.pid_namespace, is_root=is_root)
        _raise_read_ahead(device)

    def _new_mount_server(self, name: str) -> FsServer:
        """Start the fs server of a program's mount, which may end long before the instance."""
        server = self._new_server(name)
        for fd in self._lock_fds:
            server.hold(fd)

        def ended() -> None:
            # One with a problem stays, so that sync(2) and the end of the instance tell of it.
            if not server.closed.result():
                self._all_servers.remove(server)

        server.closed.when_done(ended)
        return server

    def _begun_boot(self) -> Boot:
        if self._boot is None:
            raise CallError(errno.EPERM, "rootfs: nothing is booted yet")
        return self._boot

    def _look_at_root(self, _memory: Memory, _arguments: tuple[int, ...]) -> None:
        """Refuse at once what comes too late: the arguments are read in ``mount_root``."""
        self._begun_boot().check_mount_root()

    async def _mount_root(self, caller: Caller) -> None:
        await self._begun_boot().mount_root(caller)
        self._mounts.forget_all()

    async def _sync(self) -> None:
        """Make everything durable, as sync(2) and syncfs(2) promise inside."""
        try:
            await self._sandbox.write_back()
        except OSError as exc:
            raise CallError(exc.errno or 5) from None
        worst = 0
        for server in list(self._all_servers):
            worst = await server.sync() or worst
        if worst:
            raise CallError(worst)

    # The control channel --------------------------------------------------------------------

    def _take_lock(self, fds: list[int]) -> None:
        """Keep the instance's lock until we end, or the root FS is closed if we are killed."""
        self._lock_fds = fds
        for fd in fds:
            self._root_server.hold(fd)

    def leave(self) -> None:
        """Every process of the instance has ended, or is about to."""
        self._sandbox.remove_group()

    def _readable(self) -> None:
        message = self._channel.receive()
        if message is None:
            self._loop.unwatch(self._channel.fileno())
            self._is_unwanted = True
            self._start_down(_TERM_PATIENCE_S)
            return
        record, fds = message
        match record.get("op"):
            case "boot" if len(fds) >= 4 and self._boot is None:
                if record.get("key_follows") is True:
                    record["image_key"] = take_key(fds.pop())
                self._take_lock(fds[4:])
                self._loop.start(self._run_boot(record, (fds[0], fds[1], fds[2]), fds[3]))
            case "spawn" if len(fds) == 3:
                self._loop.start(self._run_spawn(record, (fds[0], fds[1], fds[2])))
            case "terminal":
                close_all(fds)
                self._loop.start(self._run_terminal(number(record, "id")))
            case "kill":
                close_all(fds)
                self._kill(record)
            case "pass_on":
                close_all(fds)
                self._pass_on(record)
            case "destroy":
                close_all(fds)
                self._is_unwanted = True
                self._start_down(number(record, "patience_ms") / 1000)
            case other:
                close_all(fds)
                raise FormatError(f"the kernel process does not know {other!r}")

    async def _run_boot(
        self, record: dict[str, Value], stdio: tuple[int, int, int], instance: int
    ) -> None:
        try:
            request = BootRequest.parse(record)
            check_streams(stdio)
            self._jobs.begin(stdio, lends=request.lends_terminal, stands=request.stands_for_program)
            self._boot = Boot(
                Parts(
                    self._loop,
                    self._sandbox,
                    self._init_server,
                    self._root_server,
                    self._new_server,
                    self._group_servers,
                    self._log,
                ),
                request,
                stdio,
                # Open from before any program runs until we end: nothing is looked up again.
                Ground(DirFd(instance, request.instance)),
            )
            await self._boot.run()
        except Error as exc:
            # Where it was ended on purpose, what failed under it is a consequence of that.
            error = Error("the boot was ended", stage="boot") if self._is_unwanted else exc
            self._tell({"op": "failed", **error.as_dict()})
            self._start_down(0)
        except Exception as exc:
            short = shortage_of(exc)
            if short is None:
                self._report_defect(exc)
            else:
                self._tell({"op": "failed", **short.as_dict()})
            self._start_down(0)
        else:
            self._is_booted = True
            lines: list[Value] = [list(line) for line in measured_lines(self._boot.chain)]
            names = list(self._boot.chain.config.env_untrusted)
            self._tell({"op": "booted", "measured": lines, "untrusted": names})
        finally:
            close_all(stdio)

    def _report_defect(self, exc: BaseException) -> None:
        lines = "".join(traceback.format_exception(exc)).rstrip()
        self._tell({"op": "defect", "trace": lines})

    async def _run_spawn(self, record: dict[str, Value], stdio: tuple[int, int, int]) -> None:
        serial = number(record, "id")
        try:
            program = await self._spawn(record, stdio)
        except Error as exc:
            self._tell({"op": "refused", "id": serial, **exc.as_dict()})
            return
        except Exception as exc:
            short = shortage_of(exc)
            if short is not None:
                self._tell({"op": "refused", "id": serial, **short.as_dict()})
                return
            self._report_defect(exc)
            self._start_down(0)
            return
        finally:
            close_all(stdio)
        self._programs[serial] = program
        self._tell({"op": "spawned", "id": serial})
        self._jobs.started(program)
        status = await program.ended
        self._programs.pop(serial, None)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            self._explain_kill()
        was_told = os.WIFSIGNALED(status) and os.WTERMSIG(status) in program.sent
        self._tell({"op": "exited", "id": serial, "status": status, "was_told": was_told})

    def _on_stop(self, program: Program, number: int, lent: int) -> None:
        if not program.own_session:
            self._jobs.stopped(program, number, lent)
        if not program.is_followed:
            return
        for serial, known in self._programs.items():
            if known is program:
                self._tell({"op": "stopped", "id": serial, "signal": number})

    def _explain_kill(self) -> None:
        """Say so if the memory limit may have been what killed a program."""
        try:
            kills = self._sandbox.memory_kills()
        except OSError:
            return  # the group is gone already: there is nothing to be said about it
        if kills > self._memory_kills:
            self._memory_kills = kills
            self._log(
                "notice",
                "the memory limit (resource_limits.user_space_max_size) was reached, and the "
                "kernel killed a process inside",
            )

    async def _run_terminal(self, serial: int) -> None:
        try:
            if self._boot is None or self._is_going_down:
                raise _not_running()
            master = await self._sandbox.open_terminal()
        except Error as exc:
            self._tell({"op": "refused", "id": serial, **exc.as_dict()})
            return
        try:
            self._tell({"op": "terminal", "id": serial}, (master,))
        finally:
            os.close(master)

    async def _spawn(self, record: dict[str, Value], stdio: tuple[int, int, int]) -> Program:
        if self._boot is None or self._is_going_down:
            raise _not_running()
        check_streams(stdio)
        own_session = record.get("own_session") is True
        path = raw(record, "path")
        check_entry_point(os.fsdecode(path), self._boot.entry_points)
        # A terminal is lent for as long as the instance lives: to a program of ours in the
        # foreground, not to one of many.
        self._streams.admit(stdio, lend=not own_session)
        return await self._sandbox.spawn(
            SpawnRequest(
                path=path,
                cwd=raw(record, "cwd"),
                argv=byte_strings(record, "argv"),
                env=self._boot.environment_for(byte_strings(record, "env")),
                umask=number(record, "umask"),
                fds=stdio,
                own_session=own_session,
                terminal=number(record, "terminal"),
            )
        )

    def _kill(self, record: dict[str, Value]) -> None:
        which = number(record, "id")
        sent = number(record, "signal")
        if which == 0:
            self._sandbox.kill(sent)
        elif which in self._programs:
            group = record.get("group") is True
            self._sandbox.kill(sent, self._programs[which], group=group)

    def _pass_on(self, record: dict[str, Value]) -> None:
        """Signal a program as the caller, who stands for it, was: alone, or its whole group."""
        sent = number(record, "signal")
        is_for_all = self._jobs.has_reached_us(sent, number(record, "sender"))
        program = self._programs.get(number(record, "id"))
        if sent == signal.SIGCONT:
            if not is_for_all:
                self._jobs.resume()
        elif program is not None:
            if sent in KEYBOARD:
                program.sent.add(sent)
            self._sandbox.kill(sent, program, group=is_for_all)
        elif sent == signal.SIGTSTP:
            self._jobs.stop_caller(sent)
        elif sent in KEYBOARD and not is_for_all:  # else the programs had it when there were any
            self._jobs.unheard = sent

    # Going down -----------------------------------------------------------------------------

    def _start_down(self, patience_s: float) -> None:
        # Whoever asks for the second time may have less patience, never more.
        self._last_moment = min(self._last_moment, time.monotonic() + patience_s)
        if not self._is_going_down:
            self._is_going_down = True
            self._loop.start(self._go_down(patience_s))

    def _on_gone(self) -> None:
        self._start_down(0)

    async def _ask_to_end(self) -> None:
        """Let every process inside end by itself, those too that programs left behind."""
        self._sandbox.kill(signal.SIGTERM)
        self._sandbox.kill(signal.SIGCONT)  # one that is stopped hears nothing else
        while not await self._sandbox.is_empty() and time.monotonic() < self._last_moment:
            await self._loop.sleep(_LOOK_EVERY_S)

    async def _go_down(self, patience_s: float) -> None:
        """Ask programs to end, end the sandbox, wait until every volume is durable."""
        problems: list[Value] = []
        try:
            if patience_s > 0 and self._is_booted and not self._sandbox.is_gone:
                await self._ask_to_end()
            self._sandbox.end()
            if not await self._loop.first(self._sandbox.gone, timeout_s=_QUIET_S):
                self._log("notice", "waiting for the last process inside: an fs server is silent")
                await self._sandbox.gone
            self._jobs.end()
            self._mounts.end()
            self._streams.take_back()
            for server in list(self._all_servers):
                if not server.is_serving:
                    server.dismiss()
            for server in list(self._all_servers):
                if not await self._has_closed(server):
                    problems.append(f"{server.name}: did not close in time")
                elif server.closed.result():
                    problems.append(f"{server.name}: {server.closed.result()}")
            if self._boot is not None:
                self._boot.chain.down()
        except Exception as exc:
            self._report_defect(exc)
        self._tell({"op": "down", "problems": problems, "unheard": self._jobs.unheard})
        self._loop.stop()

    async def _has_closed(self, server: FsServer) -> bool:
        """Wait for an fs server; tell the operator if it takes long."""
        if await self._loop.first(server.closed, timeout_s=_QUIET_S):
            return True
        self._log("notice", f"{server.name}: waiting for its fs server to make everything durable")
        return await self._loop.first(server.closed, timeout_s=_CLOSE_PATIENCE_S)


def _not_running() -> Error:
    return Error("the instance is not running", stage="app")


def _raise_read_ahead(device: int) -> None:
    """Let the kernel read ahead 1 MiB on a mount of ours; only host root may."""
    if device == 0 or os.geteuid() != 0:
        return
    path = f"/sys/class/bdi/{device >> 20}:{device & 0xFFFFF}/read_ahead_kb"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return  # no sysfs here: a matter of speed only
    try:
        os.write(fd, b"1024")
    finally:
        os.close(fd)


def run(channel: Channel, early: Early | EnvironmentRefused) -> NoReturn:
    """Be the kernel process, with what was started early, to its end."""
    loop = Loop()
    try:
        if isinstance(early, EnvironmentRefused):
            raise early
        kernel = Kernel(loop, channel, early)
        loop.run()
        early.nursery.close()
        kernel.leave()
    except Error as exc:
        channel.send({"op": "failed", **exc.as_dict()})
    except Exception as exc:
        short = shortage_of(exc)
        if short is not None:
            channel.send({"op": "failed", **short.as_dict()})
            os._exit(1)
        trace = "".join(traceback.format_exception(exc)).rstrip()
        channel.send({"op": "defect", "trace": trace})
        raise
    # Everything that matters is closed; taking the interpreter apart would only cost time.
    os._exit(0)
