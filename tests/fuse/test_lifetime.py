# SPDX-License-Identifier: Apache-2.0
"""How mounts begin and end: unmounting, crashing, read-only, an ordinary user."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serdab.errors import EnvironmentRefused
from serdab.fuse.mounting import mount_host, raise_read_ahead, unmount
from serdab.linux.mounts import UmountFlag, umount
from tests.fuse.conftest import REPOSITORY, Served
from tests.harness.user import OrdinaryUser
from tests.posix.operations import steps
from tests.posix.subject import Subject
from tests.recovery.processes import wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def describe(path: Path) -> list[str]:
    """Return the line of mountinfo for a mount point, split."""
    with open("/proc/self/mountinfo") as table:
        return next(line.split() for line in table if line.split()[4] == str(path))


class TestMounting:
    def test_it_is_nosuid_nodev_and_named(self, serve: Callable[..., Served]) -> None:
        fields = describe(serve("memory").path)
        assert {"nosuid", "nodev", "rw"} <= set(fields[5].split(","))
        kind, source, options = fields[fields.index("-") + 1 :]
        assert (kind, source) == ("fuse.serdab", "serdab-test")
        assert {"allow_other", "default_permissions"} <= set(options.split(","))

    def test_a_read_only_mount_refuses_changes(self, serve: Callable[..., Served]) -> None:
        served = serve("memory", "--read-only")
        with pytest.raises(OSError, match="Read-only"):
            (served.path / "f").touch()

    def test_the_read_ahead_can_be_raised(self, mem: Path) -> None:
        device = mem.stat().st_dev
        assert raise_read_ahead(device)
        knob = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
        assert Path(knob).read_text() == "1024\n"

    def test_a_mount_point_that_is_no_directory_is_refused_and_leaks_nothing(
        self, tmp_path: Path
    ) -> None:
        before = set(os.listdir("/proc/self/fd"))
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError):
            mount_host(tmp_path / "file", fsname="x")
        with pytest.raises(FileNotFoundError):
            mount_host(tmp_path / "none", fsname="x")
        # What tests before this one forgot may be closed meanwhile.
        assert set(os.listdir("/proc/self/fd")) <= before


class TestEnding:
    def test_a_busy_mount_is_not_unmounted_but_can_be_detached(
        self, serve: Callable[..., Served]
    ) -> None:
        served = serve("memory")
        file = open(served.path / "f", "w")  # noqa: SIM115 - closed in the middle
        with pytest.raises(OSError, match="busy"):
            unmount(served.path)
        unmount(served.path, lazy=True)
        assert os.listdir(served.path) == []
        file.write("still served")
        file.flush()
        assert served.process.poll() is None
        file.close()
        assert served.wait() == ""

    def test_a_killed_server_gives_enotconn_and_hangs_nobody(
        self, serve: Callable[..., Served]
    ) -> None:
        served = serve("memory")
        (served.path / "f").write_text("x")
        reader = subprocess.Popen(["sleep", "1000"], cwd=served.path)
        try:
            served.process.kill()
            served.process.wait(60)
            with pytest.raises(OSError, match="not connected") as caught:
                os.stat(served.path / "other")
            assert caught.value.errno == errno.ENOTCONN
        finally:
            reader.kill()
            reader.wait()

    def test_a_program_that_waits_for_an_answer_is_released_when_the_server_dies(
        self, serve: Callable[..., Served]
    ) -> None:
        served = serve("memory")
        served.process.send_signal(signal.SIGSTOP)  # it does not answer any more
        os.waitid(os.P_PID, served.process.pid, os.WSTOPPED)
        waiting = subprocess.Popen(
            ["stat", served.path / "f"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        stat = Path(f"/proc/{waiting.pid}/wchan")
        deadline = time.monotonic() + 60
        while not stat.read_text().startswith(("request_wait", "fuse", "__fuse")):
            if stat.read_text() == "0" and time.monotonic() > deadline - 59:
                break  # a kernel that does not tell where a process sleeps
            assert time.monotonic() < deadline
            time.sleep(0.01)
        served.process.kill()
        _, errors = waiting.communicate(timeout=60)
        assert b"not connected" in errors or b"abort" in errors

    def test_the_server_ends_when_the_mount_does(self, serve: Callable[..., Served]) -> None:
        assert serve("memory").unmount() == ""


def wait_until_in_the_kernel(pid: int) -> None:
    """Wait until a process sleeps in fsync(2)."""
    call = Path(f"/proc/{pid}/syscall")
    wait_until(lambda: call.read_text().split()[0] == FSYNC_NUMBER, "fsync")


FSYNC_NUMBER = "74" if os.uname().machine == "x86_64" else "82"  # of the newer architectures


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_a_program_interrupted_while_it_waits_leaves_the_server_in_order(
        self, serve: Callable[..., Served], number: int
    ) -> None:
        served = serve("slow")
        program = (
            "import os, signal, sys\n"
            "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
            "os.fsync(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY))\n"
        )
        waiting = subprocess.Popen([sys.executable, "-c", program, served.path / "f"])
        wait_until_in_the_kernel(waiting.pid)
        waiting.send_signal(number)
        # The kernel lets nobody go whose request is being served.
        served.process.send_signal(signal.SIGUSR1)
        assert waiting.wait(60) == -number
        (served.path / "g").write_text("alive")
        assert sorted(os.listdir(served.path)) == ["f", "g"]
        assert served.unmount() == ""


class TestReferences:
    @pytest.mark.parametrize("kind", ["memory", "host"])
    def test_every_lookup_is_forgotten_in_the_end(
        self, serve: Callable[..., Served], tmpfs: Path, kind: str
    ) -> None:
        served = serve(kind, "--source", str(tmpfs))
        top = served.path
        free_before = os.statvfs(top).f_ffree
        for number in range(40):
            folder = top / f"d{number}"
            folder.mkdir()
            for name in "abcdefgh":
                (folder / name).write_text(name)
            os.link(folder / "a", folder / "hard")
            os.rename(folder / "b", folder / "c")
            os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))
        for _ in range(3):
            subprocess.run(["ls", "-lR", top], stdout=subprocess.DEVNULL, check=True)
        for name in os.listdir(top):
            shutil.rmtree(top / name)
        # Forgets are sent in the background; a node that stays counts as a file in use.
        deadline = time.monotonic() + 60
        while os.statvfs(top).f_ffree != free_before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert served.unmount() == ""


def descend(subject: Subject, seed: int) -> None:
    for step in steps(random.Random(seed), 600):
        subject.apply(step)


class TestManyPrograms:
    def test_programs_at_the_same_time_get_their_own_answers(self, mem: Path, tmpfs: Path) -> None:
        children = []
        for seed in range(6):
            (mem / str(seed)).mkdir()
            (tmpfs / str(seed)).mkdir()
            child = os.fork()
            if child == 0:
                try:
                    subject = Subject(mem / str(seed))
                    descend(subject, seed)
                    subject.close()
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(child)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 6
        for seed in range(6):
            subject = Subject(tmpfs / str(seed))
            descend(subject, seed)
            subject.close()
            assert Subject(mem / str(seed)).tree() == Subject(tmpfs / str(seed)).tree()


class TestOrdinaryUser:
    def test_mounts_and_unmounts_through_fusermount(self, as_user: OrdinaryUser) -> None:
        place = as_user.home / "mnt, with comma"
        place.mkdir()
        as_user.own(place)
        server = subprocess.Popen(
            [
                *as_user.prefix, as_user.python, "-m", "tests.fuse.server",
                "memory", str(place), "--private",
            ],
            cwd=REPOSITORY, env=as_user.env,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            script = 'echo inside > "$1/f" && cat "$1/f" && df "$1" | tail -1'
            done = as_user.run("sh", "-c", script, "sh", place)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith(b"inside\nserdab-test ")
            program = "import sys; from serdab.fuse.mounting import unmount; unmount(sys.argv[1])"
            done = as_user.run(as_user.python, "-c", program, place)
            assert done.returncode == 0, done.stderr
            said, errors = server.communicate(timeout=60)
            assert (said, errors) == (b"closed\n", b"")
        finally:
            try:
                umount(os.fspath(place), UmountFlag.DETACH)
            except OSError:
                pass
            server.kill()
            server.communicate(timeout=60)

    def test_is_told_what_is_missing_without_fusermount(
        self, as_user: OrdinaryUser, tmp_path: Path
    ) -> None:
        program = (
            "import os, sys\n"
            "os.environ['PATH'] = '/nonexistent'\n"
            "from serdab.errors import EnvironmentRefused\n"
            "from serdab.fuse.mounting import mount_host\n"
            "try: mount_host('.', fsname='x')\n"
            "except EnvironmentRefused as exc: print(exc, '|', exc.hint)\n"
        )
        done = as_user.run(as_user.python, "-c", program)
        assert b"fusermount3" in done.stdout, done.stderr
        assert b"install the package fuse3" in done.stdout

    def test_is_told_why_fusermount_refuses(self, as_user: OrdinaryUser) -> None:
        program = (
            "from serdab.errors import EnvironmentRefused\n"
            "from serdab.fuse.mounting import mount_host\n"
            "try: mount_host('/usr', fsname='x', allow_other=False)\n"
            "except EnvironmentRefused as exc: print(exc.found, '|', exc.hint)\n"
        )
        done = as_user.run(as_user.python, "-c", program)
        assert b"/usr" in done.stdout, done.stderr


def test_without_a_device_the_hint_names_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serdab.fuse.mounting._DEVICE", "/dev/no-such-fuse")
    with pytest.raises(EnvironmentRefused) as caught:
        mount_host("/", fsname="x")
    assert "--device /dev/fuse" in caught.value.hint
