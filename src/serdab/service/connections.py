# SPDX-License-Identifier: Apache-2.0
"""One client of a service: what it may say in which state, and what becomes of its program.

Above: ``server``. Below: ``protocol``. A connection is good for one program, or one question. What
a client says is checked here although it is our own user's: a broken one is dropped, and changes
nothing for the others.

A client that goes away, killed perhaps, hangs up on its program: SIGHUP to the program's process
group, and SIGKILL after a while for one that does not care. Whoever wants a program to outlive
its client starts it inside in the background.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Final, Protocol

from serdab.errors import Error, FormatError
from serdab.libos.caller import spawn_record
from serdab.libos.channel import Channel, close_all
from serdab.libos.fields import number
from serdab.libos.messages import Value
from serdab.service.protocol import RUNNING, ExecRequest, Hello

if TYPE_CHECKING:
    from serdab.libos.loop import Loop, Timer

_HANG_UP_PATIENCE_S: Final = 5.0
_MAX_PATIENCE_MS: Final = 24 * 3600 * 1000


class Service(Protocol):
    """What a connection needs of the service it belongs to: see ``server.Server``."""

    loop: Loop
    state: str
    connections: set[Connection]

    def ask_kernel(
        self, record: dict[str, Value], of: Connection, fds: tuple[int, ...] = ()
    ) -> int: ...

    def signal_program(self, number: int, sent: int, *, group: bool) -> None: ...

    def status(self) -> dict[str, Value]: ...

    def stop(self, patience_s: float) -> None: ...


class Connection:
    """See the module."""

    def __init__(self, service: Service, channel: Channel, pid: int) -> None:
        self._service = service
        self._channel = channel
        self._pid = pid
        self._asked = 0  # the number of the request for a terminal or a program
        self._request: ExecRequest | None = None
        self._since_ms = 0
        self._is_running = False
        self._is_gone = False
        self._wants_down = False
        self._killer: Timer | None = None
        service.loop.watch(channel.fileno(), self._readable)

    def greet(self, names: tuple[str, ...]) -> None:
        """Say hello; ``names`` are those that the environment may bring."""
        self.tell(Hello(self._service.state, os.getpid(), names).dump())

    def program(self) -> dict[str, Value] | None:
        """Return what ``status`` shows of its program, if it runs one."""
        if self._request is None or not self._is_running:
            return None
        return {
            "path": self._request.argv[0],
            "client": 0 if self._is_gone else self._pid,
            "since_ms": self._since_ms,
            "terminal": self._request.terminal >= 0,
        }

    def tell(self, record: dict[str, Value], fds: tuple[int, ...] = ()) -> None:
        """Send a record; a client that does not read is dropped, and must not stop the others."""
        if self._is_gone:
            return
        try:
            self._channel.send(record, fds)
        except OSError:
            self._gone()

    def end(self, problems: list[str]) -> None:
        """Say goodbye: the instance is down."""
        if self._wants_down:
            self.tell({"op": "down", "problems": list(problems)})
        if not self._is_gone:
            self._service.loop.unwatch(self._channel.fileno())
            self._channel.close()

    # What the client says ---------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            message = self._channel.receive()
        except BlockingIOError:
            return
        except (FormatError, OSError):
            message = None
        if message is None:
            self._gone()
            return
        record, fds = message
        try:
            self._obey(record, tuple(fds))
        except FormatError:
            self._gone()
        except Error as exc:
            self.tell({"op": "refused", **exc.as_dict()})
        finally:
            close_all(fds)

    def _obey(self, record: dict[str, Value], fds: tuple[int, ...]) -> None:
        match record.get("op"):
            case "terminal" if not self._asked:
                self._check_running()
                self._asked = self._service.ask_kernel({"op": "terminal"}, self)
            case "exec" if len(fds) == 3 and self._request is None:
                self._check_running()
                self._start(ExecRequest.parse(record), fds)
            case "signal" if self._is_running:
                sent = number(record, "signal")
                if sent not in signal.valid_signals():
                    raise FormatError("no such signal")
                self._service.signal_program(self._asked, sent, group=record.get("group") is True)
            case "signal":
                pass  # it has ended meanwhile
            case "status":
                self.tell(self._service.status())
            case "stop":
                self._wants_down = True
                patience_ms = min(max(number(record, "patience_ms"), 0), _MAX_PATIENCE_MS)
                self._service.stop(patience_ms / 1000)
            case _:
                raise FormatError("a client said what it may not say now")

    def _check_running(self) -> None:
        if self._service.state != RUNNING:
            raise Error(
                "the service takes no programs now",
                stage="exec",
                expected=RUNNING,
                found=self._service.state,
                hint="`serdab start` returns when it does",
            )

    def _start(self, request: ExecRequest, fds: tuple[int, ...]) -> None:
        record = spawn_record(
            0,
            [os.fsdecode(item) for item in request.argv],
            request.environment,
            cwd="/",
            umask=request.umask,
            own_session=True,
            terminal=request.terminal,
        )
        self._request = request
        self._asked = self._service.ask_kernel(record, self, fds)

    # What the kernel process says ------------------------------------------------------------

    def hear_kernel(self, record: dict[str, Value], fds: tuple[int, ...]) -> None:
        """Pass on what is said about our terminal or our program."""
        match record.get("op"):
            case "terminal":
                self._asked = 0
                self.tell({"op": "terminal"}, fds)
                self._forget()
            case "spawned":
                self._is_running = True
                self._since_ms = int(time.time() * 1000)
                self.tell({"op": "started"})
                if self._is_gone:
                    self._hang_up()
            case "refused":
                self.tell({**record, "op": "refused"})
                self._forget()
            case "stopped":
                self.tell({"op": "stopped", "signal": record.get("signal")})
            case "exited":
                self._is_running = False
                self.tell({"op": "exited", "status": record.get("status")})
                self._forget()

    def _forget(self) -> None:
        if self._killer is not None:
            self._killer.cancel()
        if self._is_gone:
            self._service.connections.discard(self)

    # The client goes away --------------------------------------------------------------------

    def _gone(self) -> None:
        if self._is_gone:
            return
        self._is_gone = True
        self._service.loop.unwatch(self._channel.fileno())
        self._channel.close()
        if self._is_running:
            self._hang_up()
        elif not self._asked:
            self._service.connections.discard(self)

    def _hang_up(self) -> None:
        for sent in (signal.SIGHUP, signal.SIGCONT):
            self._service.signal_program(self._asked, sent, group=True)
        self._killer = self._service.loop.call_later(
            _HANG_UP_PATIENCE_S,
            lambda: self._service.signal_program(self._asked, signal.SIGKILL, group=True),
        )
