# SPDX-License-Identifier: Apache-2.0
"""Limits count what a program makes us do, and nothing inside reaches the processes that are ours.

Each bomb is small: it is enough that it would go on without a bound. Afterwards the same shell
inside starts programs, and writes and reads through the fs servers.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.boot.test_programs import finish, start, wait_for_line
from tests.harness.command import Started, describe
from tests.recovery.processes import descendants, find_family
from tests.sandbox.conftest import Box, Place

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

MIB = 1 << 20
LIMIT = 128 * MIB
VOLUMES = 12


class Inside:
    """A shell inside that stays, and what the instance costs the host."""

    def __init__(self, process: Started) -> None:
        self.process = process

    def say(self, line: str) -> str:
        """Run a line; return the first line that it says."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()
        return wait_for_line(self.process).decode()

    def bomb(self, *words: str) -> tuple[int, str]:
        """Return how far a bomb came, and what stopped it."""
        _, count, why = self.say("/bin/bombs " + " ".join(words)).split()
        return int(count), why

    def is_usable(self) -> bool:
        """Return whether programs start, and the root's fs server serves."""
        return self.say("echo here >/root/f && cat /root/f; rm -f /root/f") == "here"

    def processes(self) -> int:
        return len(descendants(self.process.pid))

    def memory_bytes(self) -> int:
        """Return what all processes of the instance take, each shared page once."""
        total = 0
        for process in descendants(self.process.pid):
            try:
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            except OSError:
                continue  # it has just ended
            found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
            total += int(found[1]) << 10 if found else 0
        return total


@contextmanager
def inside(box: Box) -> Iterator[Inside]:
    with start(box, "/bin/sh", stderr=subprocess.DEVNULL) as process:
        try:
            shell = Inside(process)
            assert shell.say("mkdir -p /root /tmp; echo on") == "on"
            yield shell
        except BaseException:
            process.kill()
            raise
        assert finish(process)[0] == 0


@pytest.fixture(scope="session")
def bombs(compile_c: Callable[..., Path]) -> bytes:
    return compile_c((Path(__file__).parent / "bombs.c").read_text()).read_bytes()


@pytest.fixture(scope="module")
def build(place: Place, probe_program: Path, bombs: bytes) -> Callable[..., Box]:
    def make(change: Callable[[dict[str, object]], None]) -> Box:
        box = place.build(probe_program, change, files={"/bin/bombs": bombs})
        for number in range(VOLUMES):
            folder = box.path / f"v{number}"
            folder.mkdir()
            if place.owner is not None:
                os.chown(folder, *place.owner)
        return box

    return make


def _limit(config: dict[str, object]) -> None:
    config["resource_limits"] = {"user_space_size": f"{LIMIT}B", "max_num_of_threads": 60}


@pytest.fixture(scope="module")
def limited(build: Callable[..., Box]) -> Box:
    return build(_limit)


@pytest.fixture(scope="module")
def temporary(build: Callable[..., Box]) -> Box:
    def change(config: dict[str, object]) -> None:
        config["resource_limits"] = {"user_space_size": f"{LIMIT // 4}B"}
        mounts = json.loads(json.dumps(config["mount"]))
        mounts[0]["options"]["layers"][1]["options"] = {"temporary": True}
        config["mount"] = mounts

    return build(change)


@pytest.mark.parametrize("kind", ["hostfs dir=.", "sefs dir=v%d", "ramfs x"])
def test_a_mount_bomb_is_stopped(limited: Box, kind: str) -> None:
    with inside(limited) as shell:
        processes, memory = shell.processes(), shell.memory_bytes()
        made, why = shell.bomb("mounts", "40", *kind.split())
        assert (made <= 12, why) == (True, "ENOSPC")
        assert shell.processes() <= processes + made + 1
        assert shell.memory_bytes() <= memory + LIMIT
        assert shell.is_usable()
        shell.say("/bin/bombs umounts 40; echo")
        assert shell.bomb("mounts", "3", *kind.split()) == (3, "ok")


