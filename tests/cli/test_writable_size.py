# SPDX-License-Identifier: Apache-2.0
"""`serdab.writable_size` bounds the writable layer, and programs are told the truth about it."""

from __future__ import annotations

import json

import pytest

from tests.harness.instances import MakeInstance

pytestmark = pytest.mark.root
SCRIPT = """
busybox df -k / | busybox tail -n 1 | busybox awk '{print $2}'
busybox dd if=/dev/urandom of=/root/big bs=64k count=256 || echo full
busybox rm /root/big
busybox dd if=/dev/urandom of=/root/small bs=64k count=16 2>/dev/null && busybox sync && echo again
"""


def test_a_program_gets_enospc_at_the_limit_and_room_again(make_instance: MakeInstance) -> None:
    instance = make_instance()
    path = instance.path / "Occlum.json"
    config = json.loads(path.read_text())
    config.setdefault("serdab", {})["writable_size"] = "8MB"
    path.write_text(json.dumps(config))
    assert instance.key is not None
    instance.command.ok("-C", instance.path, "build", "--image-key", instance.key)
    done = instance.run("/bin/busybox", "sh", "-c", SCRIPT)
    total, *words = done.stdout.split()
    assert int(total) <= 8192, done.stdout
    assert words == [b"full", b"again"], done.stderr
    assert b"No space left on device" in done.stderr


def test_a_limit_too_small_for_anything_is_refused(make_instance: MakeInstance) -> None:
    instance = make_instance()
    path = instance.path / "Occlum.json"
    config = json.loads(path.read_text())
    config.setdefault("serdab", {})["writable_size"] = "10KB"
    path.write_text(json.dumps(config))
    refused = instance.command.run("-C", instance.path, "build")
    assert refused.returncode == 2
    assert b"serdab.writable_size" in refused.stderr
