# SPDX-License-Identifier: Apache-2.0
"""A new image key: the same tree under it, the old one opens nothing, the old state is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
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


def test_a_later_build_makes_the_same_image_and_keeps_the_layer(
    make_instance: MakeInstance,
) -> None:
    instance = make_instance(fill=fill)
    old = instance.key
    assert old is not None
    run(instance, old, CHANGES)
    before = run(instance, old, LISTING)
    new = new_key(instance)
    rekey(instance, old, new)
    mac = instance.command.ok("-C", instance.path, "print", "root-mac")
    instance.command.ok("-C", instance.path, "build", "--image-key", new)
    assert instance.command.ok("-C", instance.path, "print", "root-mac") == mac
    assert run(instance, new, LISTING) == before


def test_a_build_with_the_old_key_afterwards_does_not_sign_the_new_image(
    make_instance: MakeInstance,
) -> None:
    instance = make_instance()
    old = instance.key
    assert old is not None
    mac = instance.command.ok("-C", instance.path, "print", "root-mac")
    rekey(instance, old, new_key(instance))
    instance.command.ok("-C", instance.path, "build", "--image-key", old)
    assert instance.command.ok("-C", instance.path, "print", "root-mac") == mac
    assert run(instance, old, "echo boots") == "boots\n"


def test_what_is_sealed_again_is_the_build_and_not_the_source_tree(
    make_instance: MakeInstance,
) -> None:
    instance = make_instance(files={"/root/file": b"as built\n"})
    old = instance.key
    assert old is not None
    (instance.path / "image/root/file").write_text("changed since\n")
    new = new_key(instance)
    rekey(instance, old, new)
    assert run(instance, new, "cat /root/file") == "as built\n"


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


@pytest.mark.parametrize("empty", [False, True], ids=["none", "without a change"])
def test_an_instance_whose_layer_holds_nothing(make_instance: MakeInstance, empty: bool) -> None:
    instance = make_instance()
    old = instance.key
    assert old is not None
    if empty:
        run(instance, old, "echo x > /root/x; busybox sync; busybox rm /root/x")
    new = new_key(instance)
    rekey(instance, old, new)
    assert run(instance, new, "echo fresh > /root/file; cat /root/file") == "fresh\n"


def test_a_layer_in_memory_is_no_matter(make_instance: MakeInstance) -> None:
    instance = make_instance()
    old = instance.key
    assert old is not None
    config = json.loads((instance.path / "Occlum.json").read_text())
    config["mount"][0]["options"]["layers"][1]["options"] = {"temporary": True}
    (instance.path / "Occlum.json").write_text(json.dumps(config))
    instance.command.ok("-C", instance.path, "build", "--image-key", old)
    new = new_key(instance)
    rekey(instance, old, new)
    assert run(instance, new, "echo fine") == "fine\n"


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


class TestRefusals:
    """Each leaves every byte of the instance as it was."""

    @pytest.fixture
    def instance(self, make_instance: MakeInstance) -> BuiltInstance:
        made = make_instance()
        assert made.key is not None
        run(made, made.key, "echo x > /root/x")
        return made

    @staticmethod
    def unchanged(
        instance: BuiltInstance,
        attempt: Callable[[], subprocess.CompletedProcess[bytes]],
        code: int,
    ) -> str:
        before = digest_of(instance.path)
        text = refusal(attempt(), code)
        assert digest_of(instance.path) == before
        return text

    def test_a_wrong_old_key(self, instance: BuiltInstance) -> None:
        wrong, new = new_key(instance, "wrong.key"), new_key(instance)
        text = self.unchanged(instance, lambda: try_rekey(instance, wrong, new), 4)
        assert "wrong image key" in text

    def test_an_old_key_that_is_not_that_of_the_layer(self, instance: BuiltInstance) -> None:
        assert instance.key is not None
        other, new = new_key(instance, "other.key"), new_key(instance)
        instance.command.ok("-C", instance.path, "build", "--image-key", other)
        text = self.unchanged(instance, lambda: try_rekey(instance, other, new), 4)
        assert "but not its writable layer" in text

    def test_another_signer(self, instance: BuiltInstance, tmp_path: Path) -> None:
        assert instance.key is not None
        old, new, pem = instance.key, new_key(instance), tmp_path / "other.pem"
        subprocess.run(
            ["openssl", "genrsa", "-3", "-out", pem, "3072"], check=True, capture_output=True
        )
        text = self.unchanged(instance, lambda: try_rekey(instance, old, new, "--sign-key", pem), 3)
        assert "mrsigner" in text

    def test_an_instance_in_use(self, instance: BuiltInstance) -> None:
        assert instance.key is not None
        old, new = instance.key, new_key(instance)
        process = instance.command.popen(
            "-C", instance.path, "run", "--image-key", old, "/bin/sh", "-c", "echo up; cat",
            stdin=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            text = self.unchanged(instance, lambda: try_rekey(instance, old, new), 5)
            assert "in use" in text
        finally:
            process.communicate(timeout=60)

    def test_one_key_for_both(self, instance: BuiltInstance) -> None:
        assert instance.key is not None
        old = instance.key
        text = self.unchanged(instance, lambda: try_rekey(instance, old, old), 2)
        assert "is the old one" in text

    def test_a_layer_that_was_emptied(self, instance: BuiltInstance) -> None:
        assert instance.key is not None
        old, new = instance.key, new_key(instance)
        shutil.rmtree(instance.path / "run/mount")
        text = self.unchanged(instance, lambda: try_rekey(instance, old, new), 3)
        assert "emptied" in text

    def test_a_layer_behind_a_link(self, instance: BuiltInstance, tmp_path: Path) -> None:
        assert instance.key is not None
        old, new = instance.key, new_key(instance)
        shutil.move(instance.path / "run/mount", tmp_path / "elsewhere")
        (instance.path / "run/mount").symlink_to(tmp_path / "elsewhere")
        before = digest_of(tmp_path / "elsewhere")
        text = self.unchanged(instance, lambda: try_rekey(instance, old, new), 2)
        assert "symbolic link" in text
        assert digest_of(tmp_path / "elsewhere") == before

    def test_an_image_that_is_not_encrypted(self, make_instance: MakeInstance) -> None:
        plain = make_instance(encrypted=False)
        old, new = new_key(plain, "old.key"), new_key(plain)
        text = self.unchanged(plain, lambda: try_rekey(plain, old, new), 2)
        assert "not encrypted" in text
        assert "serdab build --image-key" in text

    def test_a_byte_of_the_image_that_changed(self, instance: BuiltInstance) -> None:
        assert instance.key is not None
        old, new = instance.key, new_key(instance)
        file = instance.path / "build/mount/__ROOT/image.sefs"
        raw = bytearray(file.read_bytes())
        raw[4096 + 1000] ^= 1
        file.write_bytes(raw)
        os.utime(file, (0, 0))
        # The log of the layer, if it had one, is brought in order before; here it has none.
        self.unchanged(instance, lambda: try_rekey(instance, old, new), 3)
