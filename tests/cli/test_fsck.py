# SPDX-License-Identifier: Apache-2.0
"""fsck of an instance finds what a boot would find."""

from __future__ import annotations

import shutil

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

    shutil.rmtree(upper)
    upper.mkdir()
    assert made.command.run(*words).stdout.count(b": clean, ") == 2
