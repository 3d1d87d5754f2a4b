# SPDX-License-Identifier: Apache-2.0
"""The API to embed: boot an instance, run programs in it, take it down.

::

    with pal.init("instance", image_key=key) as instance:
        status = instance.exec(["/bin/echo", "hello"])

:func:`init` goes through the whole boot chain, the init stage included, in a process of its own,
the kernel process. Above: ``cli`` and embedders. Below: ``instance.layout``, ``libos``.

Threads: a ``Pal`` and its processes may be used from several threads. The child processes of this
module are the kernel process and the nursery of fs servers; an embedder that reaps all children
must not reap them.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from serdab.config.dirs import cache_dir, runtime_dir, state_dir
from serdab.errors import Error, InternalError, from_dict, printable
from serdab.instance import layout
from serdab.instance.layout import Instance
from serdab.instance.locks import lock_run
from serdab.keys import Key
from serdab.libos.begin import Begun
from serdab.libos.caller import current_umask, open_descriptors, require_key, spawn_record, terminal
from serdab.libos.channel import Channel, close_all
from serdab.libos.messages import Value
from serdab.libos.request import NOTHING_PINNED, BootRequest, Freshness
from serdab.trust.codetree import package_root
from serdab.version import VERSION

#: A notice is what the operator is to know without having asked: shown by default.
LEVELS: Final = ("off", "error", "notice", "warning", "info", "debug")
_DOWN_PATIENCE_S: Final = 5.0


def get_version() -> str:
    """Return the version of Serdab."""
    return VERSION


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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
        self._boot_answer: Error | None = None
        self._is_booted = False
        self._is_down = False
        self._is_destroyed = False
        self._problems: list[str] = []
        self._defect = ""
        self.measured: tuple[Measured, ...] = ()
        #: The names of the environment that the measured configuration lets callers set.
        self.untrusted_names: tuple[str, ...] = ()

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
                self._statuses[number] = status if isinstance(status, int) else 0
            case "down":
                problems = record.get("problems")
                if isinstance(problems, list):
                    self._problems = [str(problem) for problem in problems]

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
            self._end_use()
            self._begun.wait()

    def _end_use(self) -> None:
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

    def _wait_for_boot(self) -> None:
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

    def kill(
        self,
        process: Process | None = None,
        signal_number: int = signal.SIGKILL,
        *,
        sender: int = -1,
    ) -> None:
        """Signal one program, or every process inside.

        ``sender``: the process that sent it to us, when it is only passed on.
        """
        self._send(
            {
                "op": "kill",
                "id": 0 if process is None else process.number,
                "signal": int(signal_number),
                "sender": sender,
            }
        )

    def destroy(self, *, patience_s: float = _DOWN_PATIENCE_S) -> None:
        """End every program (TERM, then KILL), make everything durable, unmount.

        Returns when the kernel process and its fs servers are done. A second time it does nothing.

        Raises:
            Error: a volume could not be closed as it should.
        """
        if self._is_destroyed:
            return
        self._is_destroyed = True
        self._end_use()
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

    def end_use(self) -> None:
        """Let the next user of the instance wait for its end, instead of being refused."""
        self._end_use()

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


def log_to_stderr(level: str) -> Callable[[str, str], None]:
    """Return a function that shows lines for the operator, up to a level."""
    most = LEVELS.index(level) if level in LEVELS else 1

    def log(kind: str, line: str) -> None:
        if kind in LEVELS and LEVELS.index(kind) <= most:
            # A program chooses some of these words, such as the path of what it wants mounted.
            try:
                sys.stderr.write(printable(f"serdab: {kind}: {line}") + "\n")
                sys.stderr.flush()
            except OSError:
                pass  # nobody reads it any more (a hang-up): no reason to end an instance

    return log


def init(
    instance: str | os.PathLike[str],
    *,
    image_key: Key | None = None,
    image_key_fd: int = -1,
    private: Sequence[str | os.PathLike[str]] = (),
    expect_signer: str | None = None,
    expect_root: str | None = None,
    freshness: Freshness = NOTHING_PINNED,
    previous: bool = False,
    log_level: str = "notice",
    log: Callable[[str, str], None] | None = None,
    stdio: tuple[int, int, int] = (0, 1, 2),
    env: Mapping[str, str] | None = None,
    on_started: Callable[[Pal], None] | None = None,
    begun: Begun | None = None,
) -> Pal:
    """Boot an instance through the whole chain, the init stage included.

    ``image_key`` is shown to init as /etc/image_key; ``image_key_fd`` is a pipe to read it from,
    for a caller that is not to have it in its own memory (``libos.request.pipe_with_key``).
    ``private`` are files and directories that no host directory shows, such as the file the key
    came from. ``expect_signer`` is 64 hexadecimal digits, ``expect_root`` too, or sixteen hyphened
    bytes; ``freshness`` says what is pinned elsewhere.
    ``previous`` boots the image that the writable layer belongs to instead of the newest one.
    ``log(level, line)`` gets lines for the operator (default: standard error, up to ``log_level``).
    ``stdio`` and ``env`` (default: this process's) are init's. ``on_started`` hears of the instance
    before it has booted, so that another thread can end it. ``begun``: processes that were started
    earlier; they are ours from here on.

    Raises:
        Error: refused; kind and stage say where and why.
    """
    begun = begun or Begun()
    try:
        require_key(image_key)
        return _init(
            begun,
            os.fspath(instance),
            image_key=image_key,
            image_key_fd=image_key_fd,
            private=private,
            expect_signer=expect_signer,
            expect_root=expect_root,
            freshness=freshness,
            previous=previous,
            say=log or log_to_stderr(log_level),
            stdio=stdio,
            env=env,
            on_started=on_started,
        )
    except BaseException:
        begun.abandon()
        raise


def _init(
    begun: Begun,
    instance: str,
    *,
    image_key: Key | None,
    image_key_fd: int,
    private: Sequence[str | os.PathLike[str]],
    expect_signer: str | None,
    expect_root: str | None,
    freshness: Freshness,
    previous: bool,
    say: Callable[[str, str], None],
    stdio: tuple[int, int, int],
    env: Mapping[str, str] | None,
    on_started: Callable[[Pal], None] | None,
) -> Pal:
    place = Instance.open_built(instance)
    freshness = freshness.placed_outside(place.path)
    lock = lock_run(place, on_wait=lambda line: say("notice", line))
    try:
        request = BootRequest(
            instance=place.path,
            descriptor=place.read(layout.DESCRIPTOR),
            config=place.read(layout.PROTECTED_CONFIG),
            initfs=place.at(layout.INITFS),
            rootfs=place.at(layout.IMAGE),
            private=(*_private_directories(), *map(os.path.realpath, private)),
            environment=tuple(
                os.fsencode(f"{name}={value}")
                for name, value in (os.environ if env is None else env).items()
            ),
            umask=current_umask(),
            image_key=None if image_key is None else image_key.raw(),
            expect_signer=expect_signer,
            expect_root=expect_root,
            terminal=terminal(),
            previous=place.at(layout.PREVIOUS) if previous else None,
            freshness=freshness,
        )
        pal = Pal(begun, say, lock.hand_use_on())
        descriptors = open_descriptors(stdio)
        try:
            if on_started is not None:
                on_started(pal)
            # The lock is the kernel process's from here on: it lasts as long as the instance.
            record = request.dump()
            fds: tuple[int, ...] = (*descriptors.fds, lock.fd)
            if image_key_fd >= 0:
                record["key_follows"] = True
                fds = (*fds, image_key_fd)
            pal._send(record, fds)
            pal._wait_for_boot()
        except BaseException:
            pal.destroy(patience_s=0)
            raise
        finally:
            descriptors.close()
        return pal
    finally:
        lock.close()


def _private_directories() -> tuple[str, ...]:
    code = package_root()
    paths = (state_dir(), cache_dir(), runtime_dir(), code, *layout.package_parts(code))
    return tuple(map(os.path.realpath, paths))


def run_foreground(
    instance: str | os.PathLike[str],
    argv: Sequence[str],
    *,
    image_key: Key | None = None,
    private: Sequence[str | os.PathLike[str]] = (),
    expect_signer: str | None = None,
    expect_root: str | None = None,
    freshness: Freshness = NOTHING_PINNED,
    previous: bool = False,
    log_level: str = "notice",
    begun: Begun | None = None,
) -> int:
    """Boot, run one program on our own standard streams, shut down; return its exit status.

    Signals that reach this process alone are passed on to the program; see ``libos.signals``.

    Raises:
        Error: Serdab refused or failed before the program was started, or could not close.
    """
    from serdab.libos.signals import Foreground, start_forwarding

    foreground = Foreground()
    state = _Foreground()
    start_forwarding(state.forward, state.on_ending)
    try:
        pal = init(
            instance,
            image_key=image_key,
            private=private,
            expect_signer=expect_signer,
            expect_root=expect_root,
            freshness=freshness,
            previous=previous,
            log_level=log_level,
            on_started=state.started,
            begun=begun,
        )
        try:
            state.program_follows()
            process = pal.create_process(argv)
            state.program_is(process)
            status = process.wait()
        finally:
            state.program_is(None)
            # The program has ended, or never was: nothing inside is worth waiting for.
            pal.destroy(patience_s=0)
    except (Error, InternalError):
        if state.ended_by:
            return 128 + state.ended_by
        raise
    finally:
        foreground.restore()
    return status.shell


class _Foreground:
    """What the thread that waits for signals knows about the run."""

    def __init__(self) -> None:
        self._pal: Pal | None = None
        self._process: Process | None = None
        self._is_booting = True
        # A program may run, and say so, before we hear of it: what comes meanwhile waits for that.
        self._is_known = threading.Event()
        self.ended_by = 0

    def started(self, pal: Pal) -> None:
        self._pal = pal
        if self.ended_by:
            # The signal came before there was anything to end.
            raise Error("ended by a signal", stage="boot")

    def program_follows(self) -> None:
        self._is_booting = False

    def program_is(self, process: Process | None) -> None:
        self._process = process
        self._is_known.set()

    def on_ending(self, number: int) -> bool:
        if not self._is_booting:
            return False
        self.ended_by = number
        if self._pal is not None:
            self._pal._send({"op": "destroy", "patience_ms": 0})
        return True

    def forward(self, number: int, sender: int) -> None:
        if self._is_booting:
            return
        self._is_known.wait()
        if self._pal is not None and self._process is not None:
            self._pal.kill(self._process, number, sender=sender)
