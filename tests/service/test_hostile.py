# SPDX-License-Identifier: Apache-2.0
"""Clients that talk nonsense, programs that put traps where terminals come from, and the key."""

from __future__ import annotations

import array
import os
import socket
from pathlib import Path

import pytest

from serdab.libos.messages import Value, dump
from tests.harness.command import describe
from tests.recovery.processes import descendants
from tests.sandbox.conftest import Place
from tests.service.conftest import Service, Typist, make, socket_of, wait_until
from tests.service.test_kills import children
from tests.service.test_terminal import SitDown, sit

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


def connection(service: Service) -> socket.socket:
    """Connect as a client does; root can only to a service of root."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.settimeout(60)
    end.connect(str(socket_of(service)))
    return end


def record(**fields: Value) -> bytes:
    return b"\0" + dump(fields)


NONSENSE: list[bytes] = [
    b"x",
    b"\0",
    b"\1",
    b"\0" + os.urandom(100),
    record(op="exec"),
    record(op="exec", argv=[], env=[], umask=0, terminal=-1),
    record(op="exec", argv=[b"/bin/true"], env=[b"A\0B=1"], umask=0, terminal=-1),
    record(op="exec", argv=["text"], env=[], umask=0, terminal=-1),
    record(op="exec", argv=[b"/bin/true"], env=[], umask=-1, terminal=-1),
    record(op="exec", argv=[b"/bin/true"], env=[], umask=0, terminal=3),
    record(op="exec", argv=[b"/bin/true"], env=[], umask=0, terminal=0),  # no terminal at all
    record(op="signal", signal=9, group=True),
    record(op="signal", signal=1000),
    record(op="stop"),
    record(op="stop", patience_ms="soon"),
    record(op="started"),
    record(op="down"),
    record(),
]


def test_nonsense_harms_only_its_sender(running: Service) -> None:
    if not running.box.is_root:
        return  # the service of another user does not even listen to us
    pid = running.status()["pid"]
    for nonsense in NONSENSE:
        for fd_count in (0, 1, 3, 5):
            with connection(running) as end:
                assert end.recv(4096)  # the greeting
                fds = array.array("i", [0] * fd_count)
                extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fd_count else []
                end.sendmsg([nonsense], extra)
                end.shutdown(socket.SHUT_WR)
                while end.recv(4096):
                    pass
        assert running.status()["pid"] == pid, nonsense
    assert running.out("echo unharmed") == "unharmed"


def test_a_client_that_never_reads_stops_nobody(running: Service) -> None:
    if not running.box.is_root:
        return
    with connection(running) as end:
        question = record(op="status")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # no answer fits any more
            send_until_dropped(end, question)
        assert running.out("echo on") == "on"


def send_until_dropped(end: socket.socket, raw: bytes) -> None:
    for _ in range(1_000_000):
        end.send(raw)


def test_descriptors_of_dropped_clients_are_closed(running: Service) -> None:
    if not running.box.is_root:
        return
    daemon = int(str(running.status()["pid"]))
    before = len(os.listdir(f"/proc/{daemon}/fd"))
    for _ in range(20):
        with connection(running) as end:
            end.sendmsg(
                [b"nonsense"],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 8))],
            )
    # Not equal: the end of who asked for the status may not have been heard of before.
    wait_until(lambda: len(os.listdir(f"/proc/{daemon}/fd")) <= before, "descriptors leak")


def test_a_program_that_has_a_terminal_cannot_push_input_into_the_callers(
    running: Service, at_terminal: SitDown
) -> None:
    person = sit(at_terminal, running, "/bin/sh", "-c", "probe tiocsti; echo done")
    person.wait_for("done")
    assert person.wait() == 0
    # What a program did to its terminal's modes is not what we are left with.
    person = sit(at_terminal, running, "/bin/sh", "-c", "busybox stty -echo -icanon raw; echo")
    assert person.wait() == 0
    assert person.are_modes_back()


@pytest.fixture(scope="session")
def encrypted(place: Place, probe_program: Path) -> Service:
    """An encrypted instance; its key lies beside it."""
    box = make(place, probe_program, None)
    key = box.path.parent / "key"
    box.command.ok("gen-image-key", key)
    box.command.ok("-C", box.path, "build", "--image-key", key)
    return Service(box)


class TestKey:
    def forms(self, service: Service) -> list[bytes]:
        text = (service.box.path.parent / "key").read_text().strip()
        raw = bytes.fromhex(text.replace("-", ""))
        return [raw, raw.hex().encode(), raw.hex().upper().encode(), text.encode()]

    @pytest.mark.parametrize("way", ["file", "standard input", "foreground"])
    def test_the_service_does_not_have_it(self, encrypted: Service, way: str) -> None:
        key = encrypted.box.path.parent / "key"
        command, path = encrypted.box.command, encrypted.box.path
        foreground = None
        if way == "file":
            result = command.run("-C", path, "start", "--image-key", key)
            assert result.returncode == 0, describe(result)
        elif way == "standard input":
            result = command.run(
                "-C", path, "start", "--image-key", "-", stdin=key.read_bytes() + b"rest"
            )
            assert result.returncode == 0, describe(result)
        else:
            foreground = command.popen("-C", path, "start", "--foreground", "--image-key", key)
            assert foreground.stderr is not None
            assert any(b"is ready" in line for line in foreground.stderr)
        status = encrypted.status()
        daemon, log = int(str(status["pid"])), status["log"]
        assert (log is None) == (way == "foreground")
        try:
            assert encrypted.out("echo booted") == "booted"
            for form in self.forms(encrypted):
                assert form not in memory_of(daemon)
                for pid in (daemon, *(process.pid for process in descendants(daemon))):
                    for file in ("cmdline", "environ"):
                        assert form not in shown(pid, file)
                if log is not None:
                    assert form not in Path(str(log)).read_bytes()
            assert any(self.forms(encrypted)[0] in memory_of(pid) for pid in children(daemon))
        finally:
            encrypted.ok("stop", "-t", "0")
            if foreground is not None:
                foreground.communicate(timeout=60)

    def test_a_missing_one_is_told_at_the_start(self, encrypted: Service) -> None:
        result = encrypted.run("start")
        assert result.returncode == 4, describe(result)
        assert encrypted.status()["state"] == "stopped"
        # Once, and by who knows why: init has nothing to add.
        assert b"init: " not in result.stderr


def test_what_init_says_is_heard_at_the_start(place: Place, probe_program: Path) -> None:
    box = make(place, probe_program, None)
    (box.path / "initfs/etc").mkdir(exist_ok=True)
    (box.path / "initfs/etc/image_key").write_text("no key\n")
    box.command.ok("-C", box.path, "build")
    result = Service(box).run("start")
    assert result.returncode != 0
    assert b"init: /etc/image_key does not hold sixteen bytes" in result.stderr


def shown(pid: int, file: str) -> bytes:
    """What /proc shows of a process, nothing once it has ended."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def memory_of(pid: int) -> bytes:
    """All that a process has in memory and could write: only root may look."""
    out = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, modes = line.split()[:2]
            if not modes.startswith("rw"):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            memory.seek(start)
            try:
                out.append(memory.read(end - start))
            except OSError:
                continue  # given back meanwhile
    return b"\n".join(out)


class TestTraps:
    def test_a_pipe_where_terminals_come_from_stops_nobody(
        self, stopped: Service, at_terminal: SitDown
    ) -> None:
        stopped.start()
        # A program mounts over /dev/pts and leaves something there that blocks who opens it.
        made = stopped.exec(
            "/bin/sh", "-c",
            "busybox mount -t ramfs none /dev/pts && busybox mkfifo /dev/pts/ptmx && echo made",
        )  # fmt: skip
        person: Typist = sit(at_terminal, stopped, "/bin/echo", "shown")
        if made.stdout == b"made\n":
            person.wait_for("no terminal can be made")
            assert person.wait() == 125
        else:  # it may not mount there at all
            assert person.wait() == 0
        assert person.are_modes_back()
        assert stopped.out("echo unharmed") == "unharmed"
