# SPDX-License-Identifier: Apache-2.0
"""Where a mount may go, what this machine must have, and who hears that it is ready."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from serdab.linux.mounts import MountFlag, UmountFlag, mount, umount
from tests.harness.command import Command, describe
from tests.harness.instances import MakeInstance
from tests.mount_command.mounted import Owner, is_mounted

pytestmark = [pytest.mark.fuse, pytest.mark.userns, pytest.mark.root]


def test_what_will_not_do_is_said_and_nothing_happens(owner: Owner) -> None:
    base = owner.base
    (base / "file").write_text("")
    (base / "full/entry").mkdir(parents=True)
    (base / "full/entry").chmod(0o755)
    cases = {
        base / "file": b"expected a directory",
        base / "file/below": b"not a directory",
        base / "missing": b"no such file or directory",
        base / "full": b"with something in it",
        owner.instance.path: b"outside of the instance",
        owner.instance.path / "run": b"outside of the instance",
        Path("/proc/self"): b"",
        Path("/"): b"",
    }
    if owner.user:
        (base / "closed").mkdir(mode=0o755)
        cases[base / "closed"] = b"may write to"
        owner.user.own(base / "full")
    before = owner.files()
    for place, words in cases.items():
        result = owner.instance.command.run("-C", owner.instance.path, "mount", *owner.key(), place)
        assert result.returncode == 2, describe(result)
        assert b"the mount point will not do" in result.stderr
        assert words in result.stderr, describe(result)
    assert owner.files() == before


def test_where_programs_would_see_it_by_another_path_it_does_not_go(owner: Owner) -> None:
    """A bind mount of the instance, or of a part; a directory that a hostfs line shows."""
    base, instance = owner.base, owner.instance.path
    for path in ("share/empty", "whole", "part", "shown/empty"):
        place = (instance if path.startswith("share") else base) / path
        place.mkdir(parents=True)
        if owner.user:
            owner.user.own(place.parent if place.name == "empty" else place)
    config = json.loads((instance / "Occlum.json").read_text())
    config["mount"].append({"target": "/data", "type": "hostfs", "source": "../shown"})
    (instance / "Occlum.json").write_text(json.dumps(config))
    with ExitStack() as stack:
        for source, target in ((instance, base / "whole"), (instance / "share", base / "part")):
            mount(os.fspath(source), os.fspath(target), "", MountFlag.BIND, "")
            stack.callback(umount, os.fspath(target), UmountFlag.DETACH)
        for path in ("whole/share/empty", "part/empty", "shown/empty", "whole/run"):
            done = owner.instance.command.run("-C", instance, "mount", *owner.key(), base / path)
            assert done.returncode == 2, describe(done)
            assert b"the mount point will not do" in done.stderr, describe(done)
            assert b"a program that sees" in done.stderr, describe(done)


def test_a_mount_point_may_be_named_mount_and_be_relative(common_owner: Owner) -> None:
    common_owner.place("mount")
    mounted = common_owner.start(at=Path("mount"))
    try:
        assert is_mounted(common_owner.base / "mount")
        assert (common_owner.base / "mount/etc/greeting").read_text() == "hello\n"
    finally:
        done = mounted.end()
    assert done.returncode == 0, describe(done)
    assert b"mount: mounted union" in done.stderr


def test_a_link_to_a_directory_is_followed_once(common_owner: Owner) -> None:
    link = common_owner.base / "link"
    link.symlink_to(common_owner.place())
    mounted = common_owner.start(at=link)
    try:
        assert is_mounted(common_owner.place())
    finally:
        assert mounted.end().returncode == 0
    assert not is_mounted(common_owner.place())


def test_a_live_mount_is_no_place_for_another(
    common_owner: Owner, make_instance: MakeInstance
) -> None:
    mounted = common_owner.start()
    other = make_instance(encrypted=False, name="other")
    result = other.command.run("-C", other.path, "mount", mounted.path)
    assert result.returncode == 2, describe(result)
    assert b"found a mount" in result.stderr
    again = common_owner.instance.command.run(
        "-C", common_owner.instance.path, "mount", *common_owner.key(), mounted.path
    )
    assert again.returncode == 5, describe(again)
    assert mounted.end().returncode == 0


def test_an_instance_that_was_not_built_is_said(common_owner: Owner) -> None:
    path = common_owner.base / "raw"
    common_owner.instance.command.ok("new", path)
    result = common_owner.instance.command.run("-C", path, "mount", common_owner.place())
    assert result.returncode == 2, describe(result)
    assert b"has not been built" in result.stderr


def test_without_fusermount3_an_ordinary_user_is_told(user_owner: Owner) -> None:
    tools = user_owner.base / "tools"
    tools.mkdir(mode=0o755)
    assert user_owner.user is not None
    prefix = list(user_owner.command)
    if user_owner.user.prefix:
        prefix[0] = shutil.which(prefix[0]) or prefix[0]
    command = Command({**user_owner.instance.command.env, "PATH": str(tools)}, tuple(prefix))
    before = user_owner.files()
    result = command.run(
        "-C", user_owner.instance.path, "mount", *user_owner.key(), user_owner.place()
    )
    assert result.returncode == 6, describe(result)
    assert b"fusermount3" in result.stderr
    assert b"fuse3" in result.stderr
    assert user_owner.files() == before


def test_letting_others_in_needs_the_administrators_word(user_owner: Owner) -> None:
    settings = Path("/etc/fuse.conf")
    text = settings.read_text() if settings.exists() else ""
    if "user_allow_other" in (line.strip() for line in text.splitlines()):
        mounted = user_owner.start("--allow-other")
        assert (mounted.path / "etc/greeting").read_text() == "hello\n"
        assert mounted.end().returncode == 0
        return
    before = user_owner.files()
    refused = user_owner.refused("--allow-other")
    assert refused.returncode == 6, describe(refused)
    assert b"user_allow_other" in refused.stderr
    assert user_owner.files() == before


def test_nobody_else_gets_into_the_mount_of_an_ordinary_user(user_owner: Owner) -> None:
    mounted = user_owner.start()
    if os.geteuid() == 0:
        with pytest.raises(PermissionError):
            os.listdir(mounted.path)
    assert mounted.end().returncode == 0


def test_a_descriptor_that_is_not_there_is_refused(common_owner: Owner) -> None:
    for number in ("77", "-1", "99999999999999"):
        refused = common_owner.refused("--ready-fd", number)
        assert refused.returncode == 2, describe(refused)
        assert b"--ready-fd" in refused.stderr


def test_standard_output_may_be_the_descriptor(common_owner: Owner) -> None:
    process = common_owner.instance.command.popen(
        "-C", common_owner.instance.path, "-q", "mount", *common_owner.key(), "--ready-fd", "1",
        common_owner.place(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.read() == b"ready\n"  # to its end
        assert is_mounted(common_owner.place())
    finally:
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
