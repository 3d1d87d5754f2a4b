# SPDX-License-Identifier: Apache-2.0
"""``serdab build`` says what changed since the last signed build, and ``--check`` only says it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.harness.command import Command, describe
from tests.harness.instances import BuiltInstance, MakeInstance
from tests.harness.user import OrdinaryUser


@pytest.fixture(params=["root", "user"])
def built(request: pytest.FixtureRequest, make_instance: MakeInstance) -> BuiltInstance:
    user: OrdinaryUser | None = None
    if request.param == "user":
        user = request.getfixturevalue("as_user")
    files = {"/etc/motd": b"hello\n"}
    return make_instance(encrypted=False, user=user, files=files, is_settled=True)


def said(built: BuiltInstance, *options: str) -> list[str]:
    """Return the lines about changes that a build prints."""
    done = built.command.run("-C", built.path, "build", *options)
    assert done.returncode == 0, describe(done)
    lines = [line.removeprefix("serdab: ") for line in done.stderr.decode().splitlines()]
    return [line for line in lines if line.startswith(("configuration:", "init FS:", "image:"))]


def checked(built: BuiltInstance, *options: str) -> list[str]:
    out = built.command.ok("--json", "-C", built.path, "build", "--check", *options)
    fields = json.loads(out)
    assert fields.keys() == {"changes"}
    lines: list[str] = fields["changes"]
    return lines


def edit(built: BuiltInstance) -> None:
    """Change the configuration, the init FS and the image."""
    path = built.path / "Occlum.json"
    config = json.loads(path.read_text())
    config["entry_points"].append("/usr/bin")
    config["env"]["default"].append("MORE=1")
    path.write_text(json.dumps(config))
    (built.path / "initfs/etc/more").write_text("x")
    (built.path / "image/etc/motd").write_text("jello\n")
    for number in range(4):
        (built.path / f"image/etc/f{number}").write_text("x")


EXPECTED = [
    "configuration: 2 changed: entry_points, env.default",
    "init FS: 1 added: /etc/more",
    "image: 1 changed, 4 added: /etc/motd, /etc/f0, /etc/f1 and 2 more",
]


def everything(*places: Path) -> dict[str, tuple[int, int, bytes]]:
    out = {}
    for top in places:
        for folder, directories, names in os.walk(top):
            for name in (*directories, *names):
                path = Path(folder, name)
                status = path.lstat()
                content = path.read_bytes() if path.is_file() else b""
                out[str(path)] = status.st_mode, status.st_mtime_ns, content
    return out


def test_each_change_is_one_line_and_then_it_is_the_last_one(built: BuiltInstance) -> None:
    assert said(built) == []
    (built.path / "initfs/etc").mkdir(exist_ok=True)
    said(built)
    edit(built)
    assert said(built) == EXPECTED
    assert said(built) == []


def test_a_check_says_the_same_and_writes_nothing(built: BuiltInstance) -> None:
    (built.path / "initfs/etc").mkdir(exist_ok=True)
    said(built)
    assert checked(built) == []
    assert (
        built.command.ok("-C", built.path, "build", "--check")
        == "nothing changed since the last signed build\n"
    )
    edit(built)
    state = Path(built.command.env["XDG_STATE_HOME"])
    before = everything(built.path, state)
    assert checked(built) == EXPECTED
    assert built.command.ok("-C", built.path, "build", "--check").splitlines() == EXPECTED
    assert everything(built.path, state) == before
    assert said(built) == EXPECTED


def test_what_the_storage_writes_into_build_hides_nothing(built: BuiltInstance) -> None:
    (built.path / "image/etc/motd").write_text("other\n")
    shutil.rmtree(built.path / "build")
    assert checked(built) == ["image: 1 changed: /etc/motd"]
    assert said(built) == ["image: 1 changed: /etc/motd"]


def test_a_name_cannot_forge_a_line(built: BuiltInstance) -> None:
    (built.path / "image/x\nserdab: image: 0 changed").write_text("x")
    assert said(built) == [r"image: 1 added: /x\nserdab: image: 0 changed"]


def test_the_json_of_a_build_has_them_too(built: BuiltInstance) -> None:
    (built.path / "image/etc/motd").unlink()
    fields = json.loads(built.command.ok("--json", "-C", built.path, "build"))
    assert fields["changes"] == ["image: 1 removed: /etc/motd"]


def test_another_user_has_nothing_to_compare_with(
    make_instance: MakeInstance, serdab: Command, tmp_path: Path
) -> None:
    built = make_instance(encrypted=False)
    other = Command({**serdab.env, "XDG_STATE_HOME": str(tmp_path / "elsewhere")}, serdab.prefix)
    out = other.ok("-C", built.path, "build", "--check")
    assert out.startswith("no build that this user signed is on record")
    assert not (tmp_path / "elsewhere").exists()


def test_a_key_that_is_needed_and_not_given_is_told(make_instance: MakeInstance) -> None:
    built = make_instance(encrypted=True, is_settled=True)
    assert checked(built, "--image-key", str(built.key)) == []
    lines = checked(built)
    assert lines[-1].startswith("image: the same files, sealed anew: another key")
