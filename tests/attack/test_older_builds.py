# SPDX-License-Identifier: Apache-2.0
"""Real boots of a signed build that is older than the one that used the writable layer before."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness.command import describe
from tests.harness.instances import BuiltInstance, MakeInstance
from tests.harness.user import OrdinaryUser

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

OLD, NEW = 1, 7
HINT = "--accept-rollback"


def build(instance: BuiltInstance, number: int, **serdab: object) -> Path:
    """Build with a version_number; return a copy of what was signed."""
    path = instance.path / "Occlum.json"
    config = json.loads(path.read_text())
    config["metadata"]["version_number"] = number
    config["serdab"] = serdab
    path.write_text(json.dumps(config))
    instance.command.ok("-C", instance.path, "build")
    return Path(
        shutil.copytree(instance.path / "build", instance.path.with_name(f"build-{number}"))
    )


def bring(instance: BuiltInstance, build: Path, user: OrdinaryUser | None) -> None:
    """Put another signed build in place, as the storage can."""
    shutil.rmtree(instance.path / "build")
    shutil.copytree(build, instance.path / "build", symlinks=True)
    if user:
        user.own(instance.path / "build")


def run(instance: BuiltInstance, *options: str) -> subprocess.CompletedProcess[bytes]:
    return instance.run(*options, "/bin/sh", "-c", "echo x >> /root/diary")


def accepted(result: subprocess.CompletedProcess[bytes]) -> str:
    assert result.returncode == 0, describe(result)
    return result.stderr.decode()


def refused(result: subprocess.CompletedProcess[bytes], code: int) -> None:
    assert result.returncode == code, describe(result)
    said = result.stderr.decode()
    assert f"version_number {NEW} or greater, found version_number {OLD}" in said
    assert HINT in said


@pytest.fixture(params=["root", "user"])
def owner(request: pytest.FixtureRequest) -> OrdinaryUser | None:
    return None if request.param == "root" else request.getfixturevalue("as_user")


def test_an_older_signed_build_does_not_get_the_layer_of_a_newer_one(
    make_instance: MakeInstance, owner: OrdinaryUser | None
) -> None:
    instance = make_instance(encrypted=False, user=owner)
    old, new = build(instance, OLD), build(instance, NEW)
    bring(instance, old, owner)
    assert accepted(run(instance)) == "", "the first change makes the layer, with this number"
    bring(instance, new, owner)
    assert "another configuration" in accepted(run(instance))

    bring(instance, old, owner)
    refused(run(instance), 125)
    result = instance.command.run("-C", instance.path, "--json", "run", "/bin/true")
    value = json.loads(result.stderr.splitlines()[-1])
    assert (value["error"], value["exit_code"], value["stage"]) == ("rollback", 3, "rootfs")
    refused(instance.command.run("-C", instance.path, "start"), 3)
    point = instance.path.with_name("point")
    point.mkdir()
    if owner:
        owner.own(point)
    for options in ((), ("--read-only",), ("--layer", "upper")):
        refused(instance.command.run("-C", instance.path, "mount", *options, point), 3)
    fsck = instance.command.run("-C", instance.path, "fsck")
    assert fsck.returncode == 3
    assert f"version_number {NEW}" in fsck.stdout.decode()

    lines = accepted(run(instance, "--accept-rollback")).splitlines()
    assert any("--accept-rollback" in line and f"version_number {NEW}" in line for line in lines)
    assert accepted(run(instance)) == "", "once accepted, it is the remembered one"
    bring(instance, new, owner)
    accepted(run(instance))
    bring(instance, old, owner)
    refused(run(instance), 125)


def test_an_older_build_is_not_let_in_by_its_own_off(make_instance: MakeInstance) -> None:
    instance = make_instance(encrypted=False)
    old = build(instance, OLD, freshness="off")
    build(instance, NEW)
    accepted(run(instance))
    bring(instance, old, None)
    refused(run(instance), 125)


def test_previous_opens_the_layer_over_its_own_image_with_the_newer_number(
    make_instance: MakeInstance,
) -> None:
    instance = make_instance(encrypted=False)
    build(instance, OLD)
    accepted(run(instance))
    (instance.path / "image/root/more").write_text("more\n")
    build(instance, NEW)
    assert b"another image" in run(instance).stderr
    accepted(run(instance, "--previous"))
    assert accepted(run(instance, "--previous")) == ""


def test_a_layer_begun_anew_takes_any_build(make_instance: MakeInstance) -> None:
    instance = make_instance(encrypted=False)
    old = build(instance, OLD)
    build(instance, NEW)
    accepted(run(instance))
    bring(instance, old, None)
    refused(run(instance), 125)
    instance.command.ok("-C", instance.path, "reset", "--yes")
    assert accepted(run(instance)) == ""


def test_what_programs_mount_under_the_automatic_key_is_watched_alike(
    make_instance: MakeInstance,
) -> None:
    """An instance that writes nowhere else has no layer of its own that would be asked."""

    def fill(image: Path) -> None:
        (image / "mnt").mkdir()
        (image / "bin/mount").symlink_to("busybox")

    instance = make_instance(encrypted=False, fill=fill)
    (instance.path / "data").mkdir()
    old = build(instance, OLD)
    build(instance, NEW)
    script = "mount -t sefs -o dir=data x /mnt && echo x >> /mnt/diary"
    assert instance.run("/bin/sh", "-c", script).returncode == 0
    assert not list((instance.path / "run/mount/__ROOT").iterdir())
    bring(instance, old, None)
    done = instance.run("/bin/sh", "-c", script)
    assert done.returncode != 0
    assert f"version_number {NEW} or greater".encode() in done.stderr
