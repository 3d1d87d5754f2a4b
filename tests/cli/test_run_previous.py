# SPDX-License-Identifier: Apache-2.0
"""A writable layer outlives a new image: refused with both, opened over its own, or taken over."""

from __future__ import annotations

import pytest

from tests.harness.instances import BuiltInstance, MakeInstance

pytestmark = pytest.mark.root


def rebuild_with(instance: BuiltInstance, name: str) -> None:
    (instance.path / "image/root" / name).write_text("new\n")
    assert instance.key is not None
    instance.command.ok("-C", instance.path, "build", "--image-key", instance.key)


def test_the_previous_image_is_kept_for_the_layer_that_refers_to_it(
    make_instance: MakeInstance,
) -> None:
    instance = make_instance()
    first = instance.run("/bin/busybox", "sh", "-c", "echo kept > /root/diary")
    assert first.returncode == 0, first.stderr
    rebuild_with(instance, "file")
    refused = instance.run("/bin/busybox", "cat", "/root/diary")
    assert refused.returncode == 125
    assert b"another image" in refused.stderr
    assert b"--previous" in refused.stderr
    again = instance.run("--previous", "/bin/busybox", "cat", "/root/diary")
    assert (again.returncode, again.stdout) == (0, b"kept\n"), again.stderr
    rebuild_with(instance, "another")
    again = instance.run("--previous", "/bin/busybox", "cat", "/root/diary")
    assert (again.returncode, again.stdout) == (0, b"kept\n"), again.stderr


def test_a_layer_without_changes_is_taken_over(make_instance: MakeInstance) -> None:
    instance = make_instance()
    assert instance.run("/bin/busybox", "true").returncode == 0
    rebuild_with(instance, "file")
    after = instance.run("/bin/busybox", "cat", "/root/file")
    assert (after.returncode, after.stdout) == (0, b"new\n"), after.stderr
