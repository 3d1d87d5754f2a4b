# SPDX-License-Identifier: Apache-2.0
"""Mounts upon mounts: what goes is what was meant, and what went with it is forgotten."""

from __future__ import annotations

import signal
import subprocess
from contextlib import ExitStack

import pytest

from tests.mount.balance import has_found, server_of
from tests.mount.conftest import Mounter
from tests.recovery.processes import wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

#: More than the mounts that an instance may have.
ROUNDS = 72


def test_what_was_mounted_within_goes_with_it_and_is_forgotten(mounter: Mounter) -> None:
    mount = ("mount", "none", "/mnt", "ramfs", "0", "NULL")
    within = ("mkdir", "/mnt/a", "mount", "none", "/mnt/a", "ramfs", "0", "NULL")
    found = mounter.calls(*(*mount, *within, "umount", "/mnt", "0") * ROUNDS)
    assert found == ["ok"] * (4 * ROUNDS)


def test_a_sealed_volume_within_keeps_what_was_written(mounter: Mounter) -> None:
    mounter.folder("s")
    sealed = ("mount", "none", "/mnt/a", "sefs", "0", "dir=s")
    outer = ("mount", "none", "/mnt", "ramfs", "0", "NULL", "mkdir", "/mnt/a")
    first = (*outer, *sealed, "write", "/mnt/a/f", "kept", "umount", "/mnt", "0")
    again = (*outer, *sealed, "read", "/mnt/a/f", "umount", "/mnt/a", "0", "umount", "/mnt", "0")
    assert mounter.calls(*first, *again) == [*["ok"] * 8, "kept", "ok", "ok"]


@pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
def test_a_sealed_volume_within_is_durable_when_the_umount_returns(mounter: Mounter) -> None:
    folder = mounter.folder("s")
    process = mounter.instance.command.popen(
        *("-C", str(mounter.path), "run", "/bin/mounter", "mount", "x", "/mnt", "ramfs", "0"),
        *("NULL", "mkdir", "/mnt/a", "mount", "x", "/mnt/a", "sefs", "0", "dir=s"),
        *("write", "/mnt/a/f", "kept", "open", "/mnt/a", "umount", "/mnt", "0", "wait"),
        stdin=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        said = [process.stdout.readline().split()[-1] for _ in range(6)]
        assert said == [b"ok"] * 6
        # Who has it open keeps it from being closed.
        server_of(process.pid, folder).kill()
        process.communicate(b"\n", timeout=60)
    found = mounter.calls("mount", "x", "/mnt", "sefs", "0", "dir=s", "read", "/mnt/f")
    assert found == ["ok", "kept"]


@pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
def test_an_umount_tells_of_one_within_that_has_lost_its_server(mounter: Mounter) -> None:
    folder = mounter.folder("s")
    process = mounter.instance.command.popen(
        *("-C", str(mounter.path), "run", "/bin/mounter", "mount", "x", "/mnt", "ramfs", "0"),
        *("NULL", "mkdir", "/mnt/a", "mount", "x", "/mnt/a", "sefs", "0", "dir=s", "wait"),
        *("umount", "/mnt", "0", "umount", "/mnt", "0"),
        stdin=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert [process.stdout.readline().split()[-1] for _ in range(3)] == [b"ok"] * 3
        server = server_of(process.pid, folder)
        server.kill()
        wait_until(lambda: not server.is_alive(), "the end of the server")
        out, _ = process.communicate(b"\n", timeout=60)
    assert [line.split()[-1] for line in out.splitlines()] == [b"EIO", b"EINVAL"]


@pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
def test_mounts_that_went_with_their_directory_are_not_counted(mounter: Mounter) -> None:
    places = [f"/tmp/m{number}" for number in range(ROUNDS)]
    made = " ".join(f"mkdir {place}" for place in places)
    mount = " ".join(f"mount x {place} ramfs 0 NULL" for place in places)
    # Where nothing is mounted on them they can be removed, and are.
    removed = " ".join(f"rmdir {place}" for place in places)
    script = (
        f"mounter {made} > /tmp/made;"
        f"(until [ -e /tmp/there ]; do sleep 0.05; done; mounter {mount} > /tmp/said; echo) |"
        f"mounter apart mkdir /tmp/there wait {removed} > /tmp/removed;"
        "grep -c ok /tmp/removed; grep -c ok /tmp/said; grep -c ENOSPC /tmp/said;"
        "grep -c /tmp/m /proc/mounts; mounter mount x /mnt ramfs 0 NULL umount /mnt 0"
    )
    said = mounter.instance.run("/bin/sh", "-c", script).stdout.decode().splitlines()
    assert said == [str(ROUNDS + 2), "64", str(ROUNDS - 64), "0", "mount ok", "umount ok"]


@pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
def test_an_umount_takes_off_what_came_over_its_target_meanwhile(mounter: Mounter) -> None:
    folder = mounter.folder("s")
    script = (
        "mounter mount x /mnt sefs 0 dir=s write /mnt/f below; read go; "
        "mounter umount /mnt 0 & read go; "
        "mounter mount x /mnt ramfs 0 NULL write /mnt/f above; wait; "
        "mounter read /mnt/f umount /mnt 0 read /mnt/f umount /mnt 0"
    )
    process = mounter.instance.command.popen(
        *("-C", str(mounter.path), "run", "/bin/sh", "-c", script), stdin=subprocess.PIPE
    )
    with process, ExitStack() as stack:
        assert process.stdout is not None
        assert process.stdin is not None
        said = [process.stdout.readline() for _ in range(2)]
        server = server_of(process.pid, folder)
        stack.callback(server.kill, signal.SIGCONT)
        server.kill(signal.SIGSTOP)
        process.stdin.write(b"\n")
        process.stdin.flush()
        wait_until(lambda: has_found(process.pid, "/mnt"), "an umount that waits for its server")
        process.stdin.write(b"\n")
        process.stdin.flush()
        said += [process.stdout.readline() for _ in range(2)]
        server.kill(signal.SIGCONT)
        said += process.stdout.readlines()
    assert [line.split()[-1] for line in said] == [
        *(b"ok", b"ok", b"ok", b"ok", b"ok"),
        *(b"below", b"ok", b"ENOENT", b"EINVAL"),
    ]


@pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
def test_what_has_lost_its_server_can_be_unmounted_and_mounted_again(mounter: Mounter) -> None:
    folder = mounter.folder("s")
    script = (
        "mounter mount x /mnt sefs 0 dir=s write /mnt/f synced syncfs /mnt; read go; "
        "mounter read /mnt/f syncfs / umount /mnt 0 syncfs / umount /mnt 0 "
        "mount x /mnt sefs 0 dir=s read /mnt/f umount /mnt 0"
    )
    process = mounter.instance.command.popen(
        *("-C", str(mounter.path), "run", "/bin/sh", "-c", script), stdin=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        server = server_of(process.pid, folder)
        server.kill()
        wait_until(lambda: not server.is_alive(), "the end of the server")
        out, told = process.communicate(b"\n", timeout=60)
    assert [line.split()[-1] for line in said] == [b"ok", b"ok", b"ok"]
    said = [line.split()[-1] for line in out.splitlines()]
    assert said[0] in (b"ENOTCONN", b"ECONNABORTED")
    assert said[1:] == [b"EIO", b"EIO", b"ok", b"EINVAL", b"ok", b"synced", b"ok"]
    assert b"umount: sefs /mnt: it had lost its fs server, and what was not synced" in told
