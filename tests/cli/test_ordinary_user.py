# SPDX-License-Identifier: Apache-2.0
"""What does not need root works without it: making, filling, building, printing."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

import pytest

from tests.harness.command import Command, describe
from tests.harness.user import OrdinaryUser

BOM = """\
includes: [base.yaml]
targets:
- target: /bin
  copy:
  - from: /bin
    files: [cat]
- target: /home/me
  owner: 1000:1000
  mkdirs: [x]
"""


def test_an_ordinary_user_builds_what_root_builds(
    as_user: OrdinaryUser, serdab: Command, tmp_path: Path
) -> None:
    results = []
    for command, base in ((as_user.command, as_user.home), (serdab, tmp_path)):
        path = base / "instance"
        command.ok("new", path)
        (base / "bom.yaml").write_text(BOM)
        (base / "bom.yaml").chmod(0o644)
        command.ok("copy-bom", "-f", base / "bom.yaml", "--root", path / "image")
        result = command.run("-C", path, "--json", "build")
        assert result.returncode == 0, describe(result)
        results.append(json.loads(result.stdout))
    for name in ("init-mac", "root-mac", "conf-mac"):
        assert results[0][name] == results[1][name]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="setpriv(1) is for root")
def test_a_user_without_a_name_is_told_what_mount_wants(as_user: OrdinaryUser) -> None:
    """A container's user often has no entry in passwd(5), which fusermount3 asks for."""
    home = as_user.home / "nameless"
    (home / "m").mkdir(parents=True)
    for path in (home, home / "m"):
        os.chown(path, 54321, 54321)
    as_user.home.chmod(0o755)
    words = [word.replace("--reuid=1", "--reuid=54321") for word in as_user.command.prefix]
    theirs = as_user.command.env
    env = {name: value for name, value in theirs.items() if not name.startswith("XDG_")}
    env["HOME"] = str(home)
    nameless = Command(env, tuple(words))
    nameless.ok("new", home / "app")
    nameless.ok("-C", home / "app", "build")
    result = nameless.run("-C", home / "app", "mount", home / "m")
    assert result.returncode == 6, describe(result)
    assert b"asks for the name of user id 54321" in result.stderr


def test_the_instance_of_another_user_is_said_to_be_one(
    as_user: OrdinaryUser, serdab: Command
) -> None:
    path = as_user.home / "theirs"
    serdab.ok("new", path)
    serdab.ok("-C", path, "build")
    path.chmod(0o755)
    (path / "run").mkdir(mode=0o700, exist_ok=True)
    (path / "run").chmod(0o700)
    for words, code in (
        (["start"], 2),
        (["fsck"], 2),
        (["rebind"], 2),
        (["mount", str(as_user.home)], 2),
        (["run", "/bin/x"], 125),
        (["reset", "--yes"], 2),
    ):
        result = as_user.command.run("-C", path, *words)
        assert result.returncode == code, describe(result)
        assert b"the instance is another user's" in result.stderr, describe(result)
    result = as_user.command.run("-C", path, "build")
    assert result.returncode == 2, describe(result)
    assert b"may write to" in result.stderr, describe(result)


@pytest.mark.parametrize("name", ["development-key.pem", "signers", "builds"])
def test_state_is_private(as_user: OrdinaryUser, name: str) -> None:
    path = as_user.home / "instance"
    as_user.command.ok("new", path)
    as_user.command.ok("-C", path, "build")
    state = Path(as_user.command.env["XDG_STATE_HOME"]) / "serdab" / name
    status = state.stat()
    assert status.st_mode & 0o077 == 0
    assert status.st_uid == as_user.uid


def test_doctor_says_which_ids_a_run_would_have(as_user: OrdinaryUser) -> None:
    # The tools alone give no ids: without a range of its own this user has one id inside.
    names = {pwd.getpwuid(as_user.uid).pw_name, str(as_user.uid)}
    lines = [
        Path(path).read_text().splitlines() if Path(path).exists() else []
        for path in ("/etc/subuid", "/etc/subgid")
    ]
    has_ranges = all(any(line.split(":")[0] in names for line in file) for file in lines)
    result = as_user.command.run("--json", "doctor")
    findings = {item["feature"]: item for item in json.loads(result.stdout)["findings"]}
    assert findings["id maps"]["present"] == has_ranges, describe(result)
    assert has_ranges or "one id only" in findings["id maps"]["detail"]
