# SPDX-License-Identifier: Apache-2.0
"""The process that owns a running instance and serves its clients.

Above: ``starter`` (executes it), ``cli.start`` (is it, in the foreground). Below: ``pal``,
``connections``, ``place``.

One thread runs the loop; a second one boots, since that waits; a third waits for signals. From the
moment the instance has booted only the loop speaks with the kernel process.

It ends when it is told to (``stop``, SIGTERM, SIGINT, SIGHUP), when the instance ends by itself,
and, before the instance is ready, when its starter goes away.

Security: it is not dumpable, and never has the image key in its memory: it hands the pipe on that
the kernel process reads it from. Programs get what ``libos`` gives them; nothing of the server is
open in them.
"""

from __future__ import annotations

import _thread
import os
import resource
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from serdab import pal
from serdab.errors import BusyError, Error, InternalError
from serdab.libos.begin import Begun
from serdab.libos.channel import Channel, close_all
from serdab.libos.loop import Loop
from serdab.libos.messages import Value
from serdab.service import place
from serdab.service.connections import Connection
from serdab.service.protocol import RUNNING, STARTING, STOPPING, StartRequest

if TYPE_CHECKING:
    from socket import socket

#: How long programs are asked to end when the one who ends the service says nothing about it.
PATIENCE_S: Final = 10.0
_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
_SPARE_FDS: Final = 64


class Reporter:
    """Whom a service tells how it fares. All calls but the first come from the loop's thread.

    ``log_path`` is the file that has the log; empty where it is standard error.
    """

    log_path = ""

    def claimed(self) -> None:
        """Tell that the instance is ours, before its boot; from the boot's thread."""

    def log(self, level: str, line: str) -> None:
        """Tell the operator a line."""

    def ready(self) -> None:
        """Tell that the instance has booted."""

    def failed(self, error: Error | InternalError) -> None:
        """Tell that it never will."""

    def stopping(self) -> None:
        """Tell that it is on its way down."""


