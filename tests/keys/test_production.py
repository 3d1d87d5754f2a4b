# SPDX-License-Identifier: Apache-2.0
"""What ``metadata.debuggable`` and ``metadata.disable_log`` allow, and that they are shown."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from tests.harness.command import describe
from tests.harness.instances import BuiltInstance, MakeInstance

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


def build(instance: BuiltInstance, **metadata: object) -> dict[str, object]:
    path = instance.path / "Occlum.json"
    config = json.loads(path.read_text())
    config["metadata"] = metadata
    path.write_text(json.dumps(config))
    shown: dict[str, object] = json.loads(
        instance.command.ok("--json", "-C", instance.path, "build")
    )
    return shown


def core_limits(instance: BuiltInstance) -> list[str]:
    """Return the soft and the hard limit of a program, and that of one that asks for more."""
    script = "for go in 1 2; do while read -r a b c d e f; do "
    script += 'test "$a $b" = "Max core" && echo $e ${f% *}; done < /proc/self/limits; '
    script += "ulimit -c unlimited 2>&-; done; true"
    result = instance.run("/bin/sh", "-c", script)
    assert result.returncode == 0, describe(result)
    return result.stdout.decode().split("\n")[:2]


def test_it_is_measured_and_shown(make_instance: MakeInstance) -> None:
    instance = make_instance(encrypted=False)
    shown = build(instance, debuggable=True)
    production = build(instance, debuggable=False)
    assert (shown["debuggable"], production["debuggable"]) == (True, False)
    assert shown["mrenclave"] != production["mrenclave"]
    assert "kind      production" in instance.command.ok("-C", instance.path, "build")


def test_core_files_are_off_and_in_production_for_good(make_instance: MakeInstance) -> None:
    instance = make_instance(encrypted=False)
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    word = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    build(instance, debuggable=True)
    assert core_limits(instance) == [f"1 {word}", f"{word} {word}"]
    build(instance, debuggable=False)
    assert core_limits(instance) == ["1 1", "1 1"]


@pytest.mark.parametrize(
    ("metadata", "is_told"),
    [({"debuggable": True}, True), ({"debuggable": True, "disable_log": True}, False),
     ({"debuggable": False, "disable_log": False}, False)],
)  # fmt: skip
def test_no_log_where_none_is_allowed(
    make_instance: MakeInstance,
    metadata: dict[str, bool],
    is_told: bool,
) -> None:
    instance = make_instance(encrypted=False)
    build(instance, **metadata)
    for _ in range(2):
        assert instance.run("/bin/sh", "-c", "echo > /root/x").returncode == 0
    # A damaged slot, the one that is not in use, is told of as a warning.
    for slot in (0, 1):
        copy = instance.path / "run/mount/__ROOT/anchor"
        good = copy.read_bytes()
        raw = bytearray(good)
        raw[(slot << 14) + 200] ^= 1
        copy.write_bytes(raw)
        result = instance.command.run(
            "--log-level", "debug", "-C", instance.path, "run", "/bin/true"
        )
        if result.returncode == 0:
            break
        copy.write_bytes(good)
    assert result.returncode == 0, describe(result)
    assert (b"serdab: warning: " in result.stderr) == is_told, describe(result)


def test_a_log_of_a_production_instance_is_said_to_be_none(make_instance: MakeInstance) -> None:
    instance = make_instance(encrypted=False)
    path = Path(instance.path / "Occlum.json")
    config = json.loads(path.read_text())
    config["metadata"] = {"debuggable": False, "disable_log": False}
    path.write_text(json.dumps(config))
    result = instance.command.run("-C", instance.path, "build")
    assert b"metadata.disable_log: false changes nothing" in result.stderr
