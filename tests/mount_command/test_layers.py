# SPDX-License-Identifier: Apache-2.0
"""The image alone, what was changed since, both; and a writable layer of an earlier image."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from serdab.linux.mounts import MountFlag, UmountFlag, mount, umount
from tests.harness.command import describe
from tests.mount_command.mounted import MakeOwner, Owner

pytestmark = [pytest.mark.fuse, pytest.mark.userns, pytest.mark.root]


def listing(top: Path) -> set[str]:
    """Return the paths below a directory."""
    return {str(path.relative_to(top)) for path in top.rglob("*")}


def test_the_image_is_what_was_built(root_owner: Owner) -> None:
    root_owner.inside("/bin/sh", "-c", "echo changed > /etc/greeting; echo new > /root/new")
    mounted = root_owner.start("--layer", "image")
    assert (mounted.path / "etc/greeting").read_text() == "hello\n"
    assert not (mounted.path / "root/new").exists()
    with pytest.raises(OSError, match="Read-only"):
        (mounted.path / "root/new").write_text("x")
    assert mounted.end().returncode == 0


def test_the_upper_is_what_was_changed(make_owner: MakeOwner) -> None:
    def fill(image: Path) -> None:
        (image / "data/kept/deep").mkdir(parents=True)
        (image / "data/kept/deep/file").write_bytes(b"a" * 100_000)
        (image / "data/kept/other").write_text("untouched\n")
        (image / "data/gone").write_text("x")
        (image / "data/tree/below").mkdir(parents=True)
        (image / "data/tree/below/leaf").write_text("x")
        (image / "data/mode").write_text("x")
        (image / "data/renamed").write_text("moved\n")

    owner = make_owner(fill=fill)
    script = """
    set -e
    printf B | busybox dd of=/data/kept/deep/file bs=1 seek=50000 conv=notrunc 2>/dev/null
    busybox rm /data/gone; busybox rm -r /data/tree
    busybox chmod 600 /data/mode; busybox mv /data/renamed /data/name
    busybox mkdir -p /data/new/dir; echo x > /data/new/dir/file; busybox ln -s file /data/new/link
    """
    owner.inside("/bin/sh", "-c", script)
    mounted = owner.start("--layer", "upper")
    top = mounted.path
    expected = {
        "data", "data/kept", "data/kept/deep", "data/kept/deep/file", "data/gone", "data/tree",
        "data/mode", "data/renamed", "data/name", "data/new", "data/new/dir", "data/new/dir/file",
        "data/new/link",
    }  # fmt: skip
    assert listing(top) == expected
    for name in ("gone", "tree", "renamed"):
        status = (top / "data" / name).lstat()
        assert stat.S_ISCHR(status.st_mode)
        assert status.st_rdev == 0
    content = (top / "data/kept/deep/file").read_bytes()
    assert content == b"a" * 50_000 + b"B" + b"a" * 49_999
    assert stat.S_IMODE((top / "data/mode").stat().st_mode) == 0o600
    assert (top / "data/name").read_text() == "moved\n"
    assert os.readlink(top / "data/new/link") == "file"
    assert (top / "data").stat().st_nlink == 4
    found = subprocess.run(["find", top, "-type", "c"], capture_output=True, check=True, text=True)
    assert len(found.stdout.split()) == 3
    with pytest.raises(OSError, match="Read-only"):
        (top / "data/name").unlink()
    assert mounted.end().returncode == 0


def test_without_a_writable_layer_there_is_no_upper(root_owner: Owner) -> None:
    before = root_owner.files()
    refused = root_owner.refused("--layer", "upper")
    assert refused.returncode == 2, describe(refused)
    assert b"there is no writable layer" in refused.stderr
    assert root_owner.files() == before


def test_without_a_writable_layer_reading_makes_none(root_owner: Owner) -> None:
    before = root_owner.files()
    mounted = root_owner.start("--read-only")
    assert (mounted.path / "etc/greeting").read_text() == "hello\n"
    assert mounted.end().returncode == 0
    assert root_owner.files() == before


def test_a_layer_of_the_image_before_is_opened_over_it(root_owner: Owner) -> None:
    root_owner.inside("/bin/sh", "-c", "echo kept > /root/diary")
    old = root_owner.instance.command.ok("-C", root_owner.instance.path, "print", "root-mac")
    (root_owner.instance.path / "image/etc/greeting").write_text("new image\n")
    root_owner.instance.command.ok("-C", root_owner.instance.path, "build", *root_owner.key())
    assert b"another image" in root_owner.instance.run("/bin/true").stderr
    for options in ((), ("--previous",), ("--layer", "upper")):
        mounted = root_owner.start(*options)
        assert (mounted.path / "root/diary").read_text() == "kept\n"
        done = mounted.end()
        assert done.returncode == 0, describe(done)
        assert (old.strip().encode() in done.stderr) == (options != ("--previous",))
    for options, text in (((), "new image\n"), (("--previous",), "hello\n")):
        mounted = root_owner.start("--layer", "image", *options)
        assert (mounted.path / "etc/greeting").read_text() == text
        assert mounted.end().returncode == 0
    mounted = root_owner.start()
    (mounted.path / "root/more").write_text("written\n")
    assert mounted.end().returncode == 0
    shown = root_owner.instance.run("--previous", "/bin/cat", "/root/diary", "/root/more")
    assert shown.stdout == b"kept\nwritten\n", describe(shown)


def test_a_layer_of_an_image_that_was_not_kept_is_refused(root_owner: Owner) -> None:
    root_owner.inside("/bin/sh", "-c", "echo kept > /root/diary")
    (root_owner.instance.path / "image/etc/greeting").write_text("new image\n")
    root_owner.instance.command.ok("-C", root_owner.instance.path, "build", *root_owner.key())
    (root_owner.instance.path / "build/previous").rename(root_owner.base / "away")
    before = root_owner.files()
    refused = root_owner.refused()
    assert refused.returncode == 3, describe(refused)
    assert b"was not kept" in refused.stderr
    assert root_owner.files() == before


def test_a_layer_that_is_kept_in_memory_is_not_written_through_a_mount(root_owner: Owner) -> None:
    path = root_owner.instance.path / "Occlum.json"
    config = json.loads(path.read_text())
    (layer,) = (
        layer
        for layer in config["mount"][0]["options"]["layers"]
        if layer["source"].startswith("./run")
    )
    layer["options"] = {"temporary": True}
    path.write_text(json.dumps(config))
    root_owner.instance.command.ok("-C", root_owner.instance.path, "build", *root_owner.key())
    mounted = root_owner.start()
    with pytest.raises(OSError, match="Read-only"):
        (mounted.path / "root/file").write_text("x")
    done = mounted.end()
    assert done.returncode == 0
    assert b"mounted union, read-only" in done.stderr


def test_an_instance_on_read_only_storage_can_be_looked_at(common_owner: Owner) -> None:
    common_owner.inside("/bin/sh", "-c", "echo kept > /root/file")
    path = str(common_owner.instance.path)
    mount(path, path, "", MountFlag.BIND, "")
    try:
        mount("", path, "", MountFlag.BIND | MountFlag.REMOUNT | MountFlag.RDONLY, "")
        mounted = common_owner.start("--read-only")
        assert (mounted.path / "root/file").read_text() == "kept\n"
        assert mounted.end().returncode == 0
    finally:
        umount(path, UmountFlag.DETACH)


def test_an_ordinary_user_sees_the_layers_as_well(user_owner: Owner) -> None:
    user_owner.inside("/bin/sh", "-c", "echo new > /root/new; busybox rm /etc/greeting")
    for layer, shown in (
        ("upper", ["./etc/greeting", "./root/new"]),
        ("image", ["./etc/greeting"]),
    ):
        mounted = user_owner.start("--layer", layer)
        listed = mounted.shell('cd "$M"; find . -name new -o -name greeting | sort')
        assert listed.split() == shown
        assert mounted.attempt("/bin/sh", "-c", 'rm "$M/root/new"').returncode != 0
        assert mounted.end().returncode == 0