@pytest.mark.parametrize("kind", ["hostfs dir=.", "ramfs x"])
def test_what_is_unmounted_with_a_file_open_counts_on(limited: Box, kind: str) -> None:
    with inside(limited) as shell:
        made, why = shell.bomb("kept", "40", *kind.split())
        assert (made <= 12, why) == (True, "ENOSPC")
        assert shell.is_usable()
        # With the bomb its files went: everything is free again.
        made_all = '[ "$(/bin/bombs mounts 3 ramfs x)" = "mounts 3 ok" ]'
        again = f"until {made_all}; do /bin/bombs umounts 3; sleep 0.05; done; echo free"
        assert shell.say(again) == "free"


def test_mounts_are_counted_without_a_memory_limit(build: Callable[..., Box]) -> None:
    box = build(lambda config: config.update(serdab={"runtime_mounts": {"max_mounts": 3}}))
    with inside(box) as shell:
        assert shell.bomb("mounts", "10", "hostfs", "dir=.") == (3, "ENOSPC")
        assert shell.is_usable()


def test_a_shared_memory_bomb_is_stopped(limited: Box) -> None:
    with inside(limited) as shell:
        filled, why = shell.bomb("fill", "/dev/shm/f")
        assert (LIMIT // 8 < filled * MIB <= LIMIT // 4, why) == (True, "ENOSPC")
        assert shell.is_usable()
        segments, why = shell.bomb("segments")
        assert (segments * MIB <= LIMIT // 4, why) == (True, "ENOSPC")
        queues, why = shell.bomb("queues")
        assert (queues, why) == (16, "ENOSPC")
        assert shell.is_usable()


def test_a_bomb_in_a_temporary_layer_is_stopped(temporary: Box) -> None:
    bound = LIMIT // 4
    with inside(temporary) as shell:
        memory = shell.memory_bytes()
        for _ in range(2):
            filled, why = shell.bomb("fill", "/root/big")
            assert (bound // 2 < filled * MIB <= bound, why) == (True, "ENOSPC")
            assert shell.memory_bytes() <= memory + 2 * bound + 32 * MIB
            assert shell.say("rm /root/big; echo gone") == "gone"
        assert shell.is_usable()


def test_a_fork_bomb_leaves_others_their_servers(limited: Box) -> None:
    with inside(limited) as shell:
        before = shell.processes()
        assert shell.bomb("mounts", "1", "sefs", "dir=v%d") == (1, "ok")
        assert int(shell.say("/bin/probe forks 500")) <= 60
        assert shell.say("echo kept >/tmp/m0/f; cat /tmp/m0/f") == "kept"
        assert shell.processes() <= before + 60
        assert shell.is_usable()


def test_a_memory_hog_takes_no_server_with_it(limited: Box) -> None:
    with inside(limited) as shell:
        assert shell.bomb("mounts", "2", "sefs", "dir=v%d") == (2, "ok")
        assert shell.say("echo kept >/tmp/m0/f; cat /tmp/m0/f") == "kept"
        shell.say("/bin/probe eat 1073741824 >/dev/null 2>&1; echo ended")
        assert shell.say("cat /tmp/m0/f") == "kept"
        assert shell.is_usable()


def test_what_lies_in_sockets_counts(limited: Box) -> None:
    with inside(limited) as shell:
        held, _ = shell.bomb("sockets")
        # Without a control group it is among what the boot says is not counted.
        assert 0 < held * MIB <= (LIMIT + LIMIT // 2 if limited.is_root else 4 * LIMIT)
        assert shell.is_usable()


def test_it_is_said_where_the_limit_does_not_hold_for_the_sum(limited: Box) -> None:
    result = limited.run("/bin/true")
    assert result.returncode == 0, describe(result)
    assert (b"no control group here" in result.stderr) != limited.is_root


def test_a_volume_bomb_is_stopped(build: Callable[..., Box]) -> None:
    most = 4
    box = build(lambda config: config.update(serdab={"runtime_mounts": {"max_volumes": most}}))
    with inside(box) as shell:
        reached = ""
        for number in range(VOLUMES):
            reached = shell.say(f"/bin/bombs mounts 1 sefs dir=v{number}")
            if reached != "mounts 1 ok":
                break
            assert shell.say("echo x >/tmp/m0/f; /bin/bombs umounts 1; echo made") == "made"
        assert reached == "mounts 0 ENOSPC"
        # What is known is mounted as before, and one that was given up makes room.
        assert shell.say("/bin/bombs mounts 1 sefs dir=v0; cat /tmp/m0/f") == "mounts 1 ok"
        # It may have come with the line before, and be read already.
        assert shell.process.stdout is not None
        assert shell.process.stdout.readline() == b"x\n"
        assert shell.say("/bin/bombs umounts 1; echo") == ""
    state = Path(box.command.env["XDG_STATE_HOME"]) / "serdab/volumes"
    notes = [note for note in state.glob("at-*") if str(box.path) in note.read_text()]
    assert len(notes) == most
    told = box.run("/bin/bombs", "mounts", "1", "sefs", f"dir=v{VOLUMES - 1}").stderr.decode()
    assert "serdab reset --volume DIR" in told
    box.command.ok("-C", box.path, "reset", "--yes", "--volume", "v0")
    again = box.run("/bin/bombs", "mounts", "1", "sefs", f"dir=v{VOLUMES - 1}")
    assert again.stdout == b"mounts 1 ok\n", describe(again)


@pytest.mark.parametrize("place", ["root"], indirect=True)
def test_each_instance_of_root_has_ids_of_its_own(build: Callable[..., Box]) -> None:
    boxes = [build(_limit), build(_limit)]
    with inside(boxes[0]) as first, inside(boxes[1]) as second:
        shells = (first, second)
        families = [find_family(shells[i].process.pid, boxes[i].path) for i in range(2)]
        ranges = [int(_map_of(family.launcher.pid).split()[1]) for family in families]
        assert abs(ranges[0] - ranges[1]) >= 65536
        # A file on the host has the owner that it has inside, whichever range that was.
        for shell, box in zip(shells, boxes, strict=True):
            assert shell.say("echo x >/host/made; echo made") == "made"
            assert (box.path / "made").stat().st_uid == 0


def _map_of(pid: int) -> str:
    return Path(f"/proc/{pid}/uid_map").read_text()


CALLS = (
    *("prlimit", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"),
    *("setpriority", "setpriority-group", "setpriority-user", "ptrace", "kcmp"),
    *("ioprio_set", "ioprio_set-group", "ioprio_set-user"),
    *("process_vm_readv", "move_pages", "migrate_pages", "oom_score_adj", "coredump_filter"),
    *("timerslack_ns", "comm", "clear_refs"),
)


def test_pid_1_is_out_of_reach(limited: Box) -> None:
    script = "exec 2>&1; /bin/bombs touch 1; echo; /bin/bombs touch $$"
    said = limited.out("/bin/sh", "-c", script).split("\n\n")
    first, own = (dict(line.split() for line in part.splitlines()) for part in said)
    assert set(first) == set(CALLS)
    assert set(first.values()) <= {"EPERM", "EACCES", "EINVAL", "ENOSYS"}, first
    # What is refused there is for everybody else as it was.
    allowed = ("prlimit", "sched_setaffinity", "sched_setattr", "setpriority", "ioprio_set")
    assert {own[name] for name in allowed} == {"ok"}, own


def test_pid_1_keeps_its_limits(limited: Box) -> None:
    with inside(limited) as shell:
        launcher = find_family(shell.process.pid, limited.path).launcher
        before = Path(f"/proc/{launcher.pid}/limits").read_text()
        shell.say("/bin/bombs touch 1 >/dev/null; echo")
        assert Path(f"/proc/{launcher.pid}/limits").read_text() == before
        assert shell.is_usable()
