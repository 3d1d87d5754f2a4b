# SPDX-License-Identifier: Apache-2.0
"""A new image key: the same tree under it, the old one opens nothing, the old state is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serdab.sefs.image import open_image
from serdab.sefs.volume import memory_volume
from serdab.vfs.union import Union
from tests.harness.command import describe
from tests.harness.instances import BuiltInstance, MakeInstance
from tests.harness.user import OrdinaryUser
from tests.property.fsops import picture

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

SIGN_TOOL = Path(__file__).parents[2] / "demos/signing/openssl-sign"

#: Everything that programs see of the tree: names, types, modes, links, sizes, times, content.
LISTING = r"""cd /; busybox find . \( -path ./proc -o -path ./dev -o -path ./sys -o -path ./host \
 -o -path ./etc/resolv.conf -o -path ./etc/hosts -o -path ./etc/hostname \) -prune -o -print0 |
 busybox sort -z | busybox xargs -0 busybox stat -c '%n %f %h %u:%g %s %Y %N'
busybox find /root /var /big /lower -type f -print0 2>/dev/null | busybox sort -z |
 busybox xargs -0 busybox sha256sum"""

#: What a writable layer may hold of a lower one, and without.
CHANGES = r"""set -e
mkdir -p /var/deep/er; echo fresh > /var/deep/er/file; busybox dd if=/dev/urandom of=/root/own \
 bs=100k count=12 2>/dev/null
busybox ln /root/own /var/second; busybox ln -s ../root/own /var/soft; busybox mkfifo /var/pipe
echo tail >> /big/one; busybox dd if=/dev/zero of=/big/two bs=1k seek=40 count=1 conv=notrunc \
 2>/dev/null
