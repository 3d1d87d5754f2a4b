# SPDX-License-Identifier: Apache-2.0
"""Instances of one signer share what the automatic key seals; those of another one cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.harness.command import describe
from tests.harness.instances import BuiltInstance, MakeInstance

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

VECTOR_KEY = Path(__file__).parents[1] / "vectors/signing-key.pem"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    path = tmp_path / "shared"
    path.mkdir()
    return path


def make(
    make_instance: MakeInstance, shared: Path, name: str, *options: str | Path, product: int = 0
) -> BuiltInstance:
    """Return an instance that may mount the shared directory."""

    def fill(image: Path) -> None:
        (image / "mnt").mkdir()
        (image / "bin/mount").symlink_to("busybox")

    instance = make_instance(encrypted=False, fill=fill, name=name)
    path = instance.path / "Occlum.json"
    config = json.loads(path.read_text())
    config["serdab"] = {"host_directories": [".", str(shared)]}
    config["metadata"]["product_id"] = product
    path.write_text(json.dumps(config))
    instance.command.ok("-C", instance.path, "build", *options)
    return instance


def mount(shared: Path, then: str) -> tuple[str, str, str]:
    return ("/bin/sh", "-c", f"mount -t sefs -o dir={shared} none /mnt && {then}")


def test_a_volume_of_one_signer_is_shared(make_instance: MakeInstance, shared: Path) -> None:
    first = make(make_instance, shared, "first")
    second = make(make_instance, shared, "second")
    result = first.run(*mount(shared, "echo from the first > /mnt/note"))
    assert result.returncode == 0, describe(result)
    result = second.run(*mount(shared, "cat /mnt/note && echo from the second > /mnt/note"))
    assert result.stdout == b"from the first\n", describe(result)
    assert first.run(*mount(shared, "cat /mnt/note")).stdout == b"from the second\n"


@pytest.mark.parametrize("difference", ["signer", "product id"])
def test_another_signer_or_product_cannot(
    make_instance: MakeInstance, shared: Path, difference: str
) -> None:
    first = make(make_instance, shared, "first")
    if difference == "signer":
        other = make(make_instance, shared, "other", "--sign-key", VECTOR_KEY)
    else:
        other = make(make_instance, shared, "other", product=7)
    assert first.run(*mount(shared, "echo kept > /mnt/note")).returncode == 0
    before = {path: path.read_bytes() for path in shared.rglob("*") if path.is_file()}
    result = other.run(*mount(shared, "cat /mnt/note"))
    assert result.returncode != 0
    assert result.stdout == b""
    assert f"bound to another {difference}" in result.stderr.decode(), describe(result)
    assert {path: path.read_bytes() for path in shared.rglob("*") if path.is_file()} == before
    assert first.run(*mount(shared, "cat /mnt/note")).stdout == b"kept\n"


def test_a_writable_layer_is_taken_along_to_the_same_image_of_the_same_signer(
    make_instance: MakeInstance, shared: Path
) -> None:
    first = make(make_instance, shared, "first")
    assert first.run("/bin/sh", "-c", "echo kept > /root/note").returncode == 0
    second, other = (
        BuiltInstance(first.path.with_name(name), None, first.command)
        for name in ("second", "other")
    )
    for instance, options in ((second, ()), (other, ("--sign-key", VECTOR_KEY))):
        shutil.copytree(
            first.path, instance.path, symlinks=True, ignore=shutil.ignore_patterns("build")
        )
        result = instance.command.run("-C", instance.path, "build", *options)
        assert result.returncode == 0, describe(result)
        assert (b"will not open after this build" in result.stderr) == (instance is other)
    result = second.run("/bin/cat", "/root/note")
    assert result.stdout == b"kept\n", describe(result)
    result = other.run("/bin/cat", "/root/note")
    assert result.returncode == 125
    assert "bound to another signer" in result.stderr.decode()
