# SPDX-License-Identifier: Apache-2.0
"""Programs of a service at a terminal: it is theirs as if they ran there."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.service.conftest import Service, Typist, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

SitDown = Callable[..., Typist]


def sit(at_terminal: SitDown, service: Service, *argv: str, **more: object) -> Typist:
    return at_terminal(service.words("exec", *argv), service.box.command.env, **more)


def test_ten_interactive_shells_side_by_side(running: Service, at_terminal: SitDown) -> None:
    people = [sit(at_terminal, running, "/bin/sh", "-i", size=(20 + n, 70 + n)) for n in range(10)]
    for person in people:
        person.wait_for("# ")
    for number, person in enumerate(people):
        person.type(f"echo I am {number}''th; busybox tty; busybox stty size\n")
    names = set()
    for number, person in enumerate(people):
        person.wait_for(f"I am {number}th\r\n")
        names.add(person.wait_for("\r\n").strip())
        person.wait_for(f"{20 + number} {70 + number}\r\n")
    assert len(names) == 10
    assert all(name.startswith("/dev/pts/") for name in names)
    for number, person in enumerate(people):
        # Said by the job itself: it is in the foreground by then.
        job = "sh -c 'echo be\"\"gun; exec sleep 1000'"
        person.type(f"{job} | cat\n" if number % 2 else f"{job}\n")
    for person in people:
        person.wait_for("begun\r\n")
        person.type("\x03")
        person.wait_for("# ")
    for number, person in enumerate(people):
        person.type(f"exit {number}\n")
    assert [person.wait() for person in people] == list(range(10))
    assert all(person.are_modes_back() for person in people)


class TestWindow:
    def test_a_program_is_told_when_it_changes(
        self, running: Service, at_terminal: SitDown
    ) -> None:
        script = "trap 'busybox stty size' WINCH; echo rea''dy; while :; do sleep 0.05; done"
        person = sit(at_terminal, running, "/bin/sh", "-c", script, size=(24, 80))
        person.wait_for("ready")
        person.resize(50, 132)
        person.wait_for("50 132")
        person.type("\x03")
        assert person.wait() == 128 + signal.SIGINT

    def test_it_has_its_size_from_the_first_moment(
        self, running: Service, at_terminal: SitDown
    ) -> None:
        person = sit(at_terminal, running, "/bin/busybox", "stty", "size", size=(33, 99))
        person.wait_for("33 99")
        assert person.wait() == 0


class TestCtrlC:
    def test_it_reaches_a_program_that_asks_for_it(
        self, running: Service, at_terminal: SitDown
    ) -> None:
        script = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.05; done"
        person = sit(at_terminal, running, "/bin/sh", "-c", script)
        person.wait_for("ready\r\n")
        person.type("\x03")
        person.wait_for("caught")
        assert person.wait() == 3

    def test_it_ends_a_program_that_does_not_care(
        self, running: Service, at_terminal: SitDown
    ) -> None:
        person = sit(at_terminal, running, "/bin/sh", "-c", "echo ready; sleep 1000; echo no")
        person.wait_for("ready\r\n")
        person.type("\x03")
        assert person.wait() == 128 + signal.SIGINT
        assert "no" not in person.rest()
        assert person.are_modes_back()

    def test_ctrl_backslash_too(self, running: Service, at_terminal: SitDown) -> None:
        # No shell: busybox's ignores SIGQUIT every now and then.
        person = sit(at_terminal, running, "/bin/cat")
        person.type("ready\n")
        person.wait_for("ready\r\nready\r\n")
        person.type("\x1c")
        assert person.wait() == 128 + signal.SIGQUIT

    @pytest.mark.parametrize("options", [[], ["-i"]], ids=["script", "interactive"])
    def test_it_ends_a_loop(
        self, running: Service, at_terminal: SitDown, options: list[str]
    ) -> None:
        """A shell leaves its loop only for a child that died of the signal."""
        # All of the job is the user's, or one could not signal the other.
        words = running.words("exec", "/bin/sh", "-c", "echo begun; exec sleep 1000")
        python = words.index("-m") - 1
        inner = shlex.join(words[python:])
        loop = f"for i in 1 2 3; do {inner}; echo round $i; done; echo left"
        bash = [*words[:python], "bash", "--norc", "--noprofile", *options, "-c", loop]
        person = at_terminal(bash, running.box.command.env)
        person.wait_for("begun\r\n")
        person.type("\x03")
        assert person.wait() in (128 + signal.SIGINT, 1)  # 1: an interactive bash -c
        assert "round" not in person.rest()

    def test_what_the_program_does_to_itself_is_a_number(
        self, running: Service, at_terminal: SitDown
    ) -> None:
        person = sit(at_terminal, running, "/bin/sh", "-c", "read x; kill -INT $$")
        person.type("go\n")
        person.wait()
        assert os.waitstatus_to_exitcode(person.status or 0) == 128 + signal.SIGINT

    def test_ctrl_d_ends_the_input(self, running: Service, at_terminal: SitDown) -> None:
        person = sit(at_terminal, running, "/bin/cat")
        person.type("hello\n")
        person.wait_for("hello\r\nhello\r\n")
        person.type("\x04")
        assert person.wait() == 0


class TestCtrlZ:
    def outer_shell(self, at_terminal: SitDown, service: Service, script: str) -> Typist:
        """A shell with job control outside, in which ``serdab exec`` is a job."""
        inner = " ".join(f"'{word}'" for word in service.words("exec", "/bin/sh", "-c", script))
        outer = f"set -m; {inner}; echo stopped=$?; fg; echo done=$?"
        return at_terminal(["bash", "-c", outer], service.box.command.env)

    def test_it_stops_a_plain_program_and_its_client(
        self, running: Service, at_terminal: SitDown
    ) -> None:
        script = "echo ready; read line; echo got $line; exit 4"
        person = self.outer_shell(at_terminal, running, script)
        person.wait_for("ready\r\n")
        person.type("\x1a")
        person.wait_for("stopped=148")
        person.type("hello\n")
        person.wait_for("got hello")
        person.wait_for("done=4")
        assert person.wait() == 0
        assert person.are_modes_back()

    def test_the_program_stands_still_meanwhile(
        self, running: Service, at_terminal: SitDown
    ) -> None:
        path = f"/tmp/ticks-{os.getpid()}-{running.box.is_root}"
        script = f"echo ready; while :; do echo tick >> {path}; sleep 0.02; done"
        inner = " ".join(f"'{word}'" for word in running.words("exec", "/bin/sh", "-c", script))
        outer = f"set -m; {inner}; echo stopped=$?; read line; fg; echo done=$?"
        person = at_terminal(["bash", "-c", outer], running.box.command.env)
        person.wait_for("ready\r\n")
        wait_until(lambda: running.out(f"cat {path} | busybox wc -l") != "0", "no tick")
        person.type("\x1a")
        person.wait_for("stopped=148")
        before = running.out(f"busybox wc -l < {path}; sleep 0.3; busybox wc -l < {path}").split()
        assert before[0] == before[1]
        person.type("go\n")
        wait_until(lambda: running.out(f"busybox wc -l < {path}") != before[1], "not continued")
        person.type("\x03")
        # Of the signal itself: the outer shell leaves its script.
        assert person.wait() == 128 + signal.SIGINT
        assert "done=" not in person.rest()

    def test_a_program_that_stops_itself_stops_its_client_alone(
        self, running: Service, at_terminal: SitDown
    ) -> None:
        exec_ = " ".join(running.words("exec", "/bin/sh", "-c", "'kill -STOP $$; exit 4'"))
        # Another process of the job; it would stand still too.
        job = f"(sleep 1000 & echo by=$!; exec {exec_})"
        outer = f"set -m; {job}; echo stopped=$?; read line; fg; echo done=$?"
        person = at_terminal(["bash", "-c", outer], running.box.command.env)
        person.wait_for("by=")
        bystander = int(person.wait_for("\r\n"))
        person.wait_for("stopped=148")
        state = Path(f"/proc/{bystander}/stat").read_text().split()[2]
        person.type("go\n")
        person.wait_for("done=4")
        os.kill(bystander, signal.SIGKILL)
        assert state == "S"

    def test_a_shell_inside_has_jobs_of_its_own(
        self, running: Service, at_terminal: SitDown
    ) -> None:
        person = sit(at_terminal, running, "/bin/sh", "-i")
        person.wait_for("# ")
        job = 'trap "echo re\\"\\"sumed" CONT; echo be""gun; while :; do sleep 0.05; done'
        person.type(f"sh -c '{job}'\n")
        person.wait_for("begun\r\n")
        person.type("\x1a")
        person.wait_for("Stopped")
        person.wait_for("# ")
        person.type("fg\n")
        person.wait_for("resumed\r\n")
        person.type("\x03")
        person.wait_for("# ")
        person.type("exit 5\n")
        assert person.wait() == 5

    def test_where_nobody_could_continue_it_is_not_stopped(
        self, running: Service, at_terminal: SitDown
    ) -> None:
        # The client is the leader of its session: the process group is orphaned.
        person = sit(at_terminal, running, "/bin/sh", "-c", "echo ready; read line; echo got $line")
        person.wait_for("ready\r\n")
        person.type("\x1a")
        person.type("hello\n")
        person.wait_for("got hello")
        assert person.wait() == 0

    def test_a_client_without_a_terminal_stops_its_program(self, running: Service) -> None:
        script = "echo ready; read line; echo $line"
        process = subprocess.Popen(
            running.words("exec", "/bin/sh", "-c", script),
            env=running.box.command.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, signal.SIGTSTP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        os.kill(process.pid, signal.SIGCONT)
        assert process.communicate(b"on\n", timeout=60)[0] == b"on\n"
        assert process.returncode == 0


class TestMixedStreams:
    def test_output_into_a_file(
        self, running: Service, at_terminal: SitDown, tmp_path: Path
    ) -> None:
        words = " ".join(
            f"'{word}'"
            for word in running.words("exec", "/bin/sh", "-c", "read a; echo out $a; echo err >&2")
        )
        person = at_terminal(
            ["bash", "-c", f"{words} | cat > {tmp_path}/out"], running.box.command.env
        )
        person.type("in\n")
        person.wait_for("err")
        assert person.wait() == 0
        assert (tmp_path / "out").read_bytes() == b"out in\n"
        assert person.are_modes_back()

    def test_input_from_a_pipe(self, running: Service, at_terminal: SitDown) -> None:
        script = "read a; echo got $a; test -t 1 && echo terminal; test -t 0 || echo pipe"
        words = " ".join(f"'{word}'" for word in running.words("exec", "/bin/sh", "-c", script))
        person = at_terminal(["bash", "-c", f"echo in | {words}"], running.box.command.env)
        person.wait_for("got in\r\nterminal\r\npipe\r\n")
        assert person.wait() == 0

    def test_ctrl_c_with_input_from_a_pipe(self, running: Service, at_terminal: SitDown) -> None:
        words = " ".join(
            f"'{word}'" for word in running.words("exec", "/bin/sh", "-c", "echo on; sleep 1000")
        )
        person = at_terminal(["bash", "-c", f"sleep 1000 | {words}"], running.box.command.env)
        person.wait_for("on\r\n")
        person.type("\x03")
        assert person.wait() == 128 + signal.SIGINT


class TestAllIsShown:
    def test_the_last_words_of_a_long_output(self, running: Service, at_terminal: SitDown) -> None:
        script = "busybox seq 1 20000; echo last''word"
        person = sit(at_terminal, running, "/bin/sh", "-c", script)
        shown = person.wait_for("lastword")
        assert shown.count("\r\n") >= 20000
        assert person.wait() == 0

    def test_a_program_opens_its_terminal_again(
        self, running: Service, at_terminal: SitDown
    ) -> None:
        script = "echo one > /dev/tty; echo two > /dev/stdout; echo three > $(busybox tty)"
        person = sit(at_terminal, running, "/bin/sh", "-c", script)
        person.wait_for("one\r\ntwo\r\nthree\r\n")
        assert person.wait() == 0


class TestBackground:
    def test_it_shows_and_does_not_read_until_it_comes_to_the_foreground(
        self, running: Service, at_terminal: SitDown
    ) -> None:
        script = "echo ready; read line; echo got $line"
        words = " ".join(f"'{word}'" for word in running.words("exec", "/bin/sh", "-c", script))
        outer = f"set -m; {words} & read mine; echo mine=$mine; fg; echo done=$?"
        person = at_terminal(["bash", "-c", outer], running.box.command.env)
        person.wait_for("ready")
        person.type("first\n")
        person.wait_for("mine=first")
        person.wait_for("/bin/sh")  # fg shows the command
        person.type("second\n")
        person.wait_for("got second")
        person.wait_for("done=0")
        assert person.wait() == 0


class TestEnds:
    def test_the_terminal_is_put_back_when_the_program_is_refused(
        self, running: Service, at_terminal: SitDown
    ) -> None:
        person = sit(at_terminal, running, "/bin/none")
        person.wait_for("no such program")
        assert person.wait() == 127
        assert person.are_modes_back()

    def test_a_closed_window_hangs_up(self, running: Service, at_terminal: SitDown) -> None:
        path = f"/tmp/hung-{os.getpid()}-{running.box.is_root}"
        script = f"trap 'echo hung up > {path}; exit' HUP; echo ready; while :; do sleep 0.05; done"
        person = sit(at_terminal, running, "/bin/sh", "-c", script)
        person.wait_for("ready\r\n")
        os.kill(person.pid, signal.SIGHUP)
        wait_until(lambda: running.exec("/bin/cat", path).returncode == 0, "no hang-up")

    def test_a_killed_client_hangs_up(self, running: Service, at_terminal: SitDown) -> None:
        path = f"/tmp/killed-{os.getpid()}-{running.box.is_root}"
        script = f"trap 'echo hung up > {path}; exit' HUP; echo ready; while :; do sleep 0.05; done"
        person = sit(at_terminal, running, "/bin/sh", "-c", script)
        person.wait_for("ready\r\n")
        os.kill(person.pid, signal.SIGKILL)
        person.wait()
        wait_until(lambda: running.exec("/bin/cat", path).returncode == 0, "no hang-up")
        wait_until(lambda: running.status()["programs"] == [], "the program stayed")
