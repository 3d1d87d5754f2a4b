# SPDX-License-Identifier: Apache-2.0
"""What the commands say to a service: ``exec``, ``status``, ``stop``.

Above: ``cli``. Below: ``place``, ``protocol``, ``terminal``. ``exec`` stands for its program: the
program gets our standard streams, or a terminal of the instance that we relay to ours; signals that
reach us are passed on; our exit status is the program's, and where Ctrl-C killed it we die of that.
Of the environment only those variables are sent that the measured configuration lets through; the
kernel process filters them again.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence

from serdab.errors import BusyError, Error, FormatError, InternalError, from_dict
from serdab.libos.caller import current_umask, open_descriptors
from serdab.libos.channel import Channel, close_all
from serdab.libos.fields import many, number, text
from serdab.libos.interpreter import KEYBOARD
from serdab.libos.messages import Value
from serdab.libos.signals import ENDING, die_of
from serdab.linux.signalfd import Sent
from serdab.service import place
from serdab.service.protocol import ExecRequest, Hello
from serdab.service.signals import Signals
from serdab.service.terminal import NoTerminal, Relay, find
from serdab.structs import frozen

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final, NoReturn

_ANSWER_S: Final = 10.0
_QUIET_S: Final = 1.0

#: Hears, once, that a service takes long to answer, or its end.
OnWait = Callable[[str], None]


@frozen
class ProgramStatus:
    """A program that runs. ``client`` is the process it belongs to, 0 if that went away."""

    path: str
    client: int
    since_ms: int
    has_terminal: bool


@frozen
class Status:
    """What a service tells about itself. ``measured``: stage, subject, digest."""

    state: str
    pid: int
    since_ms: int
    log: str
    measured: tuple[tuple[str, str, str], ...]
    programs: tuple[ProgramStatus, ...]

    def since(self) -> str:
        """Return when it booted, in the local time."""
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since_ms / 1000))


def _answer(
    channel: Channel, where: place.Place, pid: int, on_wait: OnWait
) -> tuple[dict[str, Value], list[int]] | None:
    """Return the next record of a service, which never takes long.

    Raises:
        BusyError: it does not answer: it was stopped (SIGSTOP), or is stuck.
    """
    try:
        return channel.receive_within(_QUIET_S)
    except TimeoutError:
        on_wait(f"{where.instance}: waiting for its service, process {pid}, to answer")
    try:
        return channel.receive_within(_ANSWER_S - _QUIET_S)
    except TimeoutError:
        raise BusyError(
            "the service does not answer",
            subject=where.instance,
            expected=f"an answer within {_ANSWER_S:.0f} s",
            found=f"process {pid}, silent",
            hint=f"`kill -CONT {pid}` continues one that was stopped; `kill -KILL {pid}` ends it, "
            "and what was synced is safe",
        ) from None


def _greeted(where: place.Place, on_wait: OnWait) -> tuple[Channel, Hello] | None:
    """Return a connection; None if there is no service, or it ended at this very moment."""
    end = place.connect(where)
    if end is None:
        return None
    channel = Channel(end)
    try:
        message = _answer(channel, where, place.peer_of(end)[0], on_wait)
        if message is None:
            channel.close()
            return None
        record, fds = message
        close_all(fds)
        if record.get("op") == "refused":
            raise from_dict(record)
        return channel, Hello.parse(record)
    except BaseException:
        channel.close()
        raise


def _required(where: place.Place, verb: str, on_wait: OnWait) -> tuple[Channel, Hello]:
    greeted = _greeted(where, on_wait)
    if greeted is None:
        raise place.not_running(where, verb)
    return greeted


def ask_status(instance: str, *, on_wait: OnWait) -> Status | None:
    """Return what the instance's service says; None if it has none."""
    where = place.Place.of(instance)
    greeted = _greeted(where, on_wait)
    if greeted is None:
        return None
    channel, hello = greeted
    try:
        channel.send({"op": "status"})
        message = _answer(channel, where, hello.pid, on_wait)
    except BrokenPipeError:
        return None
    finally:
        channel.close()
    if message is None:
        return None  # it ended at this very moment
    record, fds = message
    close_all(fds)
    programs = []
    for item in many(record, "programs"):
        if not isinstance(item, dict):
            raise FormatError("a program's status is no record")
        path = item.get("path")
        programs.append(
            ProgramStatus(
                os.fsdecode(path) if isinstance(path, bytes) else "",
                number(item, "client"),
                number(item, "since_ms"),
                item.get("terminal") is True,
            )
        )
    measured = []
    for line in many(record, "measured"):
        if not isinstance(line, list) or len(line) != 3:
            raise FormatError("a measurement is no triple")
        measured.append((str(line[0]), str(line[1]), str(line[2])))
    return Status(
        text(record, "state"),
        number(record, "pid"),
        number(record, "since_ms"),
        text(record, "log"),
        tuple(measured),
        tuple(programs),
    )


