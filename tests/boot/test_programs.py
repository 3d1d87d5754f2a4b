# SPDX-License-Identifier: Apache-2.0
"""A program that runs inside behaves as if it ran without us: streams, signals, exit codes."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import serdab
from tests.harness.command import Started, describe
from tests.recovery.processes import Family, find_family, wait_until
from tests.sandbox.conftest import Box

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

PATIENCE_S = 60.0


def start(box: Box, *argv: str, **options: object) -> Started:
    settings: dict[str, object] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": box.command.env,
        **options,
    }
    command = [*box.command.prefix, "-C", str(box.path), "run", *argv]
    return Started(command, **settings)  # type: ignore[call-overload, no-any-return]


def wait_for_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
    assert ready, "the program did not say anything"
    return process.stdout.readline().strip()


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def wait_status(pid: int, master: int) -> int:
    """Return the wait status of a process on a pty; its last words are read, or it cannot end."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if select.select([master], [], [], 0.02)[0]:
            try:
                os.read(master, 4096)
            except OSError:
                time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("it did not end in time")


class TestExitCodes:
    @pytest.mark.parametrize("code", [0, 1, 2, 77, 125, 255])
    def test_the_program_s_own_code_is_ours(self, hosted: Box, code: int) -> None:
        assert hosted.run("/bin/sh", "-c", f"exit {code}").returncode == code

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
    def test_death_by_a_signal_is_128_plus_its_number(self, hosted: Box, number: int) -> None:
        result = hosted.run("/bin/sh", "-c", f"kill -{int(number)} $$")
        assert result.returncode == 128 + number, describe(result)

    def test_a_program_that_is_not_there_is_127(self, hosted: Box) -> None:
        result = hosted.run("/bin/nothing")
        assert result.returncode == 127
        assert b"/bin/nothing" in result.stderr

    @pytest.mark.parametrize("path", ["/bin", "/bin/."])
    def test_what_cannot_be_executed_is_126(self, hosted: Box, path: str) -> None:
        assert hosted.run(path).returncode == 126

    @pytest.mark.parametrize("path", ["/etc/passwd", "/usr/bin/true", "/binary"])
    def test_a_program_outside_the_entry_points_is_126(self, hosted: Box, path: str) -> None:
        result = hosted.run(path)
        assert result.returncode == 126
        assert b"entry point" in result.stderr
        assert b"/bin" in result.stderr

    @pytest.mark.parametrize("path", ["bin/true", "true", "/bin/../bin/true"])
    def test_a_path_that_is_not_plain_is_refused(self, hosted: Box, path: str) -> None:
        assert hosted.run(path).returncode == 125


class TestStreams:
    def test_a_pipe_is_read_and_written(self, hosted: Box) -> None:
        payload = os.urandom(1 << 20)
        result = hosted.run("/bin/cat", stdin=payload)
        assert result.returncode == 0
        assert result.stdout == payload

    def test_standard_error_is_its_own(self, hosted: Box) -> None:
        result = hosted.run("/bin/sh", "-c", "echo out; echo err >&2")
        assert (result.stdout, result.stderr) == (b"out\n", b"err\n")

    def test_a_closed_pipe_ends_the_writer(self, hosted: Box) -> None:
        with start(hosted, "/bin/yes") as process:
            assert wait_for_line(process) == b"y"
            assert process.stdout is not None
            process.stdout.close()
            assert process.wait(PATIENCE_S) == 128 + signal.SIGPIPE

    def test_closed_standard_streams_are_dev_null(self, hosted: Box) -> None:
        command = ["sh", "-c", '"$@" <&- >&-', "sh", *hosted.command.prefix]
        command += ["-C", str(hosted.path), "run", "/bin/cat"]
        result = subprocess.run(command, env=hosted.command.env, capture_output=True, check=False)
        assert result.returncode == 0, describe(result)

    def test_no_terminal_is_needed(self, hosted: Box) -> None:
        process = start(hosted, "/bin/echo", "hello", start_new_session=True)
        assert finish(process)[:2] == (0, b"hello\n")


