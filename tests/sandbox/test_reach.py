# SPDX-License-Identifier: Apache-2.0
"""Signals, priorities and owners set inside reach nobody outside, run by root and by a user."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.command import describe
from tests.harness.cprogram import CompileC
from tests.recovery.processes import state_of, wait_until
from tests.sandbox.conftest import Box, Place
from tests.service.conftest import Service, Typist

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

HERE = Path(__file__).parent
SCENE = (HERE / "scene.py").read_text()
#: What an act aimed at a process outside gives: it cannot be named.
NOBODY = {"ESRCH", "EINVAL", "EPERM", "ENOTTY"}
#: Acts that name nobody, and so succeed, on those inside.
ON_OUR_OWN = {
    "kill 0", "kill -1", "stop 0", "pidfd of the parent", "pidfd of the group", "owner own group",
    "nice own group", "nice own user", "nice inner root", "ionice own group", "ionice own user",
}  # fmt: skip

Seen = list[list[str]]


@pytest.fixture(scope="session")
def reach(compile_c: CompileC) -> Path:
    return compile_c((HERE / "reach.c").read_text())


@pytest.fixture(scope="session")
def reaching(place: Place, probe_program: Path, reach: Path) -> Box:
    return place.build(probe_program, files={"/bin/reach": reach.read_bytes()})


def scene(box: Box, verb: str, roots: str = "") -> list[str]:
    """Return the command of a caller who watches."""
    prefix = box.command.prefix
    cut = prefix.index("-m")
    command = [*prefix[cut - 1 :], "-C", str(box.path), verb, "/bin/reach"]
    return [*prefix[:cut], "-c", SCENE, roots, *command]


def shell_around(box: Box, *words: str) -> list[str]:
    """Return a shell of the same user that runs a verb and says how it left."""
    prefix = box.command.prefix
    cut = prefix.index("-m") - 1
    command = [*prefix[cut:], "-C", str(box.path), *words]
    return [*prefix[:cut], "sh", "-c", '"$@"; echo left=$?', "sh", *command]


def without_terminal(box: Box, verb: str, roots: str = "") -> Seen:
    result = subprocess.run(
        scene(box, verb, roots), env=box.command.env, capture_output=True, check=False,
        timeout=60, start_new_session=True,
    )  # fmt: skip
    assert result.returncode == 0, describe(result)
    return parsed(result.stdout.decode())


def at_terminal(box: Box, verb: str, roots: str = "") -> Seen:
    person = Typist(scene(box, verb, roots), box.command.env)
    try:
        person.wait_for("SEEN ")
        shown = "SEEN " + person.wait_for("]]")
        assert person.wait() == 0
    finally:
        person.close()
    return parsed(shown)


def parsed(shown: str) -> Seen:
    seen: Seen = json.loads(shown.partition("SEEN ")[2])
    return seen


def check(seen: Seen, *, but: frozenset[str] = frozenset()) -> None:
    """Check that nobody outside was changed; ``but`` are acts that the terminal's session feels."""
    assert [line for line in seen if line[2] and line[0] not in but] == []
    for act, result, _, _ in seen:
        if act in ON_OUR_OWN:
            assert result in ("ok", "EINVAL", "EPERM", "ESRCH"), act
        elif act not in ("end", "autogroup", "autogroup of pid 1"):
            assert result in NOBODY, act


