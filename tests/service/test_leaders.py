# SPDX-License-Identifier: Apache-2.0
"""The leader of a terminal's session is ours: what the inner root can do to it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sandbox.conftest import Place
from tests.service.conftest import Service, Typist

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

#: In proc_pid_stat(5) the sixth field is the session, and so the leader's process id.
_SESSION = "read -r a b c d e leader rest </proc/self/stat; "
_BOMBS = Path(__file__).parents[1] / "boot/bombs.c"


@pytest.fixture(scope="module")
def service(place: Place, probe_program: Path, compile_c: Callable[..., Path]) -> Iterator[Service]:
    files = {"/bin/bombs": compile_c(_BOMBS.read_text()).read_bytes()}
    out = Service(place.build(probe_program, files=files))
    out.start()
    yield out
    out.end()


@pytest.fixture
def run(service: Service, at_terminal: Callable[..., Typist]) -> Callable[[str], Typist]:
    """Return ``run(script)``: it runs at a terminal and knows its $leader."""

    def start(script: str) -> Typist:
        words = service.words("exec", "/bin/sh", "-c", _SESSION + script)
        return at_terminal(words, service.box.command.env)

    return start


def test_nobody_limits_or_schedules_it(run: Callable[[str], Typist]) -> None:
    person = run("/bin/bombs touch $leader 2>&1; echo d''one; /bin/bombs touch $$; echo e''nd")
    theirs, own = (
        dict(line.split() for line in person.wait_for(word).splitlines()[:-1] if line)
        for word in ("done", "end")
    )
    assert person.wait() == 0
    assert "prlimit" in theirs
    assert set(theirs.values()) <= {"EPERM", "EACCES", "EINVAL", "ENOSYS"}, theirs
    allowed = ("prlimit", "sched_setaffinity", "sched_setattr", "setpriority", "ioprio_set")
    assert {own[name] for name in allowed} == {"ok"}, own


def test_who_stops_it_stops_nobody(run: Callable[[str], Typist]) -> None:
    person = run("kill -STOP $leader; exit 3")
    assert person.wait() == 3


def test_who_kills_it_ends_the_client(run: Callable[[str], Typist]) -> None:
    person = run("kill -KILL $leader; exec sleep 1000")
    assert person.wait() == 128 + signal.SIGKILL


def test_sessions_that_live_on_take_no_number_twice(
    service: Service, run: Callable[[str], Typist]
) -> None:
    lives = "trap '' HUP; sleep 1000 >/dev/null 2>&1 & echo $leader $$ $!"
    people = [run(lives) for _ in range(3)]
    said = [person.wait_for("\r\n").split() for person in people]
    assert [person.wait() for person in people] == [0, 0, 0]
    leaders = [int(leader) for leader, _, _ in said]
    programs = [int(pid) for _, *pids in said for pid in pids]
    assert len(set(leaders)) == 3
    assert max(leaders) < 300 < min(programs)
    service.out("kill -KILL " + " ".join(sleeper for _, _, sleeper in said))


def test_programs_are_numbered_behind_what_is_ours(service: Service) -> None:
    assert int(service.out("echo $$")) > 299
    # Errands of ours come and go meanwhile.
    assert service.out("sync; sync; (exec sh -c 'echo $PPID')").isdecimal()
