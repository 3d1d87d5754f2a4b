# SPDX-License-Identifier: Apache-2.0
"""kill -9 of anything: the next command works, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recovery.processes import Process, descendants, process_of
from tests.service.conftest import Service, Typist, wait_until
from tests.service.test_lifecycle import alive, popen

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


def children(pid: int) -> list[int]:
    """The processes below one that are its own."""
    out: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            out += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that ended meanwhile
    return out


def command_line(pid: int) -> str:
    """The words of a process, nothing once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def processes_of(service: Service) -> dict[str, list[Process]]:
    """The processes of a running service by what they are."""
    daemon = process_of(int(str(service.status()["pid"])))
    below = descendants(daemon.pid)
    out = {"service": [daemon]}
    (kernel,) = out["kernel process"] = [p for p in below if p.parent() == daemon.pid]
    own = [process for process in below if process.parent() == kernel.pid]
    (nursery,) = out["nursery"] = [p for p in own if p.name() == "serdab-nursery"]
    out["launcher"] = [p for p in own if "launcher" in command_line(p.pid)]
    out["fs server"] = [process for process in below if process.parent() == nursery.pid]
    return out


@pytest.mark.parametrize("victim", ["service", "kernel process", "launcher", "nursery"])
def test_after_a_kill_the_next_command_works(stopped: Service, victim: str) -> None:
    stopped.start()
    stopped.out("echo kept > /kept; sync")
    found = processes_of(stopped)
    everybody = [process for processes in found.values() for process in processes]
    program = popen(stopped, "exec", "/bin/sh", "-c", "echo on; exec sleep 1000")
    assert program.stdout is not None
    assert program.stdout.readline() == b"on\n"
    for process in found[victim]:
        process.kill()
    if victim != "nursery":
        # The program is gone, or its client hears that nobody knows.
        program.communicate(timeout=60)
        assert program.returncode in (125, 137, 143)
        wait_until(lambda: stopped.status()["state"] == "stopped", "it still runs")
        stopped.start()
    assert stopped.out("cat /kept") == "kept"
    stopped.ok("stop", "-t", "0")
    if victim == "nursery":
        program.communicate(timeout=60)
    wait_until(lambda: not any(process.is_alive() for process in everybody), "a process is left")


def test_after_an_fs_server_was_killed_a_stop_says_so_and_a_start_works(stopped: Service) -> None:
    stopped.start()
    stopped.out("echo kept > /kept; sync")
    found = processes_of(stopped)
    for process in found["fs server"]:
        process.kill()
    assert stopped.exec("/bin/cat", "/kept").returncode != 0
    stopped.run("stop", "-t", "0")
    assert stopped.status()["state"] == "stopped"
    stopped.start()
    assert stopped.out("cat /kept") == "kept"


def test_a_terminal_is_put_back_when_the_service_dies(
    stopped: Service, at_terminal: Callable[..., Typist]
) -> None:
    pid = stopped.start()
    person = at_terminal(stopped.words("exec", "/bin/sh", "-i"), stopped.box.command.env)
    person.wait_for("# ")
    os.kill(pid, signal.SIGKILL)
    assert person.wait() in (125, 128 + signal.SIGHUP, 128 + signal.SIGTERM, 137)
    assert person.are_modes_back()


def test_a_stop_puts_terminals_back(stopped: Service, at_terminal: Callable[..., Typist]) -> None:
    stopped.start()
    person = at_terminal(stopped.words("exec", "/bin/sh", "-i"), stopped.box.command.env)
    person.wait_for("# ")
    stopped.ok("stop", "-t", "0.2")
    assert person.wait() == 137  # an interactive shell ignores SIGTERM
    assert person.are_modes_back()


def test_a_stale_socket_is_no_service(stopped: Service) -> None:
    pid = stopped.start()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), "it lives")
    runtime = Path(stopped.box.command.env["XDG_RUNTIME_DIR"]) / "serdab" / "service"
    assert list(runtime.glob("*.sock"))
    assert stopped.run("status").returncode == 1
    assert stopped.exec("/bin/true").returncode == 125
    assert stopped.run("stop").returncode == 1
    assert stopped.box.run("/bin/true").returncode == 0
    stopped.start()


def test_a_crowd_of_killed_clients_leaves_nothing(running: Service) -> None:
    daemon = int(str(running.status()["pid"]))
    (kernel,) = children(daemon)

    def counts() -> tuple[int, ...]:
        return (
            *(len(os.listdir(f"/proc/{pid}/fd")) for pid in (daemon, kernel)),
            len(descendants(daemon)),
        )

    running.out("true")
    before = counts()

    def is_back() -> bool:
        # Not equal: the end of whoever asked last may not have been heard of before.
        return all(now <= then for now, then in zip(counts(), before, strict=True))

    for _ in range(2):
        crowd = [
            popen(running, "exec", "/bin/sleep", "1000", stdout=subprocess.DEVNULL)
            for _ in range(8)
        ]
        wait_until(lambda: bool(running.status()["programs"]), "none runs")
        for process in crowd:
            process.kill()
        for process in crowd:
            process.communicate(timeout=60)
    wait_until(lambda: running.status()["programs"] == [], "programs are left")
    wait_until(is_back, f"{before} before")


def hears_signals(pid: int) -> bool:
    """Return whether a process has a signalfd(2)."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if "signalfd" in os.readlink(fd):
                return True
        except FileNotFoundError:
            continue  # closed meanwhile: it is starting
    return False


def test_a_client_whose_program_cannot_start_can_be_ended(stopped: Service) -> None:
    stopped.start()
    servers = processes_of(stopped)["fs server"]
    for process in servers:
        process.kill(signal.SIGSTOP)
    try:
        client = popen(stopped, "exec", "/bin/sleep", "1000")
        wait_until(lambda: hears_signals(client.pid), "it waits")
        client.terminate()
        assert client.wait(60) == 128 + signal.SIGTERM
    finally:
        for process in servers:
            process.kill(signal.SIGCONT)
    client.communicate(timeout=60)
    # What starts after all is hung up on.
    assert stopped.out("echo on") == "on"
    wait_until(lambda: stopped.status()["programs"] == [], "a program is left")
