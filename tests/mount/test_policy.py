# SPDX-License-Identifier: Apache-2.0
"""The measured configuration narrows what programs may mount."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.mount.conftest import KEY, Mounter

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


def configure(mounter: Mounter, **policy: object) -> None:
    """Set the policy and build again."""
    file = mounter.path / "Occlum.json"
    config = json.loads(file.read_text())
    config["serdab"] = {"runtime_mounts": policy}
    file.write_text(json.dumps(config))
    mounter.instance.command.ok("-C", mounter.path, "build")


@pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
class TestPolicy:
    def test_types_are_narrowed(self, mounter: Mounter) -> None:
        configure(mounter, types=["ramfs"])
        mounter.folder("d")
        out = mounter.calls(
            *("mount", "x", "/mnt", "hostfs", "0", "dir=d"),
            *("mount", "x", "/mnt", "ramfs", "0", "NULL"),
        )
        assert out == ["EPERM", "ok"]

    def test_programs_are_narrowed(self, mounter: Mounter) -> None:
        configure(mounter, programs=["/bin/mounter"])
        words = ("mount", "x", "/mnt", "ramfs", "0", "NULL")
        assert mounter.calls(*words) == ["ok"]
        done = mounter.instance.run("/bin/sh", "-c", "mount -t ramfs x /mnt")
        assert done.returncode != 0
        assert b"/bin/busybox may not mount" in done.stderr

    def test_no_program_passes_for_another_by_changing_its_own_link(self, mounter: Mounter) -> None:
        """Root of a user namespace may, with prctl(2): /proc/PID/exe says then what it likes."""
        configure(mounter, programs=["/bin/busybox"])
        mount = ("mount", "x", "/mnt", "ramfs", "0", "NULL")
        done = mounter.instance.run("/bin/mounter", "inner", "faked", "/bin/busybox", *mount)
        assert done.stdout.decode().splitlines() == ["inner ok", "faked EPERM", "mount EPERM"]
        assert b"not from a user namespace of its own" in done.stderr

    def test_where_programs_are_told_apart_none_mounts_from_a_user_namespace_of_its_own(
        self, mounter: Mounter
    ) -> None:
        mount = ("mount", "x", "/mnt", "ramfs", "0", "NULL")
        assert mounter.calls("inner", *mount) == ["ok", "ok"]
        configure(mounter, programs=["/bin/mounter"])
        done = mounter.instance.run("/bin/mounter", *mount, "umount", "/mnt", "0", "inner", *mount)
        said = ["mount ok", "umount ok", "inner ok", "mount EPERM"]
        assert done.stdout.decode().splitlines() == said
        assert b"from a user namespace of its own" in done.stderr

    def test_a_program_in_a_mount_that_was_detached_is_not_the_one_of_its_path(
        self, mounter: Mounter
    ) -> None:
        configure(mounter, programs=["/bin/busybox"])
        mounter.folder("d")
        # What is left of its path, once its mount is gone, is /bin/busybox.
        script = (
            "mount -t hostfs -o dir=d x /mnt && mkdir /mnt/bin && "
            "cp /bin/mounter /mnt/bin/busybox && busybox mkfifo /tmp/go /tmp/said && "
            "{ /mnt/bin/busybox cd / wait mount x /mnt2 ramfs 0 NULL umount /mnt2 0 "
            "</tmp/go >/tmp/said & } && exec 3>/tmp/go 4</tmp/said && read said <&4 && "
            "umount /mnt && echo >&3 && cat <&4"
        )
        done = mounter.instance.run("/bin/sh", "-c", script)
        assert done.stdout.decode().splitlines() == ["mount EPERM", "umount EPERM"]
        assert b"/bin/busybox may not mount: it is not in the tree" in done.stderr

    def test_layers_lie_where_the_configuration_says(self, mounter: Mounter) -> None:
        configure(mounter, layers=["volumes"])
        mounter.folder("volumes/a")
        mounter.folder("b")
        out = mounter.calls(
            *("mount", "x", "/mnt", "sefs", "0", "dir=b"),
            *("mount", "x", "/mnt", "hostfs", "0", "dir=b", "umount", "/mnt", "0"),
            *("mount", "x", "/mnt", "sefs", "0", "dir=volumes/a"),
        )
        assert out == ["EPERM", "ok", "ok", "ok"]

    def test_named_keys_replace_keys_in_clear(self, mounter: Mounter, tmp_path: Path) -> None:
        key_file = tmp_path / "data.key"
        key_file.write_text(KEY + "\n")
        configure(
            mounter,
            clear_keys=False,
            keys=[
                {"name": "file", "source": str(key_file)},
                {"name": "auto", "source": "automatic"},
                {"name": "image", "source": "image"},
            ],
        )
        mounter.folder("f")
        mounter.folder("a")
        out = mounter.calls(
            *("mount", "x", "/mnt", "sefs", "0", f"dir=f,key={KEY}"),
            *("mount", "x", "/mnt", "sefs", "0", "dir=f,key=@file", "write", "/mnt/f", "1"),
            *("umount", "/mnt", "0"),
            *("mount", "x", "/mnt", "sefs", "0", "dir=a,key=@auto", "write", "/mnt/f", "2"),
            *("umount", "/mnt", "0"),
            *("mount", "x", "/mnt", "sefs", "0", "dir=a"),
            # The root FS has no key, so there is none derived from it.
            *("mount", "x", "/mnt", "sefs", "0", "dir=a,key=@image"),
        )
        assert out == ["EPERM", "ok", "ok", "ok", "ok", "ok", "ok", "EIO", "EPERM"]
        configure(mounter)
        out = mounter.calls("mount", "x", "/mnt", "sefs", "0", f"dir=f,key={KEY}", "read", "/mnt/f")
        assert out == ["ok", "1"]