def stop(instance: str, patience_s: float, *, on_wait: OnWait) -> None:
    """Stop the instance's service; returns when everything is durable and the lock is free.

    Raises:
        NotRunningError: it has none.
        Error: a volume could not be closed as it should.
    """
    from serdab.instance.layout import Instance
    from serdab.instance.locks import wait_until_closed

    where = place.Place.of(instance)
    channel, _ = _required(where, "stop", on_wait)
    problems: list[str] = []
    has_ended = False
    try:
        channel.send({"op": "stop", "patience_ms": int(patience_s * 1000)})
        while (message := channel.receive()) is not None:
            record, fds = message
            close_all(fds)
            if record.get("op") == "down":
                has_ended = True
                problems = [str(item) for item in many(record, "problems")]
    finally:
        channel.close()
    with Instance(where.instance) as built:
        wait_until_closed(built, on_wait=on_wait)
    if not has_ended:
        problems.append(f"the service was killed; its log is {where.log}")
    if problems:
        raise Error(
            "the instance did not close as it should",
            stage="stop",
            subject=where.instance,
            found="; ".join(problems),
            hint="what was synced is safe; `serdab fsck` verifies the volume",
        )


def execute(instance: str, argv: Sequence[str], *, on_wait: OnWait) -> int:
    """Run a program in the instance's service; return its exit status as a shell shows it.

    Raises:
        NotRunningError: the instance has no service.
        Error: the program was not started, or the instance ended without telling how it ended.
    """
    where = place.Place.of(instance)
    channel, hello = _required(where, "exec", on_wait)
    return _Foreground(where, channel, hello).run(argv)