class TestRun:
    def test_nobody_outside_is_reached(self, reaching: Box) -> None:
        seen = without_terminal(reaching, "run")
        check(seen)
        assert seen[-1][1] == str(128 + signal.SIGKILL)

    def test_nobody_outside_is_reached_where_a_terminal_is_lent(self, reaching: Box) -> None:
        """But for the session's share of the processor, which is put back."""
        seen = at_terminal(reaching, "run")
        check(seen, but=frozenset({"autogroup", "autogroup of pid 1"}))
        assert seen[-1][1] == str(128 + signal.SIGKILL)
        assert seen[-1][3] in ("0", "")

    def test_nobody_outside_shares_a_group_with_anybody_inside(self, reaching: Box) -> None:
        script = "for p in /proc/[0-9]*; do read -r s < $p/stat; echo $s; done; echo $$"
        lines = reaching.out("/bin/sh", "-c", script).splitlines()
        shell = lines.pop()
        groups = {line.split()[0]: line.rpartition(")")[2].split()[2] for line in lines}
        assert groups[shell] == shell
        # pid 1's has no number inside: nobody can join it.
        assert set(groups.values()) <= {"0", *groups}

    @pytest.mark.parametrize("number", ["KILL", "STOP", "TSTP", "INT", "HUP", "TERM"])
    def test_a_signal_to_the_own_group_ends_or_stops_nothing_but_the_program(
        self, reaching: Box, number: str
    ) -> None:
        script = f"kill -{number} 0; echo on"
        command = shell_around(reaching, "run", "/bin/sh", "-c", script)
        process = subprocess.Popen(
            command,
            env=reaching.command.env, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            if number == "STOP":
                run = wait_for_stop(process.pid)
                assert state_of(process.pid) != "T"  # the script outside goes on
                os.kill(run, signal.SIGCONT)
            out, _ = process.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        text = out.decode()
        if number in ("STOP", "TSTP"):
            assert "on\nleft=0" in text
        else:
            value = 128 + getattr(signal, f"SIG{number}")
            assert f"left={value}" in text


def wait_for_stop(parent: int) -> int:
    """Return the child of a process that is stopped, once one is."""
    found: list[int] = []

    def has_stopped() -> bool:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        found[:] = [int(child) for child in children if state_of(int(child)) == "T"]
        return bool(found)

    wait_until(has_stopped, "it does not stop")
    return found[0]


class TestBoot:
    def test_an_init_that_kills_its_group_reaches_nobody(
        self, place: Place, probe_program: Path, reach: Path
    ) -> None:
        box = place.build(probe_program)
        init = box.path / "initfs" / "bin" / "init"
        init.write_bytes(reach.read_bytes())
        init.chmod(0o755)
        box.command.ok("-C", box.path, "build")
        result = subprocess.run(
            shell_around(box, "run", "/bin/true"),
            env=box.command.env, capture_output=True, check=False, timeout=60,
            start_new_session=True,
        )  # fmt: skip
        assert result.stdout == b"left=125\n", describe(result)


class TestService:
    @pytest.fixture
    def service(self, reaching: Box) -> Iterator[Service]:
        service = Service(reaching)
        service.start()
        yield service
        service.end()

    def test_nobody_outside_is_reached_by_exec(self, service: Service) -> None:
        root = str(service.status()["pid"])
        check(without_terminal(service.box, "exec", root))

    def test_nobody_outside_is_reached_by_exec_at_a_terminal(self, service: Service) -> None:
        check(at_terminal(service.box, "exec", str(service.status()["pid"])))


class TestEmbedder:
    @pytest.mark.parametrize("number", ["KILL", "STOP", "TERM"])
    def test_a_program_of_a_library_s_caller_has_its_own_group(
        self, reaching: Box, number: str
    ) -> None:
        script = f"""
import os, signal
from serdab import pal
os.setpgid(0, 0)
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
with pal.init({str(reaching.path)!r}) as instance:
    process = instance.create_process(["/bin/sh", "-c", "kill -{number} 0"])
    if {number!r} == "STOP":
        instance.exec(["/bin/sh", "-c", "until cat /proc/[0-9]*/stat | grep ') T '; do :; done"])
        instance.kill(signal_number=signal.SIGCONT)
    print(process.wait())
print(signal.sigpending())
"""
        prefix = reaching.command.prefix[: reaching.command.prefix.index("-m")]
        result = subprocess.run(
            [*prefix, "-c", script], env=reaching.command.env, capture_output=True, check=False,
            timeout=60,
        )  # fmt: skip
        assert result.returncode == 0, describe(result)
        assert result.stdout.endswith(b"set()\n")
