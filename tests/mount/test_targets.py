# SPDX-License-Identifier: Apache-2.0
"""Who mounts where: whoever is not the inner root has only its own directories for that.

Run by root, and by an ordinary user with subordinate ids. One who has a single id has no other
user inside than the inner root.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.harness.command import describe
from tests.harness.user import ORDINARY_NAME
from tests.mount.conftest import Mounter

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

RANGE: Final = 300_000_000
#: Makes a directory of uid 1000, and is that user from then on.
AS_1000: Final = ("mkdir", "/own", "own", "/own", "1000", "as", "1000")
RAMFS: Final = ("ramfs", "0", "NULL")


def with_ids(mounter: Mounter, tmp_path: Path) -> Mounter:
    """Give an ordinary user a range of subordinate ids, in a mount namespace of its own."""
    if mounter.user is None:
        return mounter
    if os.geteuid() != 0 or shutil.which("newuidmap") is None:
        pytest.skip("no subordinate ids can be given")
    ranges = tmp_path / "ranges"
    ranges.write_text(f"{ORDINARY_NAME}:{RANGE}:65536\n")
    ranges.chmod(0o644)
    script = 'for f in subuid subgid; do mount --bind "$0" /etc/$f; done && exec "$@"'
    command = mounter.instance.command
    prefix = ("unshare", "-m", "sh", "-c", script, str(ranges), *command.prefix)
    return replace(
        mounter, instance=replace(mounter.instance, command=replace(command, prefix=prefix))
    )


@pytest.fixture
def ranged(mounter: Mounter, tmp_path: Path) -> Mounter:
    return with_ids(mounter, tmp_path)


def configure(mounter: Mounter, **policy: object) -> None:
    file = mounter.path / "Occlum.json"
    config = json.loads(file.read_text())
    config["serdab"] = {"runtime_mounts": policy}
    file.write_text(json.dumps(config))
    mounter.instance.command.ok("-C", mounter.path, "build")


def test_no_user_covers_the_programs_that_the_inner_root_runs(ranged: Mounter) -> None:
    words = ("mount", "x", "/bin", *RAMFS, "mkdir", "/bin/mine")
    done = ranged.instance.run("/bin/mounter", "as", "1000", *words)
    assert done.stdout.split() == [b"as", b"ok", b"mount", b"EPERM", b"mkdir", b"EACCES"]
    said = done.stderr.decode()
    assert "mount: '/bin': not a directory of the caller" in said
    assert "expected owner 1000, found 0" in said
    assert "hint: serdab.runtime_mounts.targets" in said


def test_a_user_mounts_on_its_own_directory_and_the_inner_root_anywhere(ranged: Mounter) -> None:
    assert ranged.calls(
        *("mkdir", "/own", "own", "/own", "1000", "mount", "x", "/own", *RAMFS),
        *("umount", "/own", "0", "mount", "x", "/mnt", *RAMFS),
        *("as", "1000", "mount", "x", "/own", *RAMFS, "write", "/own/f", "text"),
        *("mount", "x", "/own", *RAMFS, "umount", "/own", "0", "umount", "/own", "0"),
        *("umount", "/mnt", "0"),
    ) == ["ok"] * 11 + ["EPERM"]


def test_who_is_who_is_decided_outside_of_all_nested_namespaces(ranged: Mounter) -> None:
    out = ranged.calls(
        *AS_1000, "inner", "mount", "x", "/mnt", *RAMFS, "mount", "x", "/own", *RAMFS
    )
    assert out == ["ok"] * 4 + ["EPERM", "ok"]


@pytest.mark.parametrize("word", ["euid", "fsuid"])
def test_the_thread_that_calls_is_asked_with_both_its_ids(ranged: Mounter, word: str) -> None:
    out = ranged.calls(word, "1000", "mount", "x", "/mnt", *RAMFS)
    assert out == ["ok", "EPERM"]


def test_nobody_unmounts_what_others_mounted(ranged: Mounter) -> None:
    made = ("mkdir", "/own", "own", "/own", "1000", "mount", "x", "/own", *RAMFS)
    assert ranged.calls(*made, "as", "1000", "umount", "/own", "0")[-1] == "EPERM"
    assert ranged.calls(*made, "as", "1000", "umount", "/own", "2")[-1] == "EPERM"
    # What is mounted within goes with it.
    inner = ("mkdir", "/own/in", "own", "/own/in", "1001", "mount", "x", "/own/in", *RAMFS)
    script = (
        "mounter mkdir /own own /own 1000; mounter as 1000 mount x /own ramfs 0 NULL; "
        f"mounter {' '.join(inner)}; mounter as 1000 umount /own 0; mounter umount /own 0"
    )
    done = ranged.instance.run("/bin/sh", "-c", script)
    assert done.stdout.decode().splitlines()[-2:] == ["umount EPERM", "umount ok"], describe(done)


def test_nobody_mounts_over_what_others_mounted_through_a_descriptor_of_what_is_below(
    ranged: Mounter,
) -> None:
    """A mount goes on top of what is there, whichever directory its target names."""
    script = (
        "mounter mkdir /own own /own 1000; "
        "busybox mkfifo /tmp/go /tmp/said; "
        "mounter as 1000 open /own wait mount x /proc/self/fd/9 ramfs 0 NULL </tmp/go >/tmp/said & "
        "exec 3>/tmp/go 4</tmp/said; read a <&4; read b <&4; "
        "mounter mount x /own ramfs 0 NULL; echo >&3; cat <&4"
    )
    done = ranged.instance.run("/bin/sh", "-c", script)
    assert done.stdout.decode().splitlines()[-2:] == ["mount ok", "mount EPERM"], describe(done)
    assert b"another user's mount" in done.stderr


def test_a_directory_of_the_host_is_mounted_by_its_owner(ranged: Mounter) -> None:
    """``dir=`` names it past the directories above it, so its owner is who may write there."""
    folder = ranged.folder("private/shared")
    folder.chmod(0o777)
    ranged.folder("private").chmod(0o700)
    dirs = ("sefs", "0", "dir=private/shared"), ("hostfs", "0", "dir=private/shared")
    hostfs_read_only = ("hostfs", "1", "dir=private/shared")
    union = ("unionfs", "0", "lowerdir=low,upperdir=private/shared")
    ranged.folder("low")
    mounts = [("mount", "x", "/own", *how) for how in (*dirs, hostfs_read_only, union)]
    done = ranged.instance.run("/bin/mounter", *AS_1000, *(word for one in mounts for word in one))
    assert done.stdout.decode().split()[1::2] == ["ok"] * 3 + ["EPERM"] * 4, describe(done)
    assert "expected owner 1000" in done.stderr.decode()
    assert not list(folder.iterdir())
    assert not list((ranged.path / "low").iterdir())
    out = ranged.calls(
        *("mount", "x", "/mnt", *dirs[0], "write", "/mnt/f", "x", "umount", "/mnt", "0")
    )
    assert out == ["ok"] * 3, "the inner root may"


@pytest.mark.root
@pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
def test_its_owner_may(mounter: Mounter) -> None:
    """Run by root, owners on the host are shown as they are."""
    folder = mounter.folder("theirs")
    os.chown(folder, 1000, 1000)
    words = ("mount", "x", "/own", "sefs", "0", "dir=theirs", "umount", "/own", "0")
    assert mounter.calls(*AS_1000, *words) == ["ok"] * 5
    # Of the layers of a union the lower one stays as it is, unless it is yet to be made.
    mounter.folder("low")
    os.chown(mounter.folder("up"), 1000, 1000)
    union = ("mount", "x", "/own", "unionfs", "0", "lowerdir=low,upperdir=up")
    assert mounter.calls(*AS_1000, *union)[-1] == "EPERM"
    assert not list((mounter.path / "low").iterdir())
    mounter.calls("mount", "x", "/mnt", "sefs", "0", "dir=low", "umount", "/mnt", "0")
    assert mounter.calls(*AS_1000, *union)[-1] == "ok"
    os.chown(mounter.folder("up"), 0, 0)
    assert mounter.calls(*AS_1000, *union)[-1] == "EPERM"


def test_the_configuration_opens_it(ranged: Mounter) -> None:
    configure(ranged, targets="any")
    ranged.folder("low")
    assert (
        ranged.calls(
            *("mount", "x", "/mnt2", *RAMFS, "as", "1000", "umount", "/mnt2", "0"),
            *("mount", "x", "/mnt", *RAMFS, "umount", "/mnt", "0"),
            *("mount", "x", "/mnt", "sefs", "0", "dir=low", "umount", "/mnt", "0"),
        )
        == ["ok"] * 7
    )


@pytest.mark.parametrize("new_mounter", ["user"], indirect=True)
def test_with_one_id_everybody_is_the_inner_root(mounter: Mounter) -> None:
    assert mounter.calls("mount", "x", "/mnt", *RAMFS, "umount", "/mnt", "0") == ["ok", "ok"]
    assert mounter.calls("inner", "mount", "x", "/mnt", *RAMFS) == ["ok", "ok"]
