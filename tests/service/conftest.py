# SPDX-License-Identifier: Apache-2.0
"""Instances that run as a service, by root and by an ordinary user, and people at terminals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.command import describe
from tests.sandbox.conftest import Box, Place, place, probe_program

__all__ = ["place", "probe_program"]

PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Service:
    """An instance and the verbs for it."""

    box: Box

    def run(self, *args: str, timeout_s: float = 60) -> subprocess.CompletedProcess[bytes]:
        """Return the finished verb."""
        return self.box.command.run("-C", self.box.path, *args, timeout_s=timeout_s)

    def ok(self, *args: str) -> str:
        """Return what a verb that must succeed prints."""
        result = self.run(*args)
        assert result.returncode == 0, describe(result)
        return result.stdout.decode()

    def start(self, *args: str) -> int:
        """Start it; return its process id."""
        return int(json.loads(self.verb_json("start", *args))["pid"])

    def verb_json(self, *args: str) -> str:
        """Return the JSON of a verb that must succeed."""
        result = self.box.command.run("--json", "-C", self.box.path, *args)
        assert result.returncode == 0, describe(result)
        return result.stdout.decode()

    def status(self) -> dict[str, object]:
        """Return what status says, running or not."""
        result = self.box.command.run("--json", "-C", self.box.path, "status")
        assert result.returncode in (0, 1), describe(result)
        fields: dict[str, object] = json.loads(result.stdout)
        return fields

    def exec(
        self, *argv: str, stdin: bytes | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """Return the finished ``serdab exec``."""
        command = self.box.command
        return command.run("-C", self.box.path, "exec", *argv, stdin=stdin, timeout_s=timeout_s)

    def out(self, script: str) -> str:
        """Return what a shell script inside prints, which must succeed."""
        result = self.exec("/bin/sh", "-c", script)
        assert result.returncode == 0, describe(result)
        return result.stdout.decode().strip()

    def words(self, *args: str) -> list[str]:
        """Return the command line of a verb."""
        return [*self.box.command.prefix, "-C", str(self.box.path), *args]

    def end(self) -> None:
        """Stop it if it runs."""
        self.run("stop", "-t", "0")


class Typist:
    """Somebody at a terminal of their own, where a program runs."""

    def __init__(
        self, argv: list[str], env: dict[str, str], size: tuple[int, int] = (30, 100)
    ) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(*size)
        self.modes = termios.tcgetattr(self.slave)
        self.pid = os.fork()
        if self.pid == 0:
            _login_tty(self.slave)
            os.execvpe(argv[0], argv, env)
        self.seen = b""
        self.status: int | None = None

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of the window."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        """Type."""
        os.write(self.master, text.encode())

    def wait_for(self, wanted: str, patience_s: float = PATIENCE_S) -> str:
        """Return what is shown up to and with ``wanted``; it is not looked at again."""
        raw = wanted.encode()
        deadline = time.monotonic() + patience_s
        while raw not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self._read(0.5)
        end = self.seen.index(raw) + len(raw)
        out, self.seen = self.seen[:end], self.seen[end:]
        return out.decode(errors="replace")

    def _read(self, timeout_s: float) -> None:
        if select.select([self.master], [], [], timeout_s)[0]:
            self.seen += os.read(self.master, 4096)

    def wait(self) -> int:
        """Return the exit code, as a shell shows it."""
        deadline = time.monotonic() + PATIENCE_S
        while self.status is None:
            assert time.monotonic() < deadline, self.seen
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
            else:
                self._read(0.02)
        code = os.waitstatus_to_exitcode(self.status)
        return 128 - code if code < 0 else code

    def rest(self) -> str:
        """Return what is shown and was not looked at."""
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 4096)
        return self.seen.decode(errors="replace")

    def are_modes_back(self) -> bool:
        """Return whether the terminal is as it was."""
        return termios.tcgetattr(self.slave) == self.modes

    def close(self) -> None:
        """End it, whatever it does; a second time is nothing."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            _, self.status = os.waitpid(self.pid, 0)
        # Each number once: soon it is somebody else's.
        for fd in (self.master, self.slave):
            if fd >= 0:
                os.close(fd)
        self.master = self.slave = -1


def _login_tty(fd: int) -> None:
    os.setsid()
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
    for number in range(3):
        os.dup2(fd, number)


def make(place: Place, probe: Path, change: Callable[[dict[str, object]], None] | None) -> Box:
    """Build an instance for a service."""
    return place.build(probe, change)


def _with_variables(config: dict[str, object]) -> None:
    config["env"] = {
        "default": ["OCCLUM=yes", "PATH=/bin", "STABLE=yes", "OVERRIDE=N"],
        "untrusted": ["EXAMPLE", "TERM", "OVERRIDE"],
    }


@pytest.fixture(scope="session")
def service_box(place: Place, probe_program: Path) -> Box:
    return make(place, probe_program, _with_variables)


@pytest.fixture(scope="session")
def shared_service(service_box: Box) -> Iterator[Service]:
    """A service for all tests that leave it as it was."""
    service = Service(service_box)
    service.start()
    yield service
    service.end()


@pytest.fixture
def running(shared_service: Service) -> Service:
    """The shared service, running nothing."""
    if shared_service.status()["state"] != "running":
        shared_service.start()
    # Of a client that was killed, a program may live on for its five seconds.
    wait_until(lambda: shared_service.status()["programs"] == [], "what ran before still runs")
    return shared_service


@pytest.fixture(scope="session")
def own_box(place: Place, probe_program: Path) -> Box:
    return make(place, probe_program, None)


@pytest.fixture
def stopped(own_box: Box) -> Iterator[Service]:
    """An instance that a test starts and stops as it likes."""
    service = Service(own_box)
    yield service
    service.end()


@pytest.fixture
def at_terminal() -> Iterator[Callable[..., Typist]]:
    """Return ``at_terminal(argv, env, size=...) -> Typist``."""
    typists: list[Typist] = []

    def sit_down(argv: list[str], env: dict[str, str], **more: tuple[int, int]) -> Typist:
        typists.append(Typist(argv, env, **more))
        return typists[-1]

    yield sit_down
    for typist in typists:
        typist.close()


def socket_of(service: Service) -> Path:
    """Return where an instance's service listens; those that were killed leave theirs beside it."""
    runtime = Path(service.box.command.env["XDG_RUNTIME_DIR"]) / "serdab" / "service"
    log = Path(str(service.status()["log"]))
    return runtime / f"{log.stem}.sock"


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
