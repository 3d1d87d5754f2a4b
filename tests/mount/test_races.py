# SPDX-License-Identifier: Apache-2.0
"""Callers that make it hard: signals, other threads, sudden death, slow memory.

No wrong mount, none left, and nothing of ours either: descriptors, processes, threads and mounts
are counted from outside before and after.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.harness.cprogram import CompileC
from tests.harness.instances import BuiltInstance, MakeInstance
from tests.mount.balance import Watched, has_found, server_of
from tests.mount.conftest import HERE, KEY, Mounter
from tests.recovery.processes import Process, descendants, wait_until

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.userns,
    pytest.mark.skipif(os.geteuid() != 0, reason="counts descriptors of hidden processes"),
]

UPPERS = 20
MANY = 200
#: What one mount may cost besides the page cache.
MOST_KIB_PER_MOUNT = 20_000
#: Threads of the kernel process that may wait for slow memory.
MOST_LATE = 32
CALLERS = 40
REFUSED = "sefs options: dir is missing"
#: Numbers of system calls.
MKDIR, UMOUNT, MOVE_MOUNT, OPENAT2 = 83, 166, 429, 437
MODES = ("storm", "options", "target", "killed", "threads")


@pytest.fixture
def racing(make_instance: MakeInstance, compile_c: CompileC) -> BuiltInstance:
    flags = ("-static", "-D_GNU_SOURCE", "-pthread")
    racer = compile_c((HERE / "racer.c").read_text(), flags=flags)

    def fill(image: Path) -> None:
        (image / "mnt").mkdir()
        (image / "mnt2").mkdir()
        config = image.parent / "Occlum.json"
        value = json.loads(config.read_text())
        value["serdab"] = {"runtime_mounts": {"max_mounts": MANY + CALLERS}}
        config.write_text(json.dumps(value))

    instance = make_instance(encrypted=False, programs={"/bin/racer": racer}, fill=fill)
    (instance.path / "first").mkdir()
    for number in range(MANY):
        (instance.path / f"v{number}").mkdir()
        (instance.path / f"l{number}").mkdir()
    (instance.path / "d").mkdir()
    (instance.path / "d/marker").write_text("here")
    return instance


def told(instance: BuiltInstance) -> Path:
    """Return where the lines for the operator are."""
    return instance.path.parent / "told"


@contextmanager
def race(instance: BuiltInstance, *words: str) -> Iterator[Watched]:
    """Start the racer; it waits. Whatever happens, it is gone afterwards."""
    command = instance.command
    with told(instance).open("wb") as log:
        process = command.popen(
            *("-C", str(instance.path), "run", "/bin/racer", *words),
            stdin=subprocess.PIPE,
            stderr=log.fileno(),
        )
    with process:
        try:
            yield Watched(process, instance.path)
        finally:
            process.kill()


def run_race(instance: BuiltInstance, mode: str, how: str) -> None:
    with race(instance, mode, how) as watched:
        watched.go_on()
        found = watched.line().split()
        assert found[:4] == ["wrong", "0", "left", "0"]
        if mode == "storm":
            assert found[4:] == ["rang", "1"]
        watched.check_nothing_leaked()
        watched.finish()


@pytest.mark.parametrize(
    ("mode", "how"),
    [("storm", "1000"), ("options", "2s"), ("target", "2s"), ("killed", "3s"), ("threads", "4s")],
)
def test_a_hostile_caller_gets_no_wrong_mount_and_leaks_nothing(
    racing: BuiltInstance, mode: str, how: str
) -> None:
    run_race(racing, mode, how)


@pytest.mark.soak
@pytest.mark.parametrize("mode", MODES)
def test_a_hostile_caller_for_a_minute_and_more(racing: BuiltInstance, mode: str) -> None:
    seconds = max(60, int(os.environ.get("SERDAB_SOAK_SECONDS", "3600")) // len(MODES))
    run_race(racing, mode, f"{seconds}s")


def test_two_hundred_mounts_with_servers_at_once_and_none_afterwards(
    racing: BuiltInstance, record_property: Callable[[str, object], None]
) -> None:
    with race(racing, "many", str(MANY)) as watched:
        watched.go_on()
        assert watched.line() == "many wrong 0"
        # Besides the servers, what attached the last mount may be there a moment longer.
        wait_until(
            lambda: len(watched.take().processes - watched.before.processes) == MANY,
            f"{MANY} servers and nothing else",
        )
        now = watched.take()
        added = now.processes - watched.before.processes
        assert now.mounts == watched.before.mounts + MANY
        each = watched.memory_of(added) // MANY
        record_property("kib_per_mount", each)
        assert each < MOST_KIB_PER_MOUNT
        watched.go_on()
        assert watched.line() == "wrong 0 left 0"
        watched.check_nothing_leaked()
        watched.finish()


def is_in_call(process: Process, numbers: tuple[int, ...]) -> bool:
    """Return whether a process sleeps in one of some system calls."""
    with suppress(OSError):
        return Path(f"/proc/{process.pid}/syscall").read_text().split()[0] in map(str, numbers)
    return False


@pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
def test_a_mount_whose_caller_was_killed_is_gone_before_another_comes_over_it(
    mounter: Mounter,
) -> None:
    folder = mounter.folder("s")
    mount = "/bin/mounter mount x /mnt/t ramfs 0 NULL"
    # The directory is locked while something is made in it, and so are mounts there.
    script = (
        "/bin/mounter mount x /mnt sefs 0 dir=s mkdir /mnt/t open /mnt/t; read go;"
        f"/bin/mounter mkdir /mnt/t/d & read go; {mount} & read go; kill -9 $!;"
        f"{mount} write /mnt/t/f kept & wait;"
        "/bin/mounter read /mnt/t/f umount /mnt/t 0 umount /mnt/t 0"
    )
    process = mounter.instance.command.popen(
        *("-C", str(mounter.path), "run", "/bin/sh", "-c", script), stdin=subprocess.PIPE
    )
    with process, ExitStack() as stack:
        stack.callback(process.kill)
        assert process.stdin is not None
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == [
            b"mount ok\n",
            b"mkdir ok\n",
            b"open ok\n",
        ]
        server = server_of(process.pid, folder)
        stack.callback(server.kill, signal.SIGCONT)
        server.kill(signal.SIGSTOP)

        def workers() -> list[Process]:
            return [p for p in descendants(process.pid) if p.name() == "serdab-mount"]

        def waits(name: str, *calls: int) -> bool:
            below = [p for p in descendants(process.pid) if p.name() == name]
            return any(is_in_call(p, calls) for p in below)

        for is_there in (
            lambda: waits("mounter", MKDIR),
            lambda: waits("serdab-mount", MOVE_MOUNT, OPENAT2),
            lambda: len(workers()) == 2,
        ):
            process.stdin.write(b"\n")
            process.stdin.flush()
            wait_until(is_there, "who waits for the server")
        server.kill(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    said = out.decode().splitlines()
    assert sorted(said[:3]) == ["mkdir ok", "mount ok", "write ok"], err.decode()
    assert said[3:] == ["read kept", "umount ok", "umount EINVAL"], err.decode()


@pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
def test_an_umount_whose_caller_was_killed_before_its_turn_takes_off_nothing(
    mounter: Mounter,
) -> None:
    folder = mounter.folder("s")
    script = (
        "mounter mount x /mnt2 ramfs 0 NULL mount x /mnt sefs 0 dir=s mkdir /mnt/t open /mnt/t;"
        "read go; mounter mkdir /mnt/t/d > /dev/null & read go;"
        "mounter mount x /mnt/t ramfs 0 NULL > /dev/null & read go;"
        "mounter umount /mnt2 0 & read go; kill -9 $!; wait;"
        "mounter umount /mnt2 0 umount /mnt/t 0"
    )
    process = mounter.instance.command.popen(
        *("-C", str(mounter.path), "run", "/bin/sh", "-c", script), stdin=subprocess.PIPE
    )
    with process, ExitStack() as stack:
        assert process.stdin is not None
        assert process.stdout is not None
        assert [process.stdout.readline().split()[-1] for _ in range(4)] == [b"ok"] * 4
        server = server_of(process.pid, folder)
        stack.callback(server.kill, signal.SIGCONT)
        server.kill(signal.SIGSTOP)

        def below(name: str) -> list[Process]:
            return [p for p in descendants(process.pid) if p.name() == name]

        def holds_turn() -> bool:
            return any(is_in_call(p, (MOVE_MOUNT,)) for p in below("serdab-mount"))

        for is_there in (
            lambda: any(is_in_call(p, (MKDIR,)) for p in below("mounter")),
            holds_turn,
            lambda: has_found(process.pid, "/mnt2"),
        ):
            process.stdin.write(b"\n")
            process.stdin.flush()
            wait_until(is_there, "who waits for the server")
        killed = {p for p in below("mounter") if is_in_call(p, (UMOUNT,))}
        assert killed
        process.stdin.write(b"\n")
        process.stdin.flush()
        wait_until(lambda: not any(p.is_alive() for p in killed), "the end of the caller")
        server.kill(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    assert out.split(b"\n")[:2] == [b"umount ok", b"umount ok"], err.decode()


@pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
def test_a_mount_whose_server_ends_before_its_turn_is_an_error_and_leaves_nothing(
    mounter: Mounter,
) -> None:
    folder, other = mounter.folder("s"), mounter.folder("other")
    script = (
        "mounter mount x /mnt sefs 0 dir=s mkdir /mnt/t open /mnt/t;"
        "read go; mounter mkdir /mnt/t/d > /dev/null & read go;"
        "mounter mount x /mnt/t ramfs 0 NULL > /dev/null & read go;"
        "mounter mount x /mnt2 sefs 0 dir=other; wait;"
        "mounter umount /mnt2 0 mount x /mnt2 sefs 0 dir=other umount /mnt2 0"
    )
    process = mounter.instance.command.popen(
        *("-C", str(mounter.path), "run", "/bin/sh", "-c", script), stdin=subprocess.PIPE
    )
    with process, ExitStack() as stack:
        assert process.stdin is not None
        assert process.stdout is not None
        assert [process.stdout.readline().split()[-1] for _ in range(3)] == [b"ok"] * 3
        server = server_of(process.pid, folder)
        stack.callback(server.kill, signal.SIGCONT)
        server.kill(signal.SIGSTOP)

        def waits(name: str, call: int) -> bool:
            below = [p for p in descendants(process.pid) if p.name() == name]
            return any(is_in_call(p, (call,)) for p in below)

        for is_there in (
            lambda: waits("mounter", MKDIR),
            lambda: waits("serdab-mount", MOVE_MOUNT),
            lambda: (other / "anchor").exists() and has_found(process.pid, "/mnt2"),
        ):
            process.stdin.write(b"\n")
            process.stdin.flush()
            wait_until(is_there, "who waits for the server")
        ended = server_of(process.pid, other)
        ended.kill()
        wait_until(lambda: not ended.is_alive(), "the end of the other server")
        server.kill(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    said = [line.split()[-1] for line in out.splitlines()]
    assert said == [b"EIO", b"EINVAL", b"ok", b"ok"], err.decode()


@contextmanager
def slow_race(instance: BuiltInstance, callers: int, *, stopped: bool) -> Iterator[Watched]:
    """Let callers have their options in a page whose fs server is stopped, or is not.

    The others wait for another line.
    """
    with ExitStack() as stack:
        watched = stack.enter_context(race(instance, "slow", str(callers), "/mnt2/page"))
        watched.go_on()
        assert watched.line() == "mapped"
        server = watched.server_of(instance.path / "first")
        stack.callback(server.kill, signal.SIGCONT)
        if stopped:
            server.kill(signal.SIGSTOP)
        watched.go_on()
        yield watched
        server.kill(signal.SIGCONT)
        # Threads that were late end once their page is there.
        watched.check_nothing_leaked()
        watched.finish()


def until_joined(watched: Watched) -> Counter[str]:
    """Return what callers and others say up to the end of all callers."""
    return Counter(iter(watched.line, "joined"))


def test_options_in_a_page_that_is_not_in_memory_are_read(racing: BuiltInstance) -> None:
    with slow_race(racing, 1, stopped=False) as watched:
        watched.go_on()
        assert until_joined(watched) == {"others wrong 0 refused 0": 1, "slow": 1}
    assert told(racing).read_text().count(REFUSED) == 1


def test_a_page_that_never_comes_keeps_nobody_else_waiting(racing: BuiltInstance) -> None:
    with slow_race(racing, 5, stopped=True) as watched:
        wait_until(lambda: watched.take().threads >= watched.before.threads + 5, "five callers")
        # Each of these is performed while they wait for their page.
        watched.go_on()
        assert watched.line() == "others wrong 0 refused 0"
        # And those get their answer too, at the deadline.
        assert [watched.line() for _ in range(5)] == ["slow EFAULT"] * 5
        watched.server_of(racing.path / "first").kill(signal.SIGCONT)
        assert watched.line() == "joined"
    said = told(racing).read_text()
    assert said.count("the memory of a program could not be read in time") == 5
    # Their options came when they had their answer: who was refused nothing is told nothing.
    assert REFUSED not in said


def test_more_slow_callers_than_may_wait_are_refused_until_there_are_fewer(
    racing: BuiltInstance,
) -> None:
    with slow_race(racing, CALLERS, stopped=True) as watched:
        refused = [watched.line() for _ in range(CALLERS - MOST_LATE)]
        assert refused == ["slow EAGAIN"] * len(refused)
        watched.go_on()
        assert watched.line().startswith("others wrong 0 refused ")
        assert watched.take().threads <= watched.before.threads + MOST_LATE
        watched.server_of(racing.path / "first").kill(signal.SIGCONT)
        assert until_joined(watched)["slow"] == MOST_LATE


@pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
def test_many_uppers_stand_over_one_lower_at_the_same_time(mounter: Mounter) -> None:
    for name in ("l", *(f"u{number}" for number in range(UPPERS))):
        mounter.folder(name)
    mounter.calls("mount", "x", "/mnt", "sefs", "0", f"dir=l,key={KEY}", "write", "/mnt/f", "low")
    script = "\n".join(
        f"mkdir -p /tmp/{n} && mount -t unionfs -o lowerdir=l,upperdir=u{n},key={KEY} none "
        f"/tmp/{n} && cat /tmp/{n}/f && echo {n} > /tmp/{n}/own &"
        for n in range(UPPERS)
    )
    done = mounter.instance.run("/bin/sh", "-c", f"{script}\nwait; cat /tmp/*/own")
    assert done.returncode == 0, done.stderr.decode()
    out = done.stdout.decode()
    assert out.count("low") == UPPERS, done.stderr.decode()
    own = {int(word) for word in out.replace("low", " ").split()}
    assert own == set(range(UPPERS))