class TestSignals:
    @pytest.mark.parametrize(
        "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1]
    )
    def test_a_signal_to_us_reaches_the_program(self, hosted: Box, number: signal.Signals) -> None:
        name = number.name.removeprefix("SIG")
        script = f"trap 'echo got; exit 7' {name}; echo ready; while :; do sleep 0.05; done"
        process = start(hosted, "/bin/sh", "-c", script, start_new_session=True)
        assert wait_for_line(process) == b"ready"
        process.send_signal(number)
        assert finish(process)[:2] == (7, b"got\n")

    def test_a_signal_to_the_group_reaches_the_program_once(self, hosted: Box) -> None:
        script = (
            "n=0; trap 'n=$((n+1))' TERM; echo ready; while [ $n -eq 0 ]; do sleep 0.05; done;"
            " i=0; while [ $i -lt 10 ]; do sleep 0.05; i=$((i+1)); done; echo $n; exit 9"
        )
        process = start(hosted, "/bin/sh", "-c", script, start_new_session=True)
        assert wait_for_line(process) == b"ready"
        os.killpg(process.pid, signal.SIGTERM)
        assert finish(process)[:2] == (9, b"1\n")

    def test_a_program_may_ignore_sigterm(self, hosted: Box) -> None:
        script = "trap '' TERM; echo ready; read line; echo $line"
        process = start(hosted, "/bin/sh", "-c", script)
        assert wait_for_line(process) == b"ready"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(b"still here\n", timeout=PATIENCE_S)
        assert (process.returncode, out) == (0, b"still here\n")

    def test_timeout_ends_it(self, hosted: Box) -> None:
        command = ["timeout", "2", *hosted.command.prefix, "-C", str(hosted.path)]
        command += ["run", "/bin/sleep", "60"]
        result = subprocess.run(
            command, env=hosted.command.env, capture_output=True, check=False, timeout=PATIENCE_S
        )
        assert result.returncode == 124, describe(result)

    def test_what_was_ignored_stays_ignored(self, hosted: Box) -> None:
        command = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *hosted.command.prefix]
        command += ["-C", str(hosted.path), "run", "/bin/cat", "/proc/self/status"]
        result = subprocess.run(command, env=hosted.command.env, capture_output=True, check=False)
        ignored = [line for line in result.stdout.splitlines() if line.startswith(b"SigIgn")]
        assert int(ignored[0].split()[1], 16) & 1 << (signal.SIGHUP - 1)

    def test_nothing_else_is_ignored_or_blocked(self, hosted: Box) -> None:
        fields = dict(
            line.split(":", 1)
            for line in hosted.out("/bin/cat", "/proc/self/status").splitlines()
            if line.startswith("Sig")
        )
        assert int(fields["SigBlk"], 16) == 0
        assert int(fields["SigIgn"], 16) & 0x7FFFFFFF == 0


