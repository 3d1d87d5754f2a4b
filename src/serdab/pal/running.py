# SPDX-License-Identifier: Apache-2.0
"""A running instance, from the message that boots it to its end.

Above: ``booting`` (makes one), ``foreground``, ``service.server``. Below: ``libos.channel``: what
is said here, ``libos.kernel`` hears.

Threads: any. Whichever thread waits for an answer reads for all that wait.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from serdab.errors import Error, InternalError, from_dict
from serdab.libos.begin import Begun
from serdab.libos.bytecode import forget_byte_code
from serdab.libos.caller import current_umask, open_descriptors, spawn_record
from serdab.libos.channel import Channel, close_all
from serdab.libos.messages import Value
from serdab.structs import frozen

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final, Self

_DOWN_PATIENCE_S: Final = 5.0


@frozen
class ExitStatus:
    """How a program ended: ``code``, or ``signal`` if one killed it."""

    code: int | None = None
    signal: int | None = None

    @property
    def shell(self) -> int:
        """The status as a shell shows it: 128 plus the signal's number."""
        return 128 + self.signal if self.signal is not None else self.code or 0

    @classmethod
    def of_wait_status(cls, status: int) -> ExitStatus:
        """Return what wait(2) reported as a value."""
        code = os.waitstatus_to_exitcode(status)
        return cls(signal=-code) if code < 0 else cls(code=code)


@frozen
class Measured:
    """One thing that the boot measured and accepted."""

    stage: str
    subject: str
    digest: str


