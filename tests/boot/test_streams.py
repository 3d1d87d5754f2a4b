# SPDX-License-Identifier: Apache-2.0
"""What of the caller's a program gets as its standard streams: nothing that leads anywhere else."""

from __future__ import annotations

import array
import json
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from serdab.errors import UsageError
from serdab.libos.messages import Value, dump, parse_record
from serdab.libos.streams import check_streams
from tests.harness.command import describe
from tests.sandbox.conftest import Box
from tests.service.conftest import Service, socket_of

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

CANARY: Final = "of the host"
Open = Callable[[Path], int]

#: Where a descriptor leads out: what to open in a directory of the host.
WAYS_OUT: Final[dict[str, tuple[Open, str]]] = {
    "directory": (lambda path: os.open(path, os.O_RDONLY), "a directory"),
    "bare directory": (lambda path: os.open(path, os.O_PATH), "O_PATH"),
    "bare file": (lambda path: os.open(path / "canary", os.O_PATH), "O_PATH"),
    "bare link": (lambda path: os.open(path / "link", os.O_PATH | os.O_NOFOLLOW), "O_PATH"),
    "process": (lambda path: os.pidfd_open(os.getpid()), "an object of the kernel"),
    "namespace": (
        lambda path: os.open("/proc/self/ns/net", os.O_RDONLY),
        "an object of the kernel",
    ),
    "events": (lambda path: os.eventfd(0), "an object of the kernel"),
}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    (tmp_path / "canary").write_text(CANARY)
    (tmp_path / "link").symlink_to("canary")
    os.mkfifo(tmp_path / "fifo")
    return tmp_path


@pytest.fixture(params=sorted(WAYS_OUT))
def way_out(request: pytest.FixtureRequest, outside: Path) -> Iterator[tuple[int, str]]:
    open_it, found = WAYS_OUT[request.param]
    fd = open_it(outside)
    yield fd, found
    os.close(fd)


def run(box: Box, fds: tuple[int, int, int], *words: str) -> subprocess.CompletedProcess[bytes]:
    argv = [*box.command.prefix, "-C", str(box.path), *words]
    return subprocess.run(
        argv,
        stdin=fds[0],
        stdout=fds[1],
        stderr=fds[2],
        env=box.command.env,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("at", [0, 1])
def test_a_directory_leads_a_program_nowhere(hosted: Box, outside: Path, at: int) -> None:
    """From such a descriptor ``..`` reaches every file of the host.

    For the command that is typed Python makes a fatal error of it, before any code of ours.
    """
    fd = os.open(outside, os.O_RDONLY)
    fds = [subprocess.DEVNULL, subprocess.DEVNULL, subprocess.PIPE]
    fds[at] = fd
    script = f"cd /proc/self/fd/{at} && cat canary ../*/canary >&2"
    done = run(hosted, (fds[0], fds[1], fds[2]), "run", "/bin/sh", "-c", script)
    os.close(fd)
    assert CANARY.encode() not in done.stderr
    assert done.returncode == 1, done


@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_is_no_stream_is_refused_by_name(
    way_out: tuple[int, str], at: int, tmp_path: Path
) -> None:
    fd, found = way_out
    with (tmp_path / "other").open("w+") as other:
        fds = [other.fileno()] * 3
        fds[at] = fd
        with pytest.raises(UsageError) as caught:
            check_streams(fds)
    assert found in caught.value.found
    assert caught.value.subject == ("standard input", "standard output", "standard error")[at]


def test_run_refuses_it(hosted: Box, way_out: tuple[int, str]) -> None:
    fd, found = way_out
    fds = (subprocess.DEVNULL, fd, subprocess.PIPE)
    done = run(hosted, fds, "--json", "run", "/bin/true")
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        assert done.returncode == 1, "Python does not start"
        return
    assert done.returncode == 125, done
    value = json.loads(done.stderr.splitlines()[-1])
    assert (value["error"], value["subject"]) == ("usage", "standard output")
    assert found in value["found"]
    assert value["hint"]


def test_an_embedded_instance_refuses_it(hosted: Box) -> None:
    script = f"""
import os
from serdab import pal, errors
with pal.init({str(hosted.path)!r}) as instance:
    for fd in (os.open("/etc", os.O_RDONLY), os.open("/etc", os.O_PATH)):
        for name in ("stdin", "stdout", "stderr"):
            try:
                instance.create_process(["/bin/true"], **{{name: fd}})
            except errors.UsageError as exc:
                print(exc.found)
    print(instance.exec(["/bin/true"]).code)
"""
    prefix = hosted.command.prefix[: hosted.command.prefix.index("-m")]
    done = subprocess.run(
        [*prefix, "-c", script], env=hosted.command.env, capture_output=True, check=False
    )
    lines = done.stdout.decode().splitlines()
    bare = "a descriptor that O_PATH has opened"
    assert lines == ["a directory"] * 3 + [bare] * 3 + ["0"], describe(done)


def test_a_service_refuses_it_whoever_sends_it(hosted: Box, outside: Path) -> None:
    """The client looks itself, and one of somebody else's making need not."""
    service = Service(hosted)
    with ExitStack() as stack:
        service.start()
        stack.callback(service.end)
        fd = os.open(outside, os.O_RDONLY)
        stack.callback(os.close, fd)
        bare = os.open(outside / "canary", os.O_PATH)
        stack.callback(os.close, bare)
        done = run(hosted, (subprocess.DEVNULL, bare, subprocess.PIPE), "exec", "/bin/true")
        assert done.returncode == 125, done
        assert b"standard output" in done.stderr
        if hosted.is_root:  # else the service does not listen to us
            end = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            end.settimeout(60)
            end.connect(str(socket_of(service)))
            assert end.recv(4096)
            argv = [b"/bin/sh", b"-c", b"cd /proc/self/fd/0 && cat canary >&2"]
            ask: dict[str, Value] = {
                "op": "exec",
                "argv": [*argv],
                "env": [],
                "umask": 0,
                "terminal": -1,
            }
            fds = array.array("i", [fd, 1, 2])
            end.sendmsg([b"\0" + dump(ask)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            answer = parse_record(end.recv(65536)[1:])
            assert (answer["op"], answer["error"]) == ("refused", "usage")
        assert service.out("echo on") == "on"


def test_files_pipes_sockets_and_devices_are_streams(hosted: Box, outside: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, (outside / "file").open("w+b") as file, Path("/dev/zero").open("rb") as zero:
        fifo = os.open(outside / "fifo", os.O_RDWR)
        for fd in (theirs.fileno(), file.fileno(), zero.fileno(), fifo):
            done = run(hosted, (fd, subprocess.PIPE, subprocess.PIPE), "run", "/bin/echo", "here")
            assert (done.returncode, done.stdout) == (0, b"here\n"), describe(done)
        os.close(fifo)