class TestProcesses:
    def test_two_hundred_children_are_born_and_reaped(self, hosted: Box) -> None:
        script = "i=0; while [ $i -lt 200 ]; do sleep 0.2 & i=$((i+1)); done; wait; echo all"
        assert hosted.out("/bin/sh", "-c", script) == "all"

    def test_what_the_program_leaves_behind_ends_with_it(self, hosted: Box) -> None:
        mark = f"6{os.getpid()}"
        assert hosted.out("/bin/sh", "-c", f"sleep {mark} & echo on") == "on"
        assert not find_processes(f"sleep\0{mark}\0".encode())

    def test_orphans_are_reaped(self, hosted: Box) -> None:
        script = (
            "orphan=$(sleep 0.1 >/dev/null & echo $!);"
            " while [ -e /proc/$orphan ]; do sleep 0.02; done; echo reaped $((orphan > 1))"
        )
        assert hosted.out("/bin/sh", "-c", script) == "reaped 1"

    def test_the_environment_is_filtered(self, hosted: Box) -> None:
        env = {"OCCLUM": "no", "SECRET": "x", "EXAMPLE": "from outside", "TERM": "vt52"}
        result = hosted.command.run("-C", hosted.path, "run", "/bin/env", env=env)
        lines = result.stdout.decode().splitlines()
        assert "OCCLUM=yes" in lines
        assert "EXAMPLE=from outside" in lines
        assert "TERM=vt52" in lines
        assert not any(line.startswith(("SECRET=", "HOME=", "OCCLUM=no")) for line in lines)

    def test_argv_is_passed_as_it_is(self, hosted: Box) -> None:
        script = 'echo "$0|$#"; for a in "$@"; do echo "[$a]"; done'
        out = hosted.out("/bin/sh", "-c", script, "name", "", "a b", "-x", "ä")
        assert out.splitlines() == ["name|4", "[]", "[a b]", "[-x]", "[ä]"]

    def test_a_long_command_line_is_passed_whole(self, hosted: Box) -> None:
        text = "x" * 100_000
        assert hosted.out("/bin/sh", "-c", "echo ${#1}", "sh", text) == "100000"

    def test_the_umask_is_the_caller_s(self, hosted: Box) -> None:
        command = ["sh", "-c", 'umask 027; "$@"', "sh", *hosted.command.prefix]
        command += ["-C", str(hosted.path), "run", "/bin/sh", "-c", "umask"]
        result = subprocess.run(command, env=hosted.command.env, capture_output=True, check=False)
        assert result.stdout == b"0027\n", describe(result)

    def test_what_is_written_is_there_in_the_next_run(self, hosted: Box) -> None:
        mark = os.urandom(8).hex()
        hosted.out("/bin/sh", "-c", f"echo {mark} > /root/note")
        assert hosted.out("/bin/cat", "/root/note") == mark

    def test_a_second_run_at_the_same_time_is_refused(self, hosted: Box) -> None:
        process = start(hosted, "/bin/sh", "-c", "echo on; read line; exit 0")
        assert wait_for_line(process) == b"on"
        second = hosted.run("/bin/true")
        assert second.returncode == 125
        assert b"in use" in second.stderr
        assert finish(process)[0] == 0
        assert hosted.run("/bin/true").returncode == 0