class Process:
    """A program that was started; exec has succeeded."""

    def __init__(self, pal: Pal, number: int) -> None:
        self._pal = pal
        self.number = number

    def wait(self) -> ExitStatus:
        """Wait until it ends.

        Raises:
            Error: the instance ended without telling how.
        """
        return self._pal._wait(self.number)  # the two are one unit

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Send it a signal; one that has ended is not an error."""
        self._pal.kill(self, signal_number)


class Pal:
    """A running instance. Made by :func:`init`."""

    def __init__(self, begun: Begun, log: Callable[[str, str], None], use_fd: int) -> None:
        self._begun = begun
        self._channel = Channel(begun.end)
        self._use_fd = use_fd  # as long as it is open, the next user is refused instead of waiting
        self._log = log
        self._condition = threading.Condition()
        self._is_reading = False
        self._next = 1
        self._answers: dict[int, Error | None] = {}
        self._statuses: dict[int, int] = {}
        self._told: set[int] = set()
        self._boot_answer: Error | None = None
        self._is_booted = False
        self._is_down = False
        self._is_destroyed = False
        self._problems: list[str] = []
        self._defect = ""
        self.measured: tuple[Measured, ...] = ()
        #: The names of the environment that the measured configuration lets callers set.
        self.untrusted_names: tuple[str, ...] = ()
        #: The number of a terminal's signal that came when there was no program any more, or 0.
        self.unheard = 0

    # Messages -------------------------------------------------------------------------------

    def _take(self, record: dict[str, Value]) -> None:
        number = record.get("id")
        match record.get("op"):
            case "log":
                self._log(str(record.get("level")), str(record.get("line")))
            case "booted":
                lines = record.get("measured")
                if isinstance(lines, list):
                    self.measured = tuple(Measured(*map(str, line)) for line in lines)
                names = record.get("untrusted")
                if isinstance(names, list):
                    self.untrusted_names = tuple(map(str, names))
                self._is_booted = True
            case "failed":
                self._boot_answer = from_dict(record)
            case "defect":
                self._defect = str(record.get("trace"))
            case "spawned" if isinstance(number, int):
                self._answers[number] = None
            case "refused" if isinstance(number, int):
                self._answers[number] = from_dict(record)
            case "exited" if isinstance(number, int):
                status = record.get("status")
                if record.get("was_told") is True:
                    self._told.add(number)
                self._statuses[number] = status if isinstance(status, int) else 0
            case "down":
                problems = record.get("problems")
                if isinstance(problems, list):
                    self._problems = [str(problem) for problem in problems]
                unheard = record.get("unheard")
                self.unheard = unheard if isinstance(unheard, int) else 0

    def _wait_until(self, is_there: Callable[[], bool]) -> None:
        """Read messages until ``is_there``; whichever thread waits reads for all."""
        while True:
            with self._condition:
                while self._is_reading and not is_there():
                    self._condition.wait()
                if is_there():
                    return
                self._is_reading = True
            try:
                message = None if self._is_down else self._channel.receive()
                with self._condition:
                    if message is None:
                        self._ended()
                    else:
                        record, fds = message
                        close_all(fds)
                        self._take(record)
            finally:
                with self._condition:
                    self._is_reading = False
                    self._condition.notify_all()
            if self._is_down and not is_there():
                raise self._unexpected_end()

    def _ended(self) -> None:
        if not self._is_down:
            self._is_down = True
            self.end_use()
            self._begun.wait()

    def end_use(self) -> None:
        """Let the next user of the instance wait for its end, instead of being refused."""
        if self._use_fd >= 0:
            os.close(self._use_fd)
            self._use_fd = -1

    def _unexpected_end(self) -> Exception:
        if self._defect:
            return InternalError(self._defect)
        if self._is_destroyed:
            return Error(
                "the instance is no more",
                stage="down",
                subject="instance",
                expected="one that runs",
                found="one that was destroyed",
                hint="boot it again",
            )
        return Error(
            "the kernel process ended unexpectedly",
            stage="down",
            subject="kernel process",
            hint="it may have been killed; what was synced is safe",
        )

    def _send(self, record: dict[str, Value], fds: tuple[int, ...] = ()) -> None:
        try:
            self._channel.send(record, fds)
        except OSError:
            pass  # it is gone; whoever waits for its answer hears so

    # The API --------------------------------------------------------------------------------

    def boot(self, request: dict[str, Value], fds: tuple[int, ...]) -> None:
        """Ask the kernel process to boot, and wait until it has; :func:`init` does.

        Raises:
            Error: refused.
        """
        try:
            self._boot(request, fds)
        except (Error, InternalError) as exc:
            if type(exc) in (Error, InternalError):
                # Nobody refused: a process of ours failed, perhaps by a module that was cut short.
                forget_byte_code()
            raise

    def _boot(self, request: dict[str, Value], fds: tuple[int, ...]) -> None:
        self._send(request, fds)
        self._wait_until(
            lambda: self._is_booted or self._boot_answer is not None or bool(self._defect)
        )
        if self._boot_answer is not None:
            raise self._boot_answer
        if self._defect:
            raise InternalError(self._defect)

    def create_process(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: int = 0,
        stdout: int = 1,
        stderr: int = 2,
    ) -> Process:
        """Start a program; ``argv[0]`` is its absolute path inside.

        ``env`` (default: this process's) passes what the configuration lets through. The three
        descriptors stay the caller's.

        Raises:
            UsageError: the path is not absolute or has a ``..``.
            NotAllowedError: not an entry point, or not executable.
            NotFoundError: no such program.
        """
        items = os.environ if env is None else env
        environment = [os.fsencode(f"{name}={value}") for name, value in items.items()]
        with self._condition:
            number = self._next
            self._next += 1
        request = spawn_record(number, argv, environment, cwd=cwd, umask=current_umask())
        descriptors = open_descriptors((stdin, stdout, stderr))
        try:
            self._send(request, descriptors.fds)
        finally:
            descriptors.close()
        self._wait_until(lambda: number in self._answers)
        error = self._answers.pop(number)
        if error is not None:
            raise error
        return Process(self, number)

    def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: int = 0,
        stdout: int = 1,
        stderr: int = 2,
    ) -> ExitStatus:
        """Start a program and wait until it ends; see :meth:`create_process`."""
        process = self.create_process(
            argv, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr
        )
        return process.wait()

    def _wait(self, number: int) -> ExitStatus:
        self._wait_until(lambda: number in self._statuses)
        return ExitStatus.of_wait_status(self._statuses[number])

    def kill(self, process: Process | None = None, signal_number: int = signal.SIGKILL) -> None:
        """Signal one program, or every process inside."""
        number = 0 if process is None else process.number
        self._send({"op": "kill", "id": number, "signal": int(signal_number)})

    def pass_on(self, process: Process | None, signal_number: int, sender: int) -> None:
        """Let a program have the signal that ``sender`` sent to us, who stand for it."""
        number = 0 if process is None else process.number
        self._send({"op": "pass_on", "id": number, "signal": signal_number, "sender": sender})

    def was_told(self, process: Process) -> bool:
        """Return whether the signal that killed a program came by us: a terminal's, or by hand."""
        return process.number in self._told

    def destroy(self, *, patience_s: float = _DOWN_PATIENCE_S) -> None:
        """End every program (TERM, then KILL), make everything durable, unmount.

        Returns when the kernel process and its fs servers are done. A second time it does nothing.

        Raises:
            Error: a volume could not be closed as it should.
        """
        if self._is_destroyed:
            return
        self._is_destroyed = True
        self.end_use()
        self._send({"op": "destroy", "patience_ms": int(patience_s * 1000)})
        try:
            self._wait_until(lambda: self._is_down)
        finally:
            self._channel.close()
        if self._defect:
            raise InternalError(self._defect)
        if self._problems:
            raise Error(
                "the instance did not close as it should",
                stage="down",
                found="; ".join(self._problems),
            )

    def hand_over(self) -> Channel:
        """Return the control channel; from here on only the caller reads it.

        For ``service.server``, which serves many and waits for none. At the channel's end it calls
        :meth:`ended`.
        """
        return self._channel

    def ended(self) -> None:
        """Wait for the processes whose channel was handed over and has ended."""
        self._ended()
        self._channel.close()

    def abort(self) -> None:
        """End a boot that is under way, from another thread than the one that waits for it."""
        self._send({"op": "destroy", "patience_ms": 0})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.destroy()