busybox truncate -s 70000 /big/three; busybox truncate -s 200000 /big/three
busybox chmod 640 /big/four; busybox rm /lower/gone; busybox rm -r /lower/opaque
mkdir /lower/opaque; echo new > /lower/opaque/only; busybox mv /lower/dir /var/moved
echo logged > /var/small; busybox sync"""


def fill(image: Path) -> None:
    for number, name in enumerate(("one", "two", "three", "four")):
        path = image / "big" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes((number + i) % 251 for i in range(150_000)))
    for name in ("gone", "opaque/hidden", "dir/sub/file", "dir/other", "kept"):
        path = image / "lower" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (image / "var").mkdir(exist_ok=True)


def digest_of(path: Path) -> dict[str, str]:
    """Return everything below a directory."""
    return {
        str(entry.relative_to(path)): hashlib.sha256(entry.read_bytes()).hexdigest()
        if entry.is_file() and not entry.is_symlink()
        else "-"
        for entry in sorted(path.rglob("*"))
    }


def run(instance: BuiltInstance, key: Path, script: str, *options: str) -> str:
    result = instance.command.run(
        "-C", instance.path, "run", "--image-key", key, *options, "/bin/sh", "-c", script
    )
    assert result.returncode == 0, describe(result)
    return result.stdout.decode()


def new_key(instance: BuiltInstance, name: str = "new.key") -> Path:
    path = instance.path.parent / name
    instance.command.ok("gen-image-key", path)
    return path


def try_rekey(
    instance: BuiltInstance, old: Path, new: Path, *options: str | Path
) -> subprocess.CompletedProcess[bytes]:
    return instance.command.run(
        "-C", instance.path, "rekey", *options, "--image-key", old, "--new-image-key", new
    )


def rekey(instance: BuiltInstance, old: Path, new: Path) -> str:
    result = try_rekey(instance, old, new)
    assert result.returncode == 0, describe(result)
    return result.stdout.decode()


def refusal(result: subprocess.CompletedProcess[bytes], code: int) -> str:
    assert result.returncode == code, describe(result)
    assert b"hint: " in result.stderr
    assert b"Traceback" not in result.stderr
    return result.stderr.decode()


def refused_run(instance: BuiltInstance, key: Path) -> dict[str, Any]:
    result = instance.command.run(
        "--json", "-C", instance.path, "run", "--image-key", key, "/bin/true"
    )
    assert result.returncode == 125, describe(result)
    value: dict[str, Any] = json.loads(result.stderr.splitlines()[-1])
    return value


def test_the_tree_is_the_same_under_the_new_key(make_instance: MakeInstance) -> None:
    check_the_tree(make_instance(fill=fill))


def test_an_ordinary_user_changes_the_key(
    make_instance: MakeInstance, as_user: OrdinaryUser
) -> None:
    check_the_tree(make_instance(fill=fill, user=as_user))


def check_the_tree(instance: BuiltInstance) -> None:
    old = instance.key
    assert old is not None
    run(instance, old, CHANGES)
    before = run(instance, old, LISTING)
    assert "fresh" not in before
    assert before.count("\n") > 40
    assert "./var/moved/sub/file" in before
    names = {path.name for path in instance.path.iterdir()}
    new = new_key(instance)
    printed = rekey(instance, old, new)
    for name in ("mrenclave", "mrsigner", "conf-mac", "init-mac", "root-mac"):
        assert instance.command.ok("-C", instance.path, "print", name).strip() in printed
    assert {path.name for path in instance.path.iterdir()} == names
    assert [path.name for path in (instance.path / "run").iterdir()] == ["mount"]
    assert run(instance, new, LISTING) == before
    assert refused_run(instance, old)["error"] == "wrong-key"
    fsck = instance.command.run("-C", instance.path, "fsck", "--image-key", old)
    assert fsck.returncode == 4, describe(fsck)
    instance.command.ok("-C", instance.path, "fsck", "--image-key", new)
    # The same again, and once more: nothing is left to do.
    third = new_key(instance, "third.key")
    rekey(instance, new, third)
    again = try_rekey(instance, new, third)
    assert again.returncode == 0, describe(again)
    assert b"had the new key already" in again.stderr
    assert b"not checked" in again.stderr
    assert b"the old key was not checked" in again.stdout
    assert run(instance, third, LISTING) == before


def test_the_state_before_is_refused_when_it_is_put_back(make_instance: MakeInstance) -> None:
    instance = make_instance()
    old = instance.key
    assert old is not None
    run(instance, old, "echo before > /root/file")
    saved = instance.path.with_name("saved")
    shutil.copytree(instance.path, saved, symlinks=True)
    new = new_key(instance)
    rekey(instance, old, new)
    # The whole of it: the old build is signed by the right signer, so freshness has to tell.
    shutil.move(instance.path, instance.path.with_name("aside"))
    shutil.copytree(saved, instance.path, symlinks=True)
    refused = refused_run(instance, old)
    assert (refused["error"], refused["exit_code"]) == ("rollback", 3), refused
    again = refusal(try_rekey(instance, old, new), 3)
    assert "older state" in again
    # The writable layer alone: it has another key.
    shutil.rmtree(instance.path)
    shutil.move(instance.path.with_name("aside"), instance.path)
    shutil.move(instance.path / "run", instance.path.with_name("run-aside"))
    shutil.copytree(saved / "run", instance.path / "run")
    assert refused_run(instance, new)["error"] == "wrong-key"
    shutil.rmtree(instance.path / "run")
    shutil.move(instance.path.with_name("run-aside"), instance.path / "run")
    assert run(instance, new, "cat /root/file") == "before\n"


def test_a_pin_elsewhere_goes_along(make_instance: MakeInstance, tmp_path: Path) -> None:
    instance = make_instance()
    old = instance.key
    assert old is not None
    pin = ("--pin-file", str(tmp_path / "pin"))
    run(instance, old, "echo one > /root/file", *pin)
    saved = instance.path.with_name("saved")
    shutil.copytree(instance.path, saved, symlinks=True)
    new = new_key(instance)
    rekey(instance, old, new)
    assert run(instance, new, "cat /root/file", *pin) == "one\n"
    # The pin alone remembers: this machine forgot.
    shutil.rmtree(tmp_path / "home/state/serdab/volumes")
    shutil.rmtree(instance.path)
    shutil.copytree(saved, instance.path, symlinks=True)
    result = instance.command.run("-C", instance.path, "run", "--image-key", old, *pin, "/bin/true")
    assert result.returncode == 125, describe(result)
    assert b"[rollback]" in result.stderr


def test_a_layer_of_the_image_before_keeps_its_image(make_instance: MakeInstance) -> None:
    instance = make_instance(files={"/root/lower": b"first\n"})
    old = instance.key
    assert old is not None
    run(instance, old, "echo kept > /root/diary")
    (instance.path / "image/root/lower").write_text("second\n")
    instance.command.ok("-C", instance.path, "build", "--image-key", old)
    new = new_key(instance)
    rekey(instance, old, new)
    assert len(list((instance.path / "build/previous").iterdir())) == 1
    assert run(instance, new, "cat /root/diary /root/lower", "--previous") == "kept\nfirst\n"
    assert refused_run(instance, new)["error"] == "layer"
    instance.command.ok("-C", instance.path, "reset", "--yes")
    assert run(instance, new, "cat /root/lower") == "second\n"


def built_in_key(instance: BuiltInstance) -> bytes:
    mac = bytes.fromhex(instance.command.ok("-C", instance.path, "print", "init-mac"))
    path = instance.path / "build/initfs/__ROOT"
    image = open_image(path, key=None, expected_mac=mac)
    fs = Union(memory_volume(image), image)
    try:
        return bytes(picture(fs)[b"/etc/image_key"][4])
    finally:
        fs.close()


def test_a_built_in_key_is_replaced_in_the_init_fs(make_instance: MakeInstance) -> None:
    instance = make_instance()
    old = instance.key
    assert old is not None
    instance.command.ok("-C", instance.path, "build", "--image-key", old, "--buildin-image-key")
    boot = ("-C", instance.path, "run", "/bin/sh", "-c")
    instance.command.ok(*boot, "echo kept > /root/file")
    new = new_key(instance)
    rekey(instance, old, new)
    assert instance.command.ok(*boot, "cat /root/file") == "kept\n"
    assert built_in_key(instance) == new.read_bytes()


def test_both_keys_come_from_standard_input(make_instance: MakeInstance) -> None:
    instance = make_instance()
    old = instance.key
    assert old is not None
    new = new_key(instance)
    result = instance.command.run(
        "--json", "-C", instance.path, "rekey", "--image-key", "-", "--new-image-key", "-",
        stdin=old.read_bytes() + new.read_bytes(),
    )  # fmt: skip
    assert result.returncode == 0, describe(result)
    value = json.loads(result.stdout)
    assert value["was_done"] is False
    assert value["writable_layer"] is False
    assert run(instance, new, "echo fine") == "fine\n"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A FIFO: who reads a line of it waits until the end of the test."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    yield path
    path.unlink()  # who has not come to it yet does not wait either
    os.write(fd, b"\n")
    os.close(fd)


def test_kill_nine_of_the_command(make_instance: MakeInstance, gate: Path) -> None:
    instance = make_instance(files={"/big": os.urandom(1 << 20)})
    old = instance.key
    assert old is not None
    run(instance, old, "echo kept > /root/file; busybox cp /big /root/copy")
    before = run(instance, old, LISTING)
    new = new_key(instance)
    staged = instance.path / ".rekey-staging/mount"
    # It is asked for the signature once the new image is there: a moment that lasts.
    tool, asked = gate.with_name("tool"), gate.with_name("asked")
    tool.write_text(
        f"#!/bin/sh\n[ ! -e {staged} ] || {{ touch {asked}; read -r _ < {gate}; }}\n"
        f'exec {SIGN_TOOL} "$@"\n'
    )
    tool.chmod(0o755)
    pem = Path(instance.command.env["XDG_STATE_HOME"], "serdab/development-key.pem")
    process = instance.command.popen(
        "-C", instance.path, "rekey", "--image-key", old, "--new-image-key", new,
        "--sign-key", pem, "--sign-tool", tool,
    )  # fmt: skip
    try:
        wait_for(asked.exists, process)
        busy = instance.command.run("-C", instance.path, "fsck", "--image-key", old)
        assert busy.returncode == 5, describe(busy)
    finally:
        process.kill()
        process.communicate(timeout=60)
    assert staged.exists()
    assert run(instance, old, LISTING) == before
    assert not (instance.path / ".rekey-staging").exists()
    rekey(instance, old, new)
    assert run(instance, new, LISTING) == before


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "the command ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_each_refusal_has_its_exit_code_and_changes_nothing(
    make_instance: MakeInstance, tmp_path: Path
) -> None:
    instance = make_instance()
    old = instance.key
    assert old is not None
    run(instance, old, "echo x > /root/x")
    new, wrong, pem = new_key(instance), new_key(instance, "wrong.key"), tmp_path / "other.pem"
    subprocess.run(
        ["openssl", "genrsa", "-3", "-out", pem, "3072"], check=True, capture_output=True
    )
    before = digest_of(instance.path)
    assert "is the old one" in refusal(try_rekey(instance, old, old), 2)
    assert "mrsigner" in refusal(try_rekey(instance, old, new, "--sign-key", pem), 3)
    assert "wrong image key" in refusal(try_rekey(instance, wrong, new), 4)
    process = instance.command.popen(
        "-C", instance.path, "run", "--image-key", old, "/bin/sh", "-c", "echo up; cat",
        stdin=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert "in use" in refusal(try_rekey(instance, old, new), 5)
    finally:
        process.communicate(timeout=60)
    assert digest_of(instance.path) == before
