# SPDX-License-Identifier: Apache-2.0
"""What is written through ``mount`` is read through ``run``, and the other way round."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from serdab.linux.mounts import mounts_at
from tests.mount_command.mounted import MakeOwner, Owner, is_mounted

pytestmark = [pytest.mark.fuse, pytest.mark.userns, pytest.mark.root]


def test_mount_and_run_see_what_the_other_wrote(owner: Owner) -> None:
    mounted = owner.start()
    assert mounted.shell('cat "$M/etc/greeting"') == "hello\n"
    mounted.shell('mkdir "$M/srv"; cat > "$M/srv/note"', stdin=b"from outside\n")
    mounted.shell('rm "$M/etc/greeting"; ln -s note "$M/srv/link"; chmod 600 "$M/srv/note"')
    assert mounted.end().returncode == 0
    assert not is_mounted(mounted.path)
    assert owner.inside("/bin/cat", "/srv/link") == "from outside\n"
    assert owner.instance.run("/bin/cat", "/etc/greeting").returncode == 1
    owner.inside("/bin/sh", "-c", "echo from inside > /srv/answer; echo more >> /srv/note")
    mounted = owner.start("--read-only")
    assert mounted.shell('cat "$M/srv/answer" "$M/srv/note"') == (
        "from inside\nfrom outside\nmore\n"
    )
    assert mounted.end().returncode == 0
    owner.fsck()


def test_what_an_ordinary_user_sees_and_makes_is_theirs(owner: Owner) -> None:
    mounted = owner.start()
    uid = owner.user.uid if owner.user else 0
    assert mounted.shell('stat -c %u "$M" "$M/etc/greeting"').split() == [str(uid)] * 2
    mounted.shell('echo x > "$M/root/mine"')
    assert mounted.shell('stat -c %u "$M/root/mine"') == f"{uid}\n"
    assert mounted.end().returncode == 0
    shown = owner.inside("/bin/busybox", "stat", "-c", "%u:%g", "/root/mine", "/etc/greeting")
    assert shown == "0:0\n0:0\n"


def test_root_sees_the_owners_of_the_image(common_owner: Owner) -> None:
    mounted = common_owner.start()
    (mounted.path / "tmp/file").write_bytes(b"x")
    os.chown(mounted.path / "tmp/file", 33, 44)
    assert mounted.end().returncode == 0
    status = "/bin/busybox", "stat", "-c", "%u:%g", "/tmp/file"
    assert common_owner.inside(*status) == "33:44\n"


def test_nothing_from_the_image_gets_rights_on_the_host(common_owner: Owner) -> None:
    mounted = common_owner.start()
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        (line,) = [line for line in table if f" {mounted.path} " in line]
    assert {"nosuid", "nodev"} <= set(line.split()[5].split(","))


def test_read_only_changes_nothing_at_all(common_owner: Owner) -> None:
    common_owner.inside("/bin/sh", "-c", "echo kept > /root/file")
    before = common_owner.files()
    mounted = common_owner.start("--read-only")
    assert mounted.shell('cat "$M/root/file"') == "kept\n"
    failed = mounted.attempt("/bin/sh", "-c", 'echo x > "$M/root/file"')
    assert failed.returncode != 0
    assert b"Read-only file system" in failed.stderr
    assert mounted.end().returncode == 0
    assert common_owner.files() == before


def test_looking_without_a_change_writes_nothing(common_owner: Owner) -> None:
    common_owner.inside("/bin/sh", "-c", "echo kept > /root/file")
    common_owner.start().end()
    before = common_owner.files()
    mounted = common_owner.start()
    assert mounted.shell('cat "$M/root/file"') == "kept\n"
    assert mounted.end().returncode == 0
    assert common_owner.files() == before


def test_an_integrity_only_instance_needs_no_image_key(make_owner: MakeOwner) -> None:
    owner = make_owner(encrypted=False)
    mounted = owner.start()
    (mounted.path / "root/file").write_bytes(b"under the automatic key\n")
    assert mounted.unmount().returncode == 0
    assert owner.inside("/bin/cat", "/root/file") == "under the automatic key\n"


def test_json_says_what_was_mounted(common_owner: Owner) -> None:
    mounted = common_owner.start("--layer", "image", flags=("--json",))
    done = mounted.end()
    said = json.loads(done.stdout)
    assert said["mounted"] == str(mounted.path)
    assert (said["layer"], said["read_only"]) == ("image", True)
    assert said["pid"] == mounted.process.pid
    root_mac = common_owner.instance.command.ok(
        "-C", common_owner.instance.path, "print", "root-mac"
    )
    assert said["root-mac"] == root_mac.strip()


def test_the_key_may_come_from_standard_input(common_owner: Owner) -> None:
    key = common_owner.instance.key
    assert key is not None
    done = common_owner.instance.command.run(
        "-C", common_owner.instance.path, "mount", "--image-key", "-", "/nonexistent",
        stdin=key.read_bytes(),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr


def test_the_process_that_holds_keys_cannot_be_looked_into(user_owner: Owner) -> None:
    mounted = user_owner.start()
    process = Path(f"/proc/{mounted.process.pid}")
    assert (process / "environ").stat().st_uid == 0  # not dumpable: proc(5)
    assert user_owner.user is not None
    for name in ("environ", "maps", "mem"):
        denied = user_owner.user.run("cat", str(process / name))
        assert b"Permission denied" in denied.stderr, name
    cores = [line for line in (process / "limits").read_text().splitlines() if "core file" in line]
    assert cores[0].split()[4] == "0"
    key = user_owner.instance.key
    assert key is not None
    for name in ("environ", "cmdline"):
        assert key.read_bytes().strip() not in (process / name).read_bytes()


def test_the_mode_of_the_root_directory_is_the_images(common_owner: Owner) -> None:
    mounted = common_owner.start()
    assert stat.S_IMODE(mounted.path.stat().st_mode) == 0o755
    (mount,) = mounts_at(str(mounted.path))
    assert mount.fstype == "fuse.serdab"
