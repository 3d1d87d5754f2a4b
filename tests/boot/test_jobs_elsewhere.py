# SPDX-License-Identifier: Apache-2.0
"""Jobs of a shell that are not ``serdab run``: a package, and a service in the foreground."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.test_jobs import PROMPT, Bash, waiting
from tests.harness.command import describe
from tests.harness.instances import wait_until_unused
from tests.recovery.processes import wait_until
from tests.sandbox.conftest import Box, Place

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


@pytest.fixture(scope="module")
def box(place: Place, probe_program: Path) -> Box:
    return place.build(probe_program)


@pytest.fixture(scope="module")
def package(box: Box) -> Path:
    """The launcher of a package of the box, unpacked by whoever runs it."""
    folder = Path(tempfile.mkdtemp(dir=box.path.parent))
    shutil.chown(folder, box.path.stat().st_uid, box.path.stat().st_gid)
    made = box.command.run("-C", box.path, "package", "--debug", folder / "app.tar.gz")
    assert made.returncode == 0, describe(made)
    become = box.command.prefix[: box.command.prefix.index("-m") - 1]
    subprocess.run([*become, "tar", "xf", folder / "app.tar.gz", "-C", folder], check=True)
    return folder / "app/serdab"


@pytest.fixture
def bash(box: Box) -> Iterator[Bash]:
    shell = Bash(box, box)
    yield shell
    shell.end()
    wait_until_unused(box.path)


class TestPackage:
    @pytest.fixture(autouse=True)
    def alias(self, bash: Bash, box: Box, package: Path) -> Iterator[None]:
        python = box.command.prefix[box.command.prefix.index("-m") - 1]
        bash.say(f"export SERDAB_PYTHON={python}; alias p={shlex.quote(f'{package} run')}")
        yield
        wait_until_unused(package.parent / "instance")

    def test_a_program_reads_what_is_typed(self, bash: Bash) -> None:
        bash.begin("p /bin/sh -c 'read x; echo got:$x; exit 3'; echo status:$?")
        bash.type("hello\n")
        bash.until("got:hello\r\n")
        bash.until("status:3\r\n")
        bash.until(PROMPT)
        assert bash.has_terminal()

    @pytest.mark.parametrize("has_it", [False, True], ids=["ours", "the program's"])
    def test_one_ctrl_c_ends_a_loop(self, bash: Bash, *, has_it: bool) -> None:
        script = ("read x; " if has_it else "") + waiting("begun")
        bash.begin(f"for i in 1 2 3; do p /bin/sh -c {shlex.quote(script)}; echo round $i; done")
        if has_it:
            bash.type("go\n")
        bash.until("begun\r\n")
        bash.type("\x03")
        assert "round 1" not in bash.until(PROMPT)
        assert "130\r\n" in bash.say("echo $?")

    def test_ctrl_z_and_fg(self, bash: Bash) -> None:
        script = "echo be''gun; read x; echo got:$x; exit 4"
        bash.begin(f"p /bin/sh -c {shlex.quote(script)}")
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


class TestServiceInTheForeground:
    @pytest.fixture(autouse=True)
    def alias(self, bash: Bash, box: Box) -> None:
        python = box.command.prefix.index("-m") - 1
        words = shlex.join([*box.command.prefix[python:], "-C", str(box.path)])
        bash.say(f"alias s={shlex.quote(words)}")

    def test_ctrl_c_is_the_wish_to_end(self, bash: Bash) -> None:
        bash.begin("s start --foreground; echo status:$?")
        bash.until("is ready")
        bash.type("\x03")
        bash.until("status:0\r\n")
        bash.until(PROMPT)
        assert bash.has_terminal()

    def test_ctrl_c_during_the_boot_ends_a_loop(self, bash: Bash) -> None:
        bash.begin("for i in 1 2 3; do s start --foreground; echo aga''in; done")
        wait_until(lambda: bash.has_job(b"serdab.libos.main"), "it does not boot")
        bash.type("\x03")
        assert "again" not in bash.until(PROMPT)

    def test_ctrl_z_stops_it_and_bg_lets_it_go_on(self, bash: Bash) -> None:
        bash.begin("s start --foreground")
        bash.until("is ready")
        bash.type("\x1a")
        bash.until("Stopped")
        bash.until(PROMPT)
        assert bash.has_terminal()
        bash.say("bg")
        assert "inside" in bash.say("s exec /bin/echo insi''de")
        bash.say("s stop; wait")
        assert bash.has_terminal()

    def test_in_the_background_it_neither_stops_nor_takes_the_terminal(self, bash: Bash) -> None:
        bash.begin("s start --foreground &")
        bash.until("is ready")
        bash.begin("s exec /bin/sh -c 'read x; echo got:$x'; echo status:$?")
        bash.type("hello\n")
        bash.until("got:hello\r\n")
        bash.until("status:0\r\n")
        bash.until(PROMPT)
        bash.type("\x03")  # of the shell: the service is another job
        bash.until(PROMPT)
        assert "running" in bash.say("s status")
        bash.say("s stop; wait")
        assert bash.has_terminal()

    def test_the_end_of_the_terminal_ends_it(self, bash: Bash, box: Box) -> None:
        bash.begin("s start --foreground")
        bash.until("is ready")
        bash.person.close()
        wait_until(
            lambda: box.command.run("-C", box.path, "status").returncode == 1, "it still runs"
        )
        wait_until_unused(box.path)