class TestTerminal:
    rest = b""  # what was read and not looked at yet

    def run_on_pty(self, box: Box, *argv: str) -> tuple[int, int]:
        pid, master = pty.fork()
        if pid == 0:
            command = [*box.command.prefix, "-C", str(box.path), "run", *argv]
            os.execvpe(command[0], command, box.command.env)
        return pid, master

    def read_until(self, master: int, wanted: bytes, patience_s: float = PATIENCE_S) -> None:
        """Read up to and with what is wanted; what comes with it is for the next to look at."""
        deadline = time.monotonic() + patience_s
        while wanted not in self.rest:
            left_s = deadline - time.monotonic()
            assert left_s > 0, self.rest
            if select.select([master], [], [], left_s)[0]:
                try:
                    self.rest += os.read(master, 4096)
                except OSError:
                    break
        assert wanted in self.rest, self.rest
        self.rest = self.rest.partition(wanted)[2]

    def test_ctrl_c_reaches_the_program(self, hosted: Box) -> None:
        script = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.05; done"
        pid, master = self.run_on_pty(hosted, "/bin/sh", "-c", script)
        self.read_until(master, b"ready\r\n")
        os.write(master, b"\x03")
        self.read_until(master, b"caught\r\n")
        assert os.waitstatus_to_exitcode(wait_status(pid, master)) == 3
        os.close(master)

    def test_a_caller_that_hears_ctrl_c_after_the_program_ended_does_not_die_of_it(
        self, hosted: Box
    ) -> None:
        script = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.05; done"
        pid, master = self.run_on_pty(hosted, "/bin/sh", "-c", script)
        self.read_until(master, b"ready\r\n")
        inside = find_family(pid, hosted.path).inside
        os.kill(pid, signal.SIGSTOP)
        os.write(master, b"\x03")
        self.read_until(master, b"caught\r\n")
        wait_until(lambda: not any(member.is_alive() for member in inside), "the program's end")
        os.kill(pid, signal.SIGCONT)
        assert os.waitstatus_to_exitcode(wait_status(pid, master)) == 3
        os.close(master)

    def test_ctrl_c_kills_a_program_that_does_not_care(self, hosted: Box) -> None:
        pid, master = self.run_on_pty(hosted, "/bin/sh", "-c", "echo ready; exec sleep 60")
        self.read_until(master, b"ready\r\n")
        os.write(master, b"\x03")
        # By the signal itself, or a shell would not leave its loop; $? is 130 all the same.
        assert os.WTERMSIG(wait_status(pid, master)) == signal.SIGINT
        os.close(master)

    def test_ctrl_z_stops_it_and_it_goes_on(self, hosted: Box) -> None:
        inner = [*hosted.command.prefix, "-C", str(hosted.path), "run", "/bin/sh", "-c"]
        inner += ["echo ready; read line; echo got $line"]
        quoted = " ".join(f"'{part}'" for part in inner)
        script = f"set -m; {quoted}; echo stopped=$?; fg; echo done=$?"
        pid, master = pty.fork()
        if pid == 0:
            os.execvpe("bash", ["bash", "-c", script], hosted.command.env)
        self.read_until(master, b"ready\r\n")
        os.write(master, b"\x1a")
        self.read_until(master, b"stopped=148")
        os.write(master, b"hello\n")
        self.read_until(master, b"got hello")
        self.read_until(master, b"done=0")
        wait_status(pid, master)
        os.close(master)

    def test_a_shell_inside_has_job_control(self, hosted: Box) -> None:
        pid, master = self.run_on_pty(hosted, "/bin/sh", "-i")
        self.read_until(master, b"/ # ")
        os.write(master, b"sh -c 'echo be''gun; exec sleep 60'\n")
        self.read_until(master, b"begun\r\n")
        os.write(master, b"\x1a")
        self.read_until(master, b"Stopped")
        os.write(master, b"kill -9 %1\n")
        # It is told at the first prompt after its death, whichever that is.
        deadline = time.monotonic() + PATIENCE_S
        while b"Killed" not in self.rest:
            assert time.monotonic() < deadline, self.rest
            os.write(master, b"jobs\n")
            if select.select([master], [], [], 0.2)[0]:
                self.rest += os.read(master, 4096)
        os.write(master, b"exit 5\n")
        assert os.waitstatus_to_exitcode(wait_status(pid, master)) == 5
        os.close(master)

    def test_the_terminal_has_a_name(self, hosted: Box) -> None:
        pid, master = self.run_on_pty(hosted, "/bin/busybox", "tty")
        self.read_until(master, b"/dev/console")
        wait_status(pid, master)
        os.close(master)


def find_processes(wanted: bytes) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                command = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if wanted in command:
                found.append(int(entry))
    return found


class TestNothingIsLeft:
    @pytest.fixture
    def running(self, hosted: Box) -> Iterator[tuple[subprocess.Popen[bytes], Family]]:
        script = "echo written > /root/late; sync; sleep 1000 & echo ready; wait"
        with start(hosted, "/bin/sh", "-c", script) as process:
            assert wait_for_line(process) == b"ready"
            family = find_family(process.pid, hosted.path)
            yield process, family
            for member in family.everybody():
                member.kill()

    @pytest.mark.parametrize(
        "victim", ["caller", "kernel", "pid 1", "fs server", "nursery", "program"]
    )
    def test_after_kill_9_of(
        self,
        hosted: Box,
        running: tuple[subprocess.Popen[bytes], Family],
        victim: str,
    ) -> None:
        process, family = running
        below = [member for member in family.everybody() if member != family.cli]
        (nursery,) = (member for member in family.servers if member.name() != "serdab-fs")
        # Its child has its name too until it becomes sleep(1), and its parent those that sync.
        (program,) = (
            member
            for member in family.inside
            if member.parent() == family.launcher.pid and member.name() == "sh"
        )
        {
            "caller": family.cli,
            "kernel": family.kernel,
            "pid 1": family.launcher,
            "fs server": family.volume,
            "nursery": nursery,
            "program": program,
        }[victim].kill()
        if victim in ("fs server", "nursery"):
            # The program lives on, without its files or with them; nothing hangs.
            process.terminate()
        gone = [*below, family.cli] if victim == "caller" else below
        wait_until(lambda: not any(member.is_alive() for member in gone), "the end of all of it")
        process.communicate(timeout=PATIENCE_S)
        again = hosted.run("/bin/cat", "/root/late")
        assert (again.returncode, again.stdout) == (0, b"written\n"), describe(again)