class _Foreground:
    """A client that stands for its program."""

    def __init__(self, where: place.Place, channel: Channel, hello: Hello) -> None:
        self._where = where
        self._channel = channel
        self._hello = hello
        self._status: int | None = None
        self._early: list[Sent] = []
        self._told: set[int] = set()  # signals that reached us and were for the program
        self._terminal: Relay | NoTerminal = NoTerminal()

    def run(self, argv: Sequence[str]) -> int:
        streams = open_descriptors((0, 1, 2))
        found = find(streams.fds)
        fds = list(streams.fds)
        slave = -1
        if found is not None:
            master = self._ask_for_terminal()
            relay = self._terminal = Relay(found, master)
            slave = relay.open_slave()
            for index in found.places:
                fds[index] = slave
        # From here on no signal ends us: what ends the program does. Not before: programs inside
        # can keep us waiting for a terminal.
        signals = Signals()
        request = ExecRequest(
            argv=tuple(os.fsencode(item) for item in argv),
            environment=_environment(self._hello.names),
            umask=current_umask(),
            terminal=-1 if found is None else found.places[0],
        )
        try:
            self._send(request.dump(), (fds[0], fds[1], fds[2]))
            ended_by = self._wait_for_start(signals)
            if ended_by:
                self._told.add(ended_by)
                return self._end(ended_by)
            self._expect("started")
        finally:
            streams.close()
            if slave >= 0:
                os.close(slave)
        try:
            self._terminal.begin()
            for sent in self._early:
                self._hear_signal(sent.number, is_of_kernel=sent.is_of_kernel)
            self._serve(signals)
        finally:
            self._terminal.end()
        if self._status is None:
            self._lost()
        code = os.waitstatus_to_exitcode(self._status)
        return code if code >= 0 else self._end(-code)

    def _end(self, sent: int) -> int:
        """Die of the signal that killed the program, if the keyboard or somebody sent it by us.

        Where the keys were the program's alone, our job hears of it too, as it would without us.
        """
        if sent in KEYBOARD:
            if sent in self._terminal.typed:
                os.kill(0, sent)  # held back here
            elif sent not in self._told:
                return 128 + sent
            die_of(sent)
        return 128 + sent

    def _ask_for_terminal(self) -> int:
        self._send({"op": "terminal"})
        _, fds = self._expect("terminal")
        if len(fds) != 1:
            close_all(fds)
            raise FormatError("a terminal came without its descriptor")
        return fds[0]

    def _wait_for_start(self, signals: Signals) -> int:
        """Wait for the service's answer; return the signal that ended us before, or 0.

        Signals are for the program, so what comes meanwhile is kept for it; but one that would end
        it ends us where it does not start: an fs server may be stuck. The service hangs up on a
        program that starts later.
        """
        from select import POLLIN, poll

        waiting = poll()
        for fd in (self._channel.fileno(), signals.fileno()):
            waiting.register(fd, POLLIN)
        ending, due = 0, math.inf
        while True:
            left_s = due - time.monotonic()
            ready = dict(waiting.poll(None if due == math.inf else max(left_s, 0) * 1000))
            if self._channel.fileno() in ready:
                return 0
            if left_s <= 0:
                return ending
            for sent in signals.take() if ready else ():
                self._early.append(sent)
                if sent.number in ENDING and not ending:
                    ending, due = sent.number, time.monotonic() + _QUIET_S

    def _send(self, record: dict[str, Value], fds: tuple[int, ...] = ()) -> None:
        try:
            self._channel.send(record, fds)
        except OSError:
            pass  # it is gone: whoever waits for its answer hears so

    def _expect(self, op: str) -> tuple[dict[str, Value], list[int]]:
        message = self._channel.receive()
        if message is None:
            self._lost()
        record, fds = message
        if record.get("op") == "refused":
            close_all(fds)
            raise from_dict(record)
        if record.get("op") != op:
            close_all(fds)
            raise InternalError(f"the service said {record.get('op')} instead of {op}")
        return record, fds

    def _lost(self) -> NoReturn:
        raise Error(
            "the instance ended, and did not tell how the program did",
            stage="exec",
            subject=self._where.instance,
            expected="the program's exit status",
            found="the end of the connection",
            hint=f"its log is {self._where.log}; what was synced is safe",
        )

    def _serve(self, signals: Signals) -> None:
        """Relay until the program has ended."""
        from select import POLLIN, poll

        while self._status is None:
            waiting = poll()
            waiting.register(self._channel.fileno(), POLLIN)
            waiting.register(signals.fileno(), POLLIN)
            for fd, events in self._terminal.interests():
                waiting.register(fd, events)
            ready = dict(waiting.poll(self._terminal.patience_ms()))
            if signals.fileno() in ready:
                for sent in signals.take():
                    self._hear_signal(sent.number, is_of_kernel=sent.is_of_kernel)
            self._terminal.relay(ready)
            if self._channel.fileno() in ready and not self._hear_service():
                return
            if self._terminal.has_hung_up():
                # What the program reads is at its end, and the kernel tells it so.
                self._terminal.hang_up()

    def _hear_signal(self, sent: int, *, is_of_kernel: bool) -> None:
        from signal import SIGCONT, SIGHUP, SIGSTOP, SIGTSTP, SIGWINCH

        if sent == SIGWINCH:
            self._terminal.resize()
        elif sent == SIGCONT:
            self._resume()
        elif sent == SIGTSTP:
            self._signal(SIGSTOP, group=True)
            self._suspend()
        else:
            if sent == SIGHUP and is_of_kernel:
                self._terminal.hang_up()
            # The terminal means the whole job; somebody who names us means the program.
            self._told.add(sent)
            self._signal(sent, group=is_of_kernel)

    def _signal(self, sent: int, *, group: bool) -> None:
        self._send({"op": "signal", "signal": int(sent), "group": group})

    def _hear_service(self) -> bool:
        message = self._channel.receive()
        if message is None:
            return False
        record, fds = message
        close_all(fds)
        match record.get("op"):
            case "exited":
                self._status = number(record, "status")
            case "stopped":
                from signal import SIGTSTP

                # Ctrl-Z means the whole job; any other stop is the program's alone.
                self._suspend(alone=record.get("signal") != SIGTSTP)
        return True

    def _suspend(self, *, alone: bool = False) -> None:
        """Stop as the program did, with our job or alone; go on with it."""
        from serdab.service.signals import stop_ourselves

        self._terminal.leave()
        stop_ourselves(alone=alone)
        self._resume()

    def _resume(self) -> None:
        from signal import SIGCONT

        self._terminal.enter()
        self._signal(SIGCONT, group=True)


def _environment(names: tuple[str, ...]) -> tuple[bytes, ...]:
    wanted = {os.fsencode(name) for name in names}
    return tuple(name + b"=" + value for name, value in os.environb.items() if name in wanted)