class Server:
    """One service, from before its boot to its end."""

    def __init__(
        self, request: StartRequest, stdio: tuple[int, int, int], out: Reporter, *, key_fd: int
    ) -> None:
        self._request = request
        self._key_fd = key_fd
        self._stdio = stdio
        self._out = out
        self.loop = Loop()
        self.place = place.Place.of(request.instance)
        self.state = STARTING
        self.since_ms = int(time.time() * 1000)
        self._pal: pal.Pal | None = None
        self._claim: place.Claim | None = None
        self._kernel: Channel | None = None
        self._problems: list[str] = []
        self._has_failed = False
        self._is_ending = False
        #: The signal that ended it, 0 for none.
        self.ended_by = 0
        self._next = 0
        self._waiting: dict[int, Connection] = {}
        self.connections: set[Connection] = set()
        self._most = 0

    # Boot -----------------------------------------------------------------------------------

    def run(self) -> bool:
        """Boot, serve, go down; return whether everything went as it should."""
        begun = Begun()
        self._most = _raise_descriptors() - _SPARE_FDS
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        _thread.start_new_thread(self._wait_for_signals, ())
        _thread.start_new_thread(self._boot, (begun,))
        self.loop.run()
        return not self._has_failed

    def _wait_for_signals(self) -> None:
        while True:
            number = signal.sigwait(_ENDING)
            self.loop.call_from_thread(partial(self._hear_signal, number))

    def _hear_signal(self, number: int) -> None:
        self.ended_by = self.ended_by or number
        self.stop(PATIENCE_S)

    def _boot(self, begun: Begun) -> None:
        request = self._request
        try:
            booted = pal.init(
                request.instance,
                image_key_fd=self._key_fd,
                private=request.private,
                expect_signer=request.expect_signer,
                expect_root=request.expect_root,
                freshness=request.freshness,
                previous=request.previous,
                log=self._log_from_thread,
                stdio=self._stdio,
                env=_mapping(request.environment),
                on_started=self._is_locked,
                is_wanted=lambda: not self._is_ending,
                begun=begun,
                lends_terminal=False,
            )
        except Error as exc:
            error: Error | InternalError = exc
        except Exception as exc:
            error = exc if isinstance(exc, InternalError) else InternalError(_trace(exc))
        else:
            self.loop.call_from_thread(lambda: self._booted(booted))
            return
        self.loop.call_from_thread(lambda: self._not_booted(error))

    def _log_from_thread(self, level: str, line: str) -> None:
        self.loop.call_from_thread(lambda: self._out.log(level, line))

    def _is_locked(self, started: pal.Pal) -> None:
        """Claim the socket: in the boot's thread, holding the lock of the instance."""
        self._claim = place.claim(self.place)
        self._out.claimed()
        self._pal = started
        if self._is_ending:
            raise Error("the boot was ended", stage="boot")
        listener = self._claim.listener
        self.loop.call_from_thread(lambda: self._listen(listener))

    def _not_booted(self, error: Error | InternalError) -> None:
        self._has_failed = True
        self._forget_boot()
        self._out.failed(error)
        self._leave()

    def _booted(self, booted: pal.Pal) -> None:
        self._pal = booted
        self._forget_boot()
        kernel = self._kernel = booted.hand_over()
        self.loop.watch(kernel.fileno(), lambda: self._hear_kernel(kernel, booted))
        if self._is_ending:
            self.stop(0)
            return
        self.state = RUNNING
        self.since_ms = int(time.time() * 1000)
        self._out.ready()

    def _forget_boot(self) -> None:
        close_all([fd for fd in (*self._stdio, self._key_fd) if fd > 2])
        self._stdio = (0, 1, 2)
        self._key_fd = -1

    # The kernel process ---------------------------------------------------------------------

    def ask_kernel(
        self, record: dict[str, Value], of: Connection, fds: tuple[int, ...] = ()
    ) -> int:
        """Send a request whose answers are for a connection; return its number."""
        self._next += 1
        self._waiting[self._next] = of
        self._tell_kernel({**record, "id": self._next}, fds)
        return self._next

    def signal_program(self, number: int, sent: int, *, group: bool) -> None:
        """Send a program, or its process group, a signal."""
        self._tell_kernel({"op": "kill", "id": number, "signal": sent, "group": group})

    def _tell_kernel(self, record: dict[str, Value], fds: tuple[int, ...] = ()) -> None:
        if self._kernel is None:
            return
        try:
            self._kernel.send(record, fds)
        except OSError:
            pass  # it is gone: _hear_kernel hears it

    def _hear_kernel(self, kernel: Channel, booted: pal.Pal) -> None:
        message = kernel.receive()
        if message is None:
            self._down(kernel, booted)
            return
        record, fds = message
        match record.get("op"):
            case "log":
                self._out.log(str(record.get("level")), str(record.get("line")))
            case "defect":
                self._problems.append(str(record.get("trace")))
            case "down":
                problems = record.get("problems")
                self._problems += map(str, problems if isinstance(problems, list) else ())
            case op:
                number = record.get("id")
                waiting = self._waiting.get(number) if isinstance(number, int) else None
                if op in ("refused", "terminal", "exited") and isinstance(number, int):
                    self._waiting.pop(number, None)
                if waiting is not None:
                    waiting.hear_kernel(record, tuple(fds))
        close_all(fds)

    # Clients --------------------------------------------------------------------------------

    def _listen(self, listener: socket) -> None:
        self.loop.watch(listener.fileno(), lambda: self._accept(listener))

    def _accept(self, listener: socket) -> None:
        try:
            end, _ = listener.accept()
        except OSError:
            return  # whoever it was went away
        pid, uid = place.peer_of(end)
        if uid != os.geteuid():
            self._out.log("warning", f"refused process {pid} of uid {uid}")
            end.close()
            return
        if len(self.connections) >= self._most:
            self._out.log("warning", f"refused process {pid}: {self._most} clients are the most")
            full = BusyError(
                "the service has no room for another client",
                expected=f"at most {self._most}",
                found="as many",
                hint="the limit of descriptors (ulimit -n) when the service is started is theirs",
            )
            self._dismiss(Channel(end), full)
            return
        end.setblocking(False)
        names = () if self._pal is None else self._pal.untrusted_names
        connection = Connection(self, Channel(end), pid)
        self.connections.add(connection)
        connection.greet(names)

    @staticmethod
    def _dismiss(channel: Channel, error: Error) -> None:
        try:
            channel.send({"op": "refused", **error.as_dict()})
        except OSError:
            pass  # it did not wait for that
        channel.close()

    def status(self) -> dict[str, Value]:
        """Return what ``status`` shows."""
        measured = () if self._pal is None else self._pal.measured
        return {
            "op": "status",
            "state": self.state,
            "pid": os.getpid(),
            "since_ms": self.since_ms,
            "log": self._out.log_path,
            "measured": [[item.stage, item.subject, item.digest] for item in measured],
            "programs": [
                program
                for connection in self.connections
                if (program := connection.program()) is not None
            ],
        }

    # The end --------------------------------------------------------------------------------

    def stop(self, patience_s: float) -> None:
        """Go down: ask programs to end, kill them after a while, make everything durable."""
        if not self._is_ending:
            self._is_ending = True
            self._out.stopping()
        if self._kernel is None:
            if self._pal is not None:
                self._pal.abort()
            return
        self.state = STOPPING
        if self._pal is not None:
            self._pal.end_use()
        self._tell_kernel({"op": "destroy", "patience_ms": int(patience_s * 1000)})

    def _down(self, kernel: Channel, booted: pal.Pal) -> None:
        """The kernel process has ended: so has the instance."""
        self.loop.unwatch(kernel.fileno())
        self._kernel = None
        booted.ended()
        if not self._is_ending:
            self._problems.append("the kernel process ended unexpectedly")
        for problem in self._problems:
            for line in problem.splitlines():  # a defect comes with its traceback
                self._out.log("error", line)
        self._has_failed = bool(self._problems)
        self._leave()

    def _leave(self) -> None:
        if self._claim is not None:
            self.loop.unwatch(self._claim.listener.fileno())
            self._claim.release()
        for connection in list(self.connections):
            connection.end(self._problems)
        self.loop.stop()


def _mapping(items: tuple[bytes, ...]) -> dict[str, str]:
    pairs = (item.partition(b"=") for item in items)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def _trace(exc: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(exc)).rstrip()


def _raise_descriptors() -> int:
    """Allow us as many descriptors as we may have; programs keep the limit that was there.

    After the kernel process was started, which is the ancestor of programs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(wanted, soft)


def default_signals() -> None:
    """Give signals their default meaning: a program must not inherit what our parent ignored."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is signal.SIG_IGN and number not in (
            signal.SIGPIPE,
            signal.SIGXFSZ,
        ):
            signal.signal(number, signal.SIG_DFL)
