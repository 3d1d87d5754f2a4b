# SPDX-License-Identifier: Apache-2.0
"""``serdab run`` in a shell's hands: jobs are what they would be without us.

A real bash with job control drives a real terminal. Every script is typed; what is looked for is
said by a program, never typed in that form, since the terminal echoes what is typed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.instances import wait_until_unused
from tests.recovery.processes import descendants, wait_until
from tests.sandbox.conftest import Box, Place
from tests.service.conftest import Typist

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

PROMPT = "ready$ "


class Bash:
    """Somebody at a terminal with an interactive bash. ``$a`` and ``$b`` run in two instances."""

    def __init__(self, box: Box, other: Box) -> None:
        env = {**box.command.env, "PS1": PROMPT, "TERM": "dumb", "HISTFILE": ""}
        # All of the job is the user's, or one could not signal the other.
        python = box.command.prefix.index("-m") - 1
        become = box.command.prefix[:python]
        shell = [*become, "bash", "--norc", "--noprofile", "--noediting", "-i"]
        self.person = Typist(shell, env)
        self.person.wait_for(PROMPT)
        for name, where in (("a", box), ("b", other)):
            words = [*where.command.prefix[python:], "-C", str(where.path), "run"]
            self.say(f"alias {name}={shlex.quote(shlex.join(words))}")
            self.say(f"export {name}x={shlex.quote(shlex.join(words))}")

    def say(self, line: str) -> str:
        """Type a line; return what is shown up to the next prompt."""
        self.person.type(f"{line}\n")
        return self.until(PROMPT)

    def begin(self, line: str) -> None:
        """Type a line that does not come back to the prompt by itself."""
        self.person.type(f"{line}\n")

    def type(self, text: str) -> None:
        """Type."""
        self.person.type(text)

    def until(self, wanted: str) -> str:
        """Return what is shown up to ``wanted``."""
        return self.person.wait_for(wanted)

    def has_terminal(self) -> bool:
        """Return whether the shell is the terminal's foreground job again."""
        return os.tcgetpgrp(self.person.master) == self.person.pid

    def has_run(self) -> bool:
        """Return whether a job of ``serdab run`` has the terminal, and none inside."""
        with contextlib.suppress(OSError):
            group = os.tcgetpgrp(self.person.master)
            return b"run" in Path(f"/proc/{group}/cmdline").read_bytes().split(b"\0")
        return False

    def is_booting(self) -> bool:
        """Return whether ``serdab run`` has started processes of its own."""
        with contextlib.suppress(OSError):
            group = os.tcgetpgrp(self.person.master)
            started = Path(f"/proc/{group}/task/{group}/children").read_text()
            return self.has_run() and bool(started)
        return False

    def has_job(self, wanted: bytes) -> bool:
        """Return whether a process of the terminal's job, not its first, is one of these."""
        group = os.tcgetpgrp(self.person.master)
        for pid in in_session(self.person.pid):
            with contextlib.suppress(OSError):
                is_of_it = pid != group and os.getpgid(pid) == group
                if is_of_it and wanted in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return True
        return False

    def end(self) -> None:
        """End the shell, and all that it started."""
        for pid in in_session(self.person.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.person.close()


@pytest.fixture(scope="session")
def two_boxes(place: Place, probe_program: Path) -> tuple[Box, Box]:
    return place.build(probe_program), place.build(probe_program)


@pytest.fixture
def scripts(two_boxes: tuple[Box, Box]) -> Path:
    """A directory that the user can read."""
    path = Path(tempfile.mkdtemp(dir=two_boxes[0].path.parent))
    path.chmod(0o755)
    return path


@pytest.fixture
def bash(two_boxes: tuple[Box, Box]) -> Iterator[Bash]:
    shell = Bash(*two_boxes)
    yield shell
    shell.end()
    for box in two_boxes:
        wait_until_unused(box.path)


def in_session(leader: int) -> list[int]:
    """Return the processes of a session, but for its leader."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.getsid(int(name)) == leader != int(name):
                found.append(int(name))
    return found


def waiting(word: str) -> str:
    """Return a script inside that says the word and then waits for ever."""
    return f"echo {word[0]}''{word[1:]}; while :; do sleep 0.05; done"


class TestForeground:
    def test_a_program_reads_what_is_typed(self, bash: Bash) -> None:
        bash.begin("a /bin/sh -c 'read x; echo got:$x'; echo status:$?")
        bash.type("hello\n")
        bash.until("got:hello\r\n")
        bash.until("status:0\r\n")
        bash.until(PROMPT)
        assert bash.has_terminal()

    def test_a_shell_inside_has_its_own_jobs_and_gives_the_terminal_back(self, bash: Bash) -> None:
        bash.begin("a /bin/sh -i; echo status:$?")
        bash.until("/ # ")
        bash.begin("sh -c 'echo be''gun; exec sleep 1000'")
        bash.until("begun\r\n")
        bash.type("\x1a")
        bash.until("Stopped")
        bash.until("/ # ")
        bash.begin("exit 6")
        bash.until("stopped jobs")
        bash.begin("exit 6")
        bash.until("status:6\r\n")
        bash.until(PROMPT)
        assert bash.has_terminal()

    def test_a_program_that_reads_nothing_never_takes_the_terminal(self, bash: Bash) -> None:
        bash.begin(f"a /bin/sh -c {shlex.quote(waiting('begun'))}")
        bash.until("begun\r\n")
        assert bash.has_run()
        bash.type("\x03")
        bash.until(PROMPT)

    def test_a_program_is_told_of_a_new_size(self, bash: Bash) -> None:
        script = "trap 'busybox stty size' WINCH; echo be''gun; while :; do sleep 0.05; done"
        bash.begin(f"a /bin/sh -c {shlex.quote(script)}")
        bash.until("begun\r\n")
        bash.person.resize(44, 133)
        bash.until("44 133")
        bash.type("\x03")
        bash.until(PROMPT)

    def test_stty_inside_changes_the_terminal(self, bash: Bash) -> None:
        bash.say("a /bin/busybox stty -echo")
        assert "quiet" not in bash.say("true quiet").removesuffix(PROMPT)
        bash.say("stty echo")


class TestPipelines:
    def test_the_terminal_stays_with_a_pager_at_the_end(self, bash: Bash) -> None:
        # As less(1) does: data from the pipe, keys from the terminal, in another mode.
        pager = (
            "import sys,termios,tty; data=sys.stdin.read(); t=open('/dev/tty','rb',0);"
            "before=termios.tcgetattr(t); tty.setcbreak(t);"
            "print('key'+'?', len(data), flush=True);"
            "k=t.read(1); termios.tcsetattr(t,termios.TCSANOW,before); print('pressed:'+k.decode())"
        )
        bash.begin(f"a /bin/sh -c 'echo 12345' | python3 -c {shlex.quote(pager)}; echo status:$?")
        bash.until("key? 6")
        bash.type("q")
        bash.until("pressed:q")
        bash.until("status:0")
        bash.until(PROMPT)
        assert bash.has_terminal()

    def test_a_pager_gets_the_terminal_after_the_program_had_it(self, bash: Bash) -> None:
        pager = (
            "import sys; sys.stdin.readline(); t=open('/dev/tty'); print('key'+'?', flush=True);"
            "print('pressed:'+t.readline())"
        )
        script = "read x; echo $x; sleep 1000"
        bash.begin(f"a /bin/sh -c {shlex.quote(script)} | python3 -c {shlex.quote(pager)}")
        bash.type("one\n")
        bash.until("key?")
        bash.type("two\n")
        bash.until("pressed:two")
        wait_until(bash.has_run, "the program keeps the terminal")
        bash.type("\x03")
        bash.until(PROMPT)
        assert bash.has_terminal()

    def test_two_runs_in_a_pipeline(self, bash: Bash) -> None:
        # No cat: it holds the pipe locked while it waits for the terminal, in sendfile(2).
        copy = "while read x; do echo $x; done"
        bash.begin(f"a /bin/sh -c '{copy}' | b /bin/sh -c 'read x; echo got:$x'; echo status:$?")
        bash.type("hello\n")
        bash.until("got:hello\r\n")
        bash.type("\x04")
        bash.until("status:0\r\n")
        bash.until(PROMPT)
        assert bash.has_terminal()

    def test_two_runs_in_a_pipeline_that_both_want_the_terminal(self, bash: Bash) -> None:
        first = "read x; echo from $x; sleep 1000"
        second = "read y; echo sec''ond; read z </dev/tty; echo $y and $z"
        bash.begin(f"a /bin/sh -c {shlex.quote(first)} | b /bin/sh -c {shlex.quote(second)}")
        bash.type("one\n")
        bash.until("second\r\n")
        bash.type("two\n")
        bash.until("from one and two\r\n")
        wait_until(bash.has_run, "the second one keeps the terminal")
        bash.type("\x03")
        bash.until(PROMPT)
        assert bash.has_terminal()

    def test_ctrl_c_ends_the_whole_pipeline(self, bash: Bash) -> None:
        bash.begin(f"a /bin/sh -c {shlex.quote(waiting('begun'))} | sed -u p | cat; echo no''t")
        bash.until("begun\r\n")
        bash.type("\x03")
        shown = bash.until(PROMPT)
        assert "not\r\n" not in shown

    def test_command_substitution_gets_the_output_and_the_keyboard(self, bash: Bash) -> None:
        bash.begin("x=$(a /bin/sh -c 'read x; echo in-$x'); echo got:$x")
        bash.type("side\n")
        bash.until("got:in-side\r\n")
        bash.until(PROMPT)
        assert bash.has_terminal()


class TestLoops:
    @pytest.mark.parametrize("has_it", [False, True], ids=["ours", "the program's"])
    def test_one_ctrl_c_ends_a_loop(self, bash: Bash, *, has_it: bool) -> None:
        """Whoever has the terminal when it is typed."""
        script = "read x; " if has_it else ""
        script += waiting("begun")
        bash.begin(f"for i in 1 2 3; do a /bin/sh -c {shlex.quote(script)}; echo round $i; done")
        if has_it:
            bash.type("go\n")
        bash.until("begun\r\n")
        bash.type("\x03")
        assert "round 1" not in bash.until(PROMPT)
        assert "130\r\n" in bash.say("echo $?")

    def test_one_ctrl_c_during_the_boot_ends_a_loop(self, bash: Bash) -> None:
        bash.begin("for i in 1 2 3; do a /bin/sleep 1000; echo rou''nd; done")
        wait_until(bash.is_booting, "it does not begin")
        bash.type("\x03")
        assert "round" not in bash.until(PROMPT).replace("rou''nd", "")

    def test_ctrl_c_through_timeout_is_died_of(self, two_boxes: tuple[Box, Box]) -> None:
        """It sends what the terminal did once more; the boot is held up meanwhile."""
        box = two_boxes[0]
        words = [*box.command.prefix, "-C", str(box.path), "run", "/bin/true"]
        person = Typist(["timeout", "60", *words], box.command.env)
        lock = os.open(box.path / "run", os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            person.wait_for("waiting for the last run")
            person.type("\x03")
            person.wait()
            assert os.WTERMSIG(person.status or 0) == signal.SIGINT
        finally:
            os.close(lock)
            person.close()

    @pytest.mark.parametrize("has_it", [False, True], ids=["ours", "the program's"])
    @pytest.mark.parametrize("shell", ["bash", "dash"])
    def test_one_ctrl_c_ends_a_script(
        self, bash: Bash, scripts: Path, shell: str, *, has_it: bool
    ) -> None:
        script = scripts / "script"
        inner = ("read x; " if has_it else "") + waiting("begun")
        script.write_text(
            f"for i in 1 2 3; do $ax /bin/sh -c {shlex.quote(inner)}; echo $i; done\n"
        )
        bash.begin(f"{shell} {script}; echo left:$?")
        if has_it:
            bash.type("go\n")
        bash.until("begun\r\n")
        bash.type("\x03")
        shown = bash.until(PROMPT)
        assert "begun" not in shown
        assert "left" not in shown

    def test_a_program_that_handles_ctrl_c_does_not_end_the_loop(self, bash: Bash) -> None:
        script = "trap 'exit 3' INT; read x; echo be''gun; while :; do sleep 0.05; done"
        bash.begin(f"for i in 1 2; do a /bin/sh -c {shlex.quote(script)}; echo round $i=$?; done")
        for number in (1, 2):
            bash.type("go\n")
            bash.until("begun\r\n")
            bash.type("\x03")
            bash.until(f"round {number}=3\r\n")
        bash.until(PROMPT)

    @pytest.mark.parametrize("how", ["make", "xargs", "timeout"])
    def test_ctrl_c_ends_what_starts_it(self, bash: Bash, scripts: Path, how: str) -> None:
        inner = f"$ax /bin/sh -c {shlex.quote(waiting('begun'))}"
        (scripts / "script").write_text(inner + "\n")
        (scripts / "Makefile").write_text(f"all:\n\t@sh {scripts}/script; echo on''ward\n")
        bash.begin(
            {
                "make": f"make -s -C {scripts}",
                "xargs": f"echo {scripts}/script | xargs -P 2 -n 1 sh",
                "timeout": f"timeout --foreground 60 sh {scripts}/script",
            }[how]
        )
        bash.until("begun\r\n")
        bash.type("\x03")
        assert "onward" not in bash.until(PROMPT)
        assert bash.has_terminal()
        assert bash.say("echo $?").splitlines()[1] in ("130", "2", "1", "124", "255", "0")

    def test_xargs_runs_two_at_once(self, bash: Bash) -> None:
        line = "printf '%s\\n' \"$ax\" \"$bx\" | xargs -P 2 -I{} sh -c '{} /bin/echo do''ne'"
        shown = bash.say(line)
        assert shown.count("done\r\n") == 2

    def test_timeout_ends_it(self, bash: Bash) -> None:
        assert "status:124" in bash.say("timeout 2 $ax /bin/sleep 1000; echo status:$?")


class TestJobs:
    def test_ctrl_z_and_fg(self, bash: Bash) -> None:
        script = "echo be''gun; read x; echo got:$x; exit 4"
        bash.begin(f"a /bin/sh -c {shlex.quote(script)}")
        bash.until("begun\r\n")
        bash.type("\x1a")
        bash.until("Stopped")
        bash.until(PROMPT)
        assert bash.has_terminal()
        bash.begin("fg; echo status:$?")
        bash.type("hello\n")
        bash.until("got:hello\r\n")
        bash.until("status:4\r\n")
        bash.until(PROMPT)
        assert bash.has_terminal()

    @pytest.mark.parametrize("has_it", [False, True], ids=["ours", "the program's"])
    def test_ctrl_z_stops_the_program_and_bg_continues_it(
        self, bash: Bash, *, has_it: bool
    ) -> None:
        mark = f"/tmp/ticks{os.getpid()}{has_it}"
        script = ("read x; " if has_it else "") + "echo be''gun; i=0;"
        script += f" while :; do i=$((i+1)); echo $i > /host/{os.path.basename(mark)}; done"
        bash.begin(f"a /bin/sh -c {shlex.quote(script)}")
        if has_it:
            bash.type("go\n")
        bash.until("begun\r\n")
        bash.type("\x1a")
        bash.until("Stopped")
        bash.until(PROMPT)
        inside = bash.say("ps -o stat= -p $(jobs -p)").splitlines()
        assert any(line.startswith("T") for line in inside)
        bash.say("bg")
        assert "Running" in bash.say("jobs")
        assert bash.has_terminal()
        bash.begin("fg")
        bash.type("\x03")
        bash.until(PROMPT)

    def test_a_job_in_the_background_that_reads_is_stopped_until_fg(self, bash: Bash) -> None:
        bash.say("a /bin/sh -c 'read x; echo got:$x' &")
        wait_until(lambda: "Stopped" in bash.say("jobs"), "it is not stopped")
        assert bash.has_terminal()
        bash.begin("fg; echo status:$?")
        bash.type("hello\n")
        bash.until("got:hello\r\n")
        bash.until("status:0\r\n")
        bash.until(PROMPT)
        assert bash.has_terminal()

    def test_a_job_in_the_background_writes_and_ends(self, bash: Bash) -> None:
        bash.say("a /bin/sh -c 'echo wri''tten' > /dev/tty & wait; echo")
        assert bash.has_terminal()

    def test_one_that_ends_in_the_background_leaves_the_terminal_alone(self, bash: Bash) -> None:
        """It had it once: whoever has it now keeps it."""
        bash.begin("a /bin/sh -c 'read x; echo be''gun; read x </host/go'")
        bash.type("go\n")
        bash.until("begun\r\n")
        bash.type("\x1a")
        bash.until(PROMPT)
        bash.say("bg")
        bash.say("kill %1")
        wait_until(lambda: "sh" not in bash.say("jobs").replace("shell", ""), "it does not end")
        assert bash.has_terminal()
        assert "still here" in bash.say("echo still he''re")

    def test_a_program_that_stops_itself_stops_us_and_nobody_else(self, bash: Bash) -> None:
        script = "kill -STOP $$; echo went''on"
        bash.begin(f"a /bin/sh -c {shlex.quote(script)}")
        bash.until("Stopped")
        bash.until(PROMPT)
        bash.begin("fg")
        bash.until("wenton\r\n")
        bash.until(PROMPT)

    def test_nohup_survives_the_end_of_the_terminal(
        self, bash: Bash, two_boxes: tuple[Box, Box]
    ) -> None:
        host = two_boxes[0].path
        script = "echo begun > /host/nohup; while [ ! -e /host/end ]; do sleep 0.05; done;"
        script += " echo over > /host/nohup"
        (host / "end").unlink(missing_ok=True)
        bash.say(f"nohup $ax /bin/sh -c {shlex.quote(script)} > /dev/null 2>&1 &")
        mark = host / "nohup"
        wait_until(lambda: mark.exists() and mark.read_text() == "begun\n", "it does not begin")
        bash.person.type("exit\n")
        bash.person.wait()
        bash.person.close()
        (host / "end").touch()
        wait_until(lambda: mark.read_text() == "over\n", "it does not go on")


class TestKilled:
    def test_the_terminal_comes_back_though_no_stream_but_output_is_it(
        self, two_boxes: tuple[Box, Box]
    ) -> None:
        """The kernel process would have seen to it, and was killed."""
        box = two_boxes[0]
        inner = "read x </dev/tty; echo begun; exec sleep 1000"
        words = [*box.command.prefix, "-C", str(box.path), "run", "/bin/sh", "-c", inner]
        outer = f": | {shlex.join(words)} 2>/dev/null; echo left; read y; echo got:$y"
        person = Typist(["sh", "-c", outer], box.command.env)
        try:
            person.type("go\n")
            person.wait_for("begun\r\n")
            ours = [p for p in descendants(person.pid) if "serdab.libos.main" in p.shown()]
            forks = {p.pid for p in ours}
            (kernel,) = (p for p in ours if p.parent() not in forks)
            kernel.kill(signal.SIGKILL)
            person.wait_for("left\r\n")
            person.type("hello\n")
            person.wait_for("got:hello")
        finally:
            person.close()
            wait_until_unused(box.path)


class TestLibrary:
    """A caller of ``serdab.pal`` at a terminal: its programs are of its job."""

    SCRIPT = """
import signal
from serdab import pal
signal.signal(signal.SIGINT, lambda *_: print("we too"))
with pal.init({path!r}) as instance:
    print(instance.exec(["/bin/sh", "-c", {script!r}]))
"""

    @pytest.mark.parametrize("has_it", [False, True], ids=["ours", "the program's"])
    def test_ctrl_c_reaches_the_program_and_us(
        self, two_boxes: tuple[Box, Box], *, has_it: bool
    ) -> None:
        box = two_boxes[0]
        inner = ("read x; " if has_it else "") + "echo begun; exec sleep 1000"
        prefix = box.command.prefix
        script = self.SCRIPT.format(path=str(box.path), script=inner)
        person = Typist([*prefix[: prefix.index("-m")], "-c", script], box.command.env)
        try:
            if has_it:
                person.type("go\n")
            person.wait_for("begun\r\n")
            person.type("\x03")
            shown = person.wait_for("ExitStatus(code=None, signal=2)")
            assert "we too" in shown + person.rest()
            assert person.wait() == 0
        finally:
            person.close()


class TestCallers:
    def test_the_exit_code_of_a_program_that_kills_itself_by_sigint_is_a_number(
        self, two_boxes: tuple[Box, Box]
    ) -> None:
        result = two_boxes[0].run("/bin/sh", "-c", "kill -INT $$")
        assert result.returncode == 128 + signal.SIGINT
