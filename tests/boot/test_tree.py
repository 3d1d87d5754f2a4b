# SPDX-License-Identifier: Apache-2.0
"""What a program sees: the host directory, the three files of the host, memory, sync."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.command import describe
from tests.sandbox.conftest import Box, Place

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


def test_no_mount_is_left_of_the_roots_before(hosted: Box) -> None:
    table = [line.split() for line in hosted.out("/bin/cat", "/proc/self/mountinfo").splitlines()]
    assert [fields[4] for fields in table].count("/") == 1
    types = {fields[fields.index("-") + 1] for fields in table}
    assert types <= {"fuse.serdab", "proc", "tmpfs", "devtmpfs", "devpts"}
    assert sum("fuse.serdab" in fields for fields in table) == 2  # the root, /host


class TestHostDirectory:
    def test_the_instance_directory_is_shown_without_what_later_verbs_obey(
        self, hosted: Box
    ) -> None:
        (hosted.path / "passed").touch()
        assert hosted.out("/bin/ls", "-A", "/host").split() == ["build", "passed", "run"]
        (hosted.path / "passed").unlink()

    @pytest.mark.parametrize("name", ["build", "run"])
    def test_build_and_run_are_empty(self, hosted: Box, name: str) -> None:
        assert hosted.out("/bin/ls", "-A", f"/host/{name}") == ""

    @pytest.mark.parametrize("name", ["build", "run"])
    def test_build_and_run_cannot_be_written_or_moved(self, hosted: Box, name: str) -> None:
        script = f"echo x > /host/{name}/x || /bin/busybox mv /host/{name} /host/y || echo refused"
        assert hosted.out("/bin/sh", "-c", script).endswith("refused")
        assert (hosted.path / name).is_dir()

    def test_a_file_that_the_caller_of_pal_names_cannot_be_read(
        self, place: Place, probe_program: Path
    ) -> None:
        # Not where a key belongs; the command line refuses it there (tests/attack).
        box = place.build(probe_program)
        key = box.path / "image_key"
        key.write_text("secret")
        script = "cat /host/image_key; echo changed > /host/image_key; ls /host; echo on"
        code = (
            "import sys\n"
            "from serdab import pal\n"
            "if __name__ == '__main__':\n"
            "    path, key, script = sys.argv[1:]\n"
            "    with pal.init(path, private=[key]) as inside:\n"
            "        sys.exit(inside.exec(['/bin/sh', '-c', script]).code)\n"
        )
        words = [*box.command.prefix[:-2], "-c", code, str(box.path), str(key), script]
        done = subprocess.run(
            words, env=box.command.env, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        assert done.stdout.split() == [b"build", b"run", b"on"], describe(done)
        assert key.read_text() == "secret"

    def test_what_is_written_belongs_to_the_caller(self, hosted: Box) -> None:
        hosted.out("/bin/sh", "-c", "echo from inside > /host/note")
        note = hosted.path / "note"
        assert note.read_text() == "from inside\n"
        assert note.stat().st_uid == hosted.path.stat().st_uid
        note.unlink()

    def test_what_the_host_changes_is_seen(self, hosted: Box) -> None:
        (hosted.path / "other").write_text("one")
        (hosted.path / "other").chmod(0o644)
        assert hosted.out("/bin/cat", "/host/other") == "one"
        (hosted.path / "other").unlink()

    def test_a_set_id_file_does_not_work_from_there(self, hosted: Box) -> None:
        line = next(
            line
            for line in hosted.out("/bin/cat", "/proc/self/mountinfo").splitlines()
            if line.split()[4] == "/host"
        )
        assert {"nosuid", "nodev"} <= set(line.split()[5].split(","))

    def test_a_link_out_of_it_leads_nowhere_on_the_host(self, hosted: Box) -> None:
        link = hosted.path / "link"
        link.symlink_to("/etc/machine-id-of-nobody/../../proc/1/root/etc/passwd")
        assert hosted.run("/bin/cat", "/host/link").returncode == 1
        link.unlink()

    def test_there_may_be_many_of_them(self, configured: Callable[..., Box]) -> None:
        lines = [{"target": f"/h{n}", "type": "hostfs", "source": "."} for n in range(12)]
        box = configured(mount=[*ROOT_LINE, *lines])
        script = "echo x > /h0/seen; cat /h*/seen | /bin/busybox wc -l"
        assert box.out("/bin/sh", "-c", script) == "12"


class TestFilesOfTheHost:
    def test_hosts_is_the_host_s(self, hosted: Box) -> None:
        assert hosted.out("/bin/cat", "/etc/hosts") == Path("/etc/hosts").read_text().strip()

    def test_writing_them_leaves_the_volume_clean(self, hosted: Box) -> None:
        hosted.run("/bin/sh", "-c", "echo changed > /etc/hosts")
        assert hosted.out("/bin/cat", "/etc/hosts") == Path("/etc/hosts").read_text().strip()

    def test_the_host_name_is_the_host_s(self, hosted: Box) -> None:
        assert hosted.out("/bin/busybox", "hostname") == socket.gethostname()


class TestDevices:
    def test_the_devices_are_there(self, hosted: Box) -> None:
        names = hosted.out("/bin/ls", "/dev").split()
        assert {"null", "zero", "full", "random", "urandom", "tty", "pts", "shm"} <= set(names)

    def test_root_is_in_the_group_of_root(self, hosted: Box) -> None:
        line = hosted.out("/bin/busybox", "grep", "^Groups:", "/proc/self/status")
        groups = line.split()[1:]
        # An ordinary user without a range of ids keeps those he has, which have no number inside.
        assert groups == ["0"] or set(groups) <= {"65534"}
        assert groups == ["0"] or not hosted.is_root

    def test_the_name_of_random_bytes_that_occlum_has_is_there(self, hosted: Box) -> None:
        script = "/bin/busybox head -c 9 /dev/arandom | /bin/busybox wc -c"
        assert hosted.out("/bin/sh", "-c", script) == "9"

    def test_they_work(self, hosted: Box) -> None:
        script = (
            "echo x > /dev/null && echo x 2>/dev/null > /dev/full || echo full;"
            " /bin/busybox head -c 4 /dev/zero | /bin/busybox wc -c;"
            " /bin/busybox head -c 9 /dev/urandom | /bin/busybox wc -c;"
            " echo y > /dev/shm/y && cat /dev/shm/y"
        )
        assert hosted.out("/bin/sh", "-c", script).split() == ["full", "4", "9", "y"]

    def test_the_standard_streams_can_be_opened_again(self, hosted: Box) -> None:
        if not hosted.is_root:
            return  # the pipes of this test are root's, whom an ordinary user is not
        script = "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin"
        result = hosted.run("/bin/sh", "-c", script, stdin=b"in")
        assert (result.stdout, result.stderr) == (b"out\nin", b"err\n"), describe(result)

    def test_a_new_terminal_can_be_made(self, hosted: Box) -> None:
        script = "exec 3<>/dev/ptmx && ls /dev/pts"
        assert hosted.out("/bin/sh", "-c", script).split() == ["0", "ptmx"]


class TestMemory:
    def test_a_ramfs_is_there_and_forgets(self, configured: Callable[..., Box]) -> None:
        box = configured(mount=[*ROOT_LINE, {"target": "/scratch", "type": "ramfs"}])
        script = "ls -A /scratch; echo x > /scratch/f; cat /scratch/f"
        for _ in range(2):
            assert box.out("/bin/sh", "-c", script) == "x"


class TestSync:
    def test_after_sync_nothing_is_lost_by_a_kill(self, hosted: Box) -> None:
        mark = os.urandom(6).hex()
        script = f"echo {mark} > /root/synced; /bin/busybox sync; kill -9 $$"
        result = hosted.run("/bin/sh", "-c", script)
        assert result.returncode == 137, describe(result)
        assert hosted.out("/bin/cat", "/root/synced") == mark

    def test_syncing_one_file_system_works_too(self, hosted: Box) -> None:
        assert hosted.probe("syscall", "162") == "ok"
        assert hosted.run("/bin/busybox", "sync", "-f", "/root").returncode == 0


class TestNetwork:
    def test_an_own_network_has_a_loopback_only(self, configured: Callable[..., Box]) -> None:
        box = configured(serdab={"network": "none"})
        text = box.out("/bin/cat", "/proc/net/dev")
        names = [line.split(":")[0].strip() for line in text.splitlines() if ":" in line]
        assert names == ["lo"]
        assert box.run("/bin/busybox", "ping", "-c", "1", "127.0.0.1").returncode in (0, 1)


ROOT_LINE = [
    {
        "target": "/",
        "type": "unionfs",
        "options": {
            "layers": [
                {
                    "target": "/",
                    "type": "sefs",
                    "source": "./build/mount/__ROOT",
                    "options": {"MAC": ""},
                },
                {"target": "/", "type": "sefs", "source": "./run/mount/__ROOT"},
            ]
        },
    }
]
