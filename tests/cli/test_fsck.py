# SPDX-License-Identifier: Apache-2.0
"""fsck of an instance finds what a boot would find."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.harness.command import describe
from tests.harness.instances import MakeInstance

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


def test_a_writable_layer_without_its_anchor_is_not_passed_over(
    make_instance: MakeInstance,
) -> None:
    made = make_instance()
    assert made.key is not None
    upper = made.path / "run/mount/__ROOT"
    words = ("-C", made.path, "fsck", "--image-key", made.key)
    assert made.run("/bin/sh", "-c", "echo a > /root/a").returncode == 0
    assert made.command.run(*words).stdout.count(b": clean, ") == 3

    (upper / "anchor").unlink()
    found = made.command.run(*words)
    assert found.returncode == 3, describe(found)
    assert b"not a sealed volume" in found.stderr
    assert b"run/mount/__ROOT" in found.stderr

    # Nothing at all is what `new` leaves, but there was one.
    shutil.rmtree(upper)
    upper.mkdir()
    found = made.command.run(*words)
    assert found.returncode == 3, describe(found)
    assert found.stdout.count(b": clean, ") == 2
    assert b"__ROOT: rolled back, 0 files" in found.stdout
    assert b"an emptied writable layer is not a new one" in found.stdout

    made.command.ok("-C", made.path, "reset", "--yes")
    assert made.command.ok(*words).count(": clean, ") == 2


def test_an_old_state_that_verifies_is_told_from_the_newest(
    make_instance: MakeInstance, tmp_path: Path
) -> None:
    made = make_instance()
    assert made.key is not None
    upper, old = made.path / "run/mount/__ROOT", tmp_path / "old"
    words = ("-C", made.path, "fsck", "--image-key", made.key)
    assert made.run("/bin/sh", "-c", "echo a > /root/a").returncode == 0
    shutil.copytree(upper, old)
    assert made.run("/bin/sh", "-c", "echo b > /root/b").returncode == 0
    shutil.rmtree(upper)
    shutil.copytree(old, upper)

    found = made.command.run(*words)
    assert found.returncode == 3, describe(found)
    assert found.stdout.count(b": clean, ") == 2
    assert b"__ROOT: rolled back, " in found.stdout
    assert b"an older state than the record names" in found.stdout
    told = json.loads(made.command.run("--json", *words).stdout)[str(upper)]
    assert (told["clean"], told["damaged"]) == (False, {})
    assert told["rolled-back"]["error"] == "rollback"
    assert b"  hint: bring the newer state back" in found.stdout

    # By its path it is the same; a copy that lies elsewhere may be as old as it likes.
    lower = ("--image-key", made.key, "--lower", made.path / "build/mount/__ROOT")
    assert made.command.run("fsck", *lower, upper).returncode == 3
    assert "old: clean, " in made.command.ok("fsck", *lower, old)

    accepted = ("--image-key", made.key, "--accept-rollback", "/bin/cat", "/root/a")
    assert made.command.ok("-C", made.path, "run", *accepted) == "a\n"
    assert made.command.ok(*words).count(": clean, ") == 3
