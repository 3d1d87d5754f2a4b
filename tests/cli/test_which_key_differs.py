# SPDX-License-Identifier: Apache-2.0
"""A writable layer that does not open: the refusal says which part of its key differs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.command import Command, describe
from tests.harness.instances import BuiltInstance, MakeInstance

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

VECTOR_KEY = Path(__file__).parents[1] / "vectors/signing-key.pem"


def bytes_of(top: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}


@contextmanager
def unchanged(top: Path) -> Iterator[None]:
    before = bytes_of(top)
    yield
    assert bytes_of(top) == before


@pytest.fixture
def written(make_instance: MakeInstance) -> BuiltInstance:
    """An instance without an image key whose writable layer holds something."""
    instance = make_instance(encrypted=False)
    result = instance.run("/bin/sh", "-c", "echo kept > /root/kept")
    assert result.returncode == 0, describe(result)
    return instance


def refused(instance: BuiltInstance, command: Command, *options: str | Path) -> dict[str, str]:
    """Return the refusal of run, after fsck was seen to refuse for the same reason."""
    with unchanged(instance.path / "run"):
        result = command.run("--json", "-C", instance.path, "run", *options, "/bin/true")
        assert result.returncode == 125, describe(result)
        value: dict[str, str] = json.loads(result.stderr.decode().splitlines()[-1])
        assert (value["error"], int(value["exit_code"])) == ("wrong-key", 4)
        result = command.run("--json", "-C", instance.path, "fsck", *options)
        assert result.returncode == 4, describe(result)
        assert json.loads(result.stdout)["message"] == value["message"]
    assert "unverified" in value["expected"]
    assert value["hint"]
    return value


def set_option(instance: BuiltInstance, change: dict[str, object], *, layer: bool) -> None:
    path = instance.path / "Occlum.json"
    config = json.loads(path.read_text())
    upper = config["mount"][0]["options"]["layers"][1]
    place = upper.setdefault("options", {}) if layer else config["metadata"]
    place.update(change)
    path.write_text(json.dumps(config))


def test_another_platform(written: BuiltInstance, tmp_path: Path) -> None:
    state = tmp_path / "other-state"
    other = Command({**written.command.env, "XDG_STATE_HOME": str(state)})
    value = refused(written, other)
    assert "bound to another platform" in value["message"]
    assert value["expected"].startswith("platform id ")
    assert value["found"].startswith("platform id ")
    secret = json.loads((state / "serdab/platform-simulation.json").read_text())["secret"]
    anchor = b"".join(bytes_of(written.path / "run").values())
    assert secret.encode() not in anchor
    assert bytes.fromhex(secret) not in anchor


def test_another_signer(written: BuiltInstance) -> None:
    before = written.command.ok("-C", written.path, "print", "mrsigner").strip()
    written.command.ok("-C", written.path, "build", "--sign-key", VECTOR_KEY)
    value = refused(written, written.command)
    after = written.command.ok("-C", written.path, "print", "mrsigner").strip()
    assert "another signer" in value["message"]
    assert before in value["expected"]
    assert after in value["found"]
    written.command.ok("-C", written.path, "build")
    assert written.run("/bin/cat", "/root/kept").stdout == b"kept\n"


def test_another_product(written: BuiltInstance) -> None:
    set_option(written, {"product_id": 7}, layer=False)
    written.command.ok("-C", written.path, "build")
    value = refused(written, written.command)
    assert "another product id" in value["message"]
    assert "product 0" in value["expected"]
    assert "product 7" in value["found"]


def test_another_build_where_the_policy_binds_to_it(written: BuiltInstance) -> None:
    set_option(written, {"autokey_policy": 1}, layer=True)
    written.command.ok("-C", written.path, "build")
    value = refused(written, written.command)
    assert "another build" in value["message"]
    assert "not bound" in value["expected"]
    mrenclave = written.command.ok("-C", written.path, "print", "mrenclave").strip()
    assert mrenclave in value["found"]


def test_an_image_key_in_place_of_the_automatic_one_and_the_reverse(
    written: BuiltInstance, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    command = written.command
    command.ok("gen-image-key", key)
    command.ok("-C", written.path, "build", "--image-key", key)
    value = refused(written, command, "--image-key", key)
    assert "another kind of key" in value["message"]
    assert value["expected"].startswith("the automatic key")
    assert value["found"] == "an image key"
    command.ok("-C", written.path, "reset", "--yes")
    keyed = BuiltInstance(written.path, key, command)
    assert keyed.run("/bin/sh", "-c", "echo > /root/x").returncode == 0
    command.ok("-C", written.path, "build")
    value = refused(written, command)
    assert "another kind of key" in value["message"]
    assert value["expected"].startswith("an image key")
    assert value["found"] == "the automatic key"