def test_an_fs_server_that_is_silent_is_named_while_it_is_waited_for(hosted: Box) -> None:
    process = start(hosted, "/bin/sh", "-c", "echo written > /root/late; echo ready; read end")
    assert wait_for_line(process) == b"ready"
    volume = find_family(process.pid, hosted.path).volume
    volume.kill(signal.SIGSTOP)
    try:
        process.terminate()
        assert process.stderr is not None
        # It is said of the last process inside first, should that take long to end.
        waiting = b": root FS: waiting for its fs server to make everything durable\n"
        assert any(line.endswith(waiting) for line in process.stderr)
    finally:
        volume.kill(signal.SIGCONT)
    assert finish(process) == (128 + signal.SIGTERM, b"", b"")
    again = hosted.run("/bin/cat", "/root/late")
    assert (again.returncode, again.stdout) == (0, b"written\n"), describe(again)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_what_keys_send_after_the_program_s_end_is_died_of(
    hosted: Box, number: signal.Signals
) -> None:
    """A shell's loop over programs that are faster than their instances are closed ends too."""
    process = start(hosted, "/bin/sh", "-c", "echo written > /root/late; echo ready; read end")
    assert wait_for_line(process) == b"ready"
    family = find_family(process.pid, hosted.path)
    family.volume.kill(signal.SIGSTOP)
    try:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None  # communicate() would flush it
        # Taken down by the kernel process, which is asked to by a caller that knows of the end.
        wait_until(lambda: not family.launcher.is_alive(), "pid 1 is still there")
        process.send_signal(number)
    finally:
        family.volume.kill(signal.SIGCONT)
    assert process.wait(PATIENCE_S) == -number
    finish(process)


IGNORED = ("HUP", "INT", "QUIT", "USR1", "USR2", "PIPE", "ALRM", "TERM", "TSTP", "XFSZ", "WINCH")


@pytest.mark.parametrize("names", [("PIPE",), IGNORED], ids=["PIPE", "all"])
def test_what_the_caller_ignores_the_program_ignores(hosted: Box, names: tuple[str, ...]) -> None:
    """An interpreter forgets of SIGPIPE and SIGXFSZ what they were: the command itself does not."""
    door = hosted.path.parent / "door"
    shutil.copy(Path(serdab.__file__).parent / f"init/bin/{os.uname().machine}/door", door)
    python = hosted.command.prefix.index("-m") - 1
    words = [*hosted.command.prefix[:python], str(door), *hosted.command.prefix[python:]]
    words += ["-C", str(hosted.path), "run", "/bin/cat", "/proc/self/status"]
    ignoring = ["sh", "-c", f"trap '' {' '.join(names)}; \"$@\"", "sh"]
    shown = [
        subprocess.run(
            [*ignoring, *command], env=hosted.command.env, capture_output=True, check=True
        ).stdout
        for command in (["cat", "/proc/self/status"], words)
    ]
    native, ours = (re.findall(rb"SigIgn:\s*([0-9a-f]+)", text)[0] for text in shown)
    libc = 3 << 31  # 32 and 33, which the C library uses and does not let anybody have
    assert int(ours, 16) & ~libc == int(native, 16) & ~libc


def test_a_caller_that_ignores_the_end_of_its_children(hosted: Box) -> None:
    ignoring = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
    ignoring += "os.execvp(sys.argv[1], sys.argv[1:])"
    words = [sys.executable, "-c", ignoring, *hosted.command.prefix]
    words += ["-C", str(hosted.path), "run", "/bin/true"]
    result = subprocess.run(words, env=hosted.command.env, capture_output=True, check=False)
    assert result.returncode == 0, describe(result)


def test_nothing_but_the_three_streams_is_passed_on(hosted: Box) -> None:
    reader, writer = os.pipe()
    try:
        process = start(hosted, "/bin/probe", "fds", pass_fds=(writer,))
        assert finish(process)[:2] == (0, b"0 1 2 \n")
    finally:
        os.close(reader)
        os.close(writer)
