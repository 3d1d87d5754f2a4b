# SPDX-License-Identifier: Apache-2.0
"""The same tree gives the same measurements, wherever, whenever and by whom it is built."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.command import Command

EPOCH_NS = 1_700_000_000 * 10**9
MEASUREMENTS = ("root-mac", "init-mac")


@pytest.fixture
def memory_dir() -> Iterator[Path]:
    """A directory on tmpfs, which lists names by age and not, as ext4 does, by their hash."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


def write_tree(top: Path, *, seed: int, umask: int) -> None:
    """Make the tree in an order of its own: names come back from the directory in that order."""
    chosen = random.Random(0)
    files = {f"etc/deep/{n % 7}/file-{n:03}": chosen.randbytes(n * 401) for n in range(60)}
    files["bin/busybox"] = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    files["opt/ünïcode \U0001f600"] = b"name"
    names = sorted(files)
    random.Random(seed).shuffle(names)
    old = os.umask(umask)
    try:
        for name in names:
            path = top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[name])
        (top / "bin/sh").symlink_to("busybox")
        os.link(top / "etc/deep/1/file-001", top / "etc/hard-link")
    finally:
        os.umask(old)
    for folder, _, members in os.walk(top):
        os.chmod(folder, 0o755)
        for member in members:
            path = Path(folder) / member
            if not path.is_symlink():
                path.chmod(0o755 if folder.endswith("bin") else 0o640)
                # Whole seconds count; the rest differs between file systems that copy the tree.
                os.utime(path, ns=(EPOCH_NS, EPOCH_NS + seed * 1000))


def build(serdab: Command, path: Path, *, seed: int, umask: int, key: Path | None) -> list[str]:
    serdab.ok("new", path)
    write_tree(path / "image", seed=seed, umask=umask)
    options = ("--image-key", key) if key else ()
    serdab.ok("-C", path, "build", *options)
    return [serdab.ok("-C", path, "print", name).strip() for name in MEASUREMENTS]


@pytest.mark.parametrize("encrypted", [False, True], ids=["integrity-only", "encrypted"])
def test_two_builds_of_one_tree_have_the_same_macs(
    serdab: Command, tmp_path: Path, memory_dir: Path, encrypted: bool
) -> None:
    key = tmp_path / "key" if encrypted else None
    if key:
        serdab.ok("gen-image-key", key)
    first = memory_dir / "here"
    here = build(serdab, first, seed=1, umask=0o022, key=key)
    away = Command({**serdab.env, "LC_ALL": "C", "LANG": "tr_TR.UTF-8", "TZ": "Asia/Tokyo"})
    there = memory_dir / "some" / "other place"
    there.parent.mkdir()
    old = os.umask(0o077)
    try:
        assert build(away, there, seed=2, umask=0o077, key=key) == here
    finally:
        os.umask(old)
    assert os.listdir(first / "image/etc/deep/1") != os.listdir(there / "image/etc/deep/1")
    images = [path / "build/mount/__ROOT/image.sefs" for path in (first, there)]
    assert images[0].read_bytes() == images[1].read_bytes()


@pytest.mark.parametrize("encrypted", [False, True], ids=["integrity-only", "encrypted"])
def test_one_changed_byte_changes_the_root_mac_alone(
    serdab: Command, tmp_path: Path, encrypted: bool
) -> None:
    key = tmp_path / "key" if encrypted else None
    if key:
        serdab.ok("gen-image-key", key)
    path = tmp_path / "inst"
    before = build(serdab, path, seed=1, umask=0o022, key=key)
    changed = path / "image/etc/deep/3/file-059"
    raw = bytearray(changed.read_bytes())
    raw[1234] ^= 1
    changed.write_bytes(raw)
    os.utime(changed, ns=(EPOCH_NS, EPOCH_NS))
    serdab.ok("-C", path, "build", *(("--image-key", key) if key else ()))
    after = [serdab.ok("-C", path, "print", name).strip() for name in MEASUREMENTS]
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_mrsigner_is_the_hash_of_the_little_endian_modulus(serdab: Command, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    private = rsa.generate_private_key(public_exponent=3, key_size=3072)
    pem = tmp_path / "signer.pem"
    pem.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path = tmp_path / "inst"
    serdab.ok("new", path)
    serdab.ok("-C", path, "build", "--sign-key", pem)
    modulus = private.public_key().public_numbers().n.to_bytes(384, "little")
    assert serdab.ok("-C", path, "print", "mrsigner").strip() == hashlib.sha256(modulus).hexdigest()
