# SPDX-License-Identifier: Apache-2.0
"""serdab build: what is sealed, what is added, what is kept, and what a killed build leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from serdab.config import parse_boot_config
from serdab.errors import WrongKeyError
from serdab.instance.layout import BUILD_STAGING
from serdab.keys import Key
from serdab.sefs.image import open_image
from serdab.sefs.volume import open_volume
from serdab.vfs.api import ROOT_INO
from tests.harness.command import Command, describe
from tests.harness.instances import MakeInstance

OLD = 1_000_000_000


@pytest.fixture
def instance(serdab: Command, tmp_path: Path) -> Path:
    """An instance that has not been built, with two small files in its image."""
    path = tmp_path / "instance"
    serdab.ok("new", path)
    (path / "image/bin/program").write_bytes(b"#!/bin/sh\n" * 100)
    (path / "image/bin/program").chmod(0o755)
    (path / "image/etc/settings").write_text("one")
    age(path)
    return path


def age(path: Path) -> None:
    """Give every file of the image a fixed time; leave the span that fingerprints distrust."""
    for item in (path / "image").rglob("*"):
        if item.is_file() and not item.is_symlink():
            os.utime(item, (OLD, OLD))
    time.sleep(0.06)


def build(serdab: Command, instance: Path, *args: str | Path) -> dict[str, Any]:
    result = serdab.run("-C", instance, "--json", "build", *args)
    assert result.returncode == 0, describe(result)
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def protected(instance: Path) -> bytes:
    return (instance / "build/.Occlum_sys.json.protected").read_bytes()


def names(instance: Path, tree: str, directory: str) -> set[str]:
    """Return the names in a directory of a sealed tree."""
    config = parse_boot_config(protected(instance))
    mac = config.init_mac if tree == "initfs" else config.root_mac
    image = open_image(instance / "build" / tree / "__ROOT", key=None, expected_mac=mac)
    try:
        ino = ROOT_INO
        for part in directory.strip("/").split("/"):
            if part:
                entry = image.dirent(ino, part.encode())
                assert entry is not None
                ino = entry.ino
        return {name.decode() for _, name, _ in image.dirents(ino, 0)}
    finally:
        image.close()


class TestOutput:
    def test_measurements_are_printed_and_can_be_printed_again(
        self, serdab: Command, instance: Path
    ) -> None:
        result = build(serdab, instance)
        for name in ("mrenclave", "mrsigner", "conf-mac", "init-mac", "root-mac"):
            assert serdab.ok("-C", instance, "print", name) == result[name] + "\n"
        assert result["platform"] == "simulation"

    def test_the_development_key_is_named(self, serdab: Command, instance: Path) -> None:
        result = serdab.run("-C", instance, "build")
        assert b"development-key.pem" in result.stderr
        assert b"simulation" in result.stdout

    def test_two_trees_alike_have_the_same_macs(
        self, serdab: Command, instance: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "other"
        old = os.umask(0o077)
        try:
            serdab.ok("new", other)
            for name in ("etc/settings", "bin/program"):
                shutil.copy2(instance / "image" / name, other / "image" / name)
        finally:
            os.umask(old)
        first, second = build(serdab, instance), build(serdab, other)
        assert first == second

    def test_the_source_trees_are_never_written_to(self, serdab: Command, instance: Path) -> None:
        shutil.rmtree(instance / "image/host")
        before = snapshot(instance)
        build(serdab, instance)
        assert snapshot(instance) == before

    def test_accepted_fields_get_one_line_each(self, serdab: Command, instance: Path) -> None:
        edit(instance, lambda config: config.update(feature={"amx": 1, "io_uring": 2}))
        result = serdab.run("-C", instance, "build", "--sgx-mode", "SIM")
        assert result.stderr.count(b"accepted, changes nothing here") == 3


def snapshot(instance: Path) -> list[tuple[str, int, int]]:
    return sorted(
        (str(path), path.lstat().st_mode, path.lstat().st_mtime_ns)
        for tree in ("image", "initfs")
        for path in (instance / tree).rglob("*")
    )


def edit(instance: Path, change: Any) -> None:  # noqa: ANN401 - a lambda over JSON
    path = instance / "Occlum.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


class TestAdditions:
    def test_mount_points_and_host_files_are_added_to_the_sealed_tree(
        self, serdab: Command, instance: Path
    ) -> None:
        for name in ("host", "proc", "dev"):
            (instance / "image" / name).rmdir()
        edit(
            instance,
            lambda config: config["mount"].append({"target": "/data/ram", "type": "ramfs"}),
        )
        build(serdab, instance)
        assert {"host", "proc", "dev", "data"} <= names(instance, "mount", "/")
        assert names(instance, "mount", "/data") == {"ram"}
        assert {"hosts", "hostname", "resolv.conf"} <= names(instance, "mount", "/etc")
        assert names(instance, "initfs", "/etc") == {"image_config.json"}

    def test_owners_are_those_that_a_bom_declares(
        self, serdab: Command, instance: Path, tmp_path: Path
    ) -> None:
        bom = tmp_path / "bom.yaml"
        bom.write_text("targets:\n- target: /home/me\n  owner: 1000:100\n  mkdirs: [d]\n")
        first = build(serdab, instance)
        serdab.ok("copy-bom", "-f", bom, "--root", instance / "image")
        second = build(serdab, instance)
        assert second["sealed"] == ["image"]
        mac = bytes.fromhex(second["root-mac"])
        image = open_image(instance / "build/mount/__ROOT", key=None, expected_mac=mac)
        try:
            owners = []
            ino = ROOT_INO
            for part in (b"home", b"me", b"d"):
                entry = image.dirent(ino, part)
                assert entry is not None
                ino = entry.ino
                inode = image.inode(ino)
                assert inode is not None
                owners.append((inode.uid, inode.gid))
        finally:
            image.close()
        assert owners == [(0, 0), (1000, 100), (1000, 100)]
        (instance / "image.owners").unlink()
        third = build(serdab, instance)
        assert third["root-mac"] not in (first["root-mac"], second["root-mac"])

    def test_a_mount_point_that_is_a_link_is_refused(self, serdab: Command, instance: Path) -> None:
        (instance / "image/host").rmdir()
        (instance / "image/host").symlink_to("opt")
        result = serdab.run("-C", instance, "build")
        assert result.returncode == 2
        assert b"the mount point /host is no directory" in result.stderr

    @pytest.mark.parametrize("source", ["build", "nowhere"])
    def test_a_host_directory_that_a_run_would_refuse_is_said(
        self, serdab: Command, instance: Path, source: str
    ) -> None:
        config = json.loads((instance / "Occlum.json").read_text())
        entry = {"target": "/data", "type": "hostfs", "source": source}
        config["mount"].append(entry)
        (instance / "Occlum.json").write_text(json.dumps(config))
        result = serdab.run("-C", instance, "build")
        assert result.returncode == 0, describe(result)
        assert b"`run` will refuse the mount at /data" in result.stderr

    def test_a_built_in_key_is_said_to_be_public(
        self, serdab: Command, instance: Path, tmp_path: Path
    ) -> None:
        key = tmp_path / "key"
        serdab.ok("gen-image-key", key)
        result = serdab.run("-C", instance, "build", "--image-key", key, "--buildin-image-key")
        assert b"in clear into the init FS" in result.stderr
        assert names(instance, "initfs", "/etc") == {"image_config.json", "image_key"}
        assert parse_boot_config(protected(instance)).builtin_image_key

    @pytest.mark.fuse
    @pytest.mark.userns
    def test_what_is_written_above_a_built_in_key_stays_secret(
        self, make_instance: MakeInstance, serdab: Command, tmp_path: Path
    ) -> None:
        made = make_instance()
        assert made.key is not None
        serdab.ok("-C", made.path, "build", "--image-key", made.key, "--buildin-image-key")
        script = ("/bin/sh", "-c", "echo secret > /root/file")
        result = serdab.run("-C", made.path, "run", *script)
        assert result.returncode == 0, describe(result)
        assert b"notice: the image key is built in" in result.stderr
        upper = made.path / "run/mount/__ROOT"
        with pytest.raises(WrongKeyError):
            open_volume(upper, key=Key.parse(made.key.read_text()), read_only=True)
        result = serdab.run("-C", made.path, "run", "/bin/cat", "/root/file")
        assert result.stdout == b"secret\n", describe(result)

    def test_an_image_that_is_no_longer_encrypted_is_told(
        self, serdab: Command, instance: Path, tmp_path: Path
    ) -> None:
        serdab.ok("gen-image-key", tmp_path / "k")
        warning = b"warning: the image was encrypted, and this one is not"
        for words, told in (
            ((), False), (("--image-key", tmp_path / "k"), False), ((), True), ((), False),
        ):  # fmt: skip
            result = serdab.run("-C", instance, "build", *words)
            assert result.returncode == 0, describe(result)
            assert (warning in result.stderr) == told, describe(result)

    def test_a_key_given_at_build_is_nowhere_in_the_instance(
        self, serdab: Command, instance: Path, tmp_path: Path
    ) -> None:
        key = tmp_path / "key"
        serdab.ok("gen-image-key", key)
        text = key.read_bytes().strip()
        result = serdab.run("-C", instance, "-v", "build", "--image-key", key)
        assert result.returncode == 0
        raw = bytes.fromhex(text.replace(b"-", b"").decode())
        everything = result.stdout + result.stderr
        for root in (instance, Path(serdab.env["XDG_STATE_HOME"])):
            for path in root.rglob("*"):
                if path.is_file():
                    everything += path.read_bytes()
        assert text not in everything
        assert raw not in everything


class TestIncremental:
    def test_what_did_not_change_is_not_sealed_again(self, serdab: Command, instance: Path) -> None:
        first = build(serdab, instance)
        assert first["sealed"] == ["initfs", "image"]
        inode = (instance / "build").stat().st_ino
        second = build(serdab, instance)
        assert second["sealed"] == []
        assert {**second, "sealed": 0} == {**first, "sealed": 0}
        assert (instance / "build").stat().st_ino == inode

    @pytest.mark.parametrize("change", ["content", "mode", "add", "remove", "rename", "link"])
    def test_every_change_of_the_tree_is_seen(
        self, serdab: Command, instance: Path, change: str
    ) -> None:
        first = build(serdab, instance)
        settings = instance / "image/etc/settings"
        match change:
            case "content":
                settings.write_text("two")
                os.utime(settings, (OLD, OLD))
            case "mode":
                settings.chmod(0o600)
            case "add":
                (instance / "image/etc/more").write_text("")
            case "remove":
                settings.unlink()
            case "rename":
                settings.rename(instance / "image/etc/other")
            case "link":
                (instance / "image/etc/link").symlink_to("settings")
        second = build(serdab, instance)
        assert second["sealed"] == ["image"]
        assert second["root-mac"] != first["root-mac"]
        assert second["init-mac"] == first["init-mac"]

    def test_a_key_or_force_seals_again(
        self, serdab: Command, instance: Path, tmp_path: Path
    ) -> None:
        build(serdab, instance)
        key, other = tmp_path / "key", tmp_path / "other"
        for path in (key, other):
            serdab.ok("gen-image-key", path)
        time.sleep(0.06)
        assert "image" in build(serdab, instance, "--image-key", key)["sealed"]
        assert build(serdab, instance, "--image-key", key)["sealed"] == []
        assert build(serdab, instance, "--image-key", other)["sealed"] == ["image"]
        assert build(serdab, instance, "--image-key", other, "-f")["sealed"] == ["initfs", "image"]

    def test_a_changed_configuration_alone_keeps_the_images(
        self, serdab: Command, instance: Path
    ) -> None:
        first = build(serdab, instance)
        edit(instance, lambda config: config.update(entry_points=["/opt"]))
        second = build(serdab, instance)
        assert second["sealed"] == []
        assert second["root-mac"] == first["root-mac"]
        assert second["conf-mac"] != first["conf-mac"]
        names(instance, "mount", "/")

    def test_the_macs_that_get_signed_never_come_from_the_instance(
        self, serdab: Command, instance: Path, tmp_path: Path
    ) -> None:
        """Whoever can write to build/ swaps image and configuration; the next build must not sign
        the root MAC it finds there."""
        first = build(serdab, instance)
        evil = tmp_path / "evil"
        serdab.ok("new", evil)
        (evil / "image/bin/program").write_text("evil")
        build(serdab, evil)
        shutil.rmtree(instance / "build")
        shutil.copytree(evil / "build", instance / "build")
        again = build(serdab, instance)
        assert again["root-mac"] == first["root-mac"]
        assert again["mrenclave"] == first["mrenclave"]


class TestAtomicity:
    def test_a_failed_build_leaves_the_old_one(self, serdab: Command, instance: Path) -> None:
        build(serdab, instance)
        before = protected(instance)
        (instance / "image/etc/new").write_text("")
        (instance / "image/host").rmdir()
        (instance / "image/host").touch()  # a mount point has to be a directory
        result = serdab.run("-C", instance, "build")
        assert result.returncode == 2
        assert protected(instance) == before
        assert not (instance / BUILD_STAGING).exists()
        serdab.ok("-C", instance, "print", "root-mac")

    @pytest.mark.parametrize("delay_ms", [0, 50, 100, 150, 200, 250, 300, 400])
    def test_a_killed_build_leaves_the_old_one_or_the_new_one(
        self, serdab: Command, instance: Path, delay_ms: int
    ) -> None:
        first = build(serdab, instance)
        for number in range(200):
            (instance / f"image/etc/file{number}").write_bytes(os.urandom(5000))
        process = serdab.popen("-C", instance, "build")
        time.sleep(delay_ms / 1000)  # anywhere in the build, or after it: every moment must do
        process.send_signal(signal.SIGKILL)
        process.communicate()
        config = parse_boot_config(protected(instance))
        names(instance, "mount", "/")
        names(instance, "initfs", "/")
        assert serdab.ok("-C", instance, "print", "root-mac").strip() == config.root_mac.hex()
        after = build(serdab, instance)
        assert config.root_mac.hex() in (first["root-mac"], after["root-mac"])
        assert not (instance / BUILD_STAGING).exists()

    def test_two_builds_at_once_are_one_build_and_one_refusal(
        self, serdab: Command, instance: Path
    ) -> None:
        with subprocess.Popen(
            ["flock", "-x", instance, "-c", "echo locked; cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"locked\n"
            result = serdab.run("-C", instance, "build")
            assert result.returncode == 5
            assert b"another build is at work" in result.stderr
            assert str(holder.pid).encode() in result.stderr
            holder.communicate()


class TestWritableLayer:
    def test_an_image_that_a_writable_layer_refers_to_is_kept_until_reset(
        self, serdab: Command, instance: Path
    ) -> None:
        first = build(serdab, instance)
        upper = instance / "run/mount/__ROOT"
        upper.mkdir(parents=True)
        (upper / "anchor").write_text("")
        kept = instance / "build/previous" / first["root-mac"] / "image.sefs"
        (instance / "image/etc/settings").write_text("two")
        build(serdab, instance)
        assert kept.is_file()
        assert (upper / "anchor").exists()
        (instance / "image/etc/settings").write_text("three")
        build(serdab, instance)
        assert kept.is_file()
        assert len(list((instance / "build/previous").iterdir())) == 2
        result = serdab.run("-C", instance, "reset")
        assert result.returncode == 2
        assert b"--yes" in result.stderr
        serdab.ok("-C", instance, "reset", "--yes")
        assert not upper.exists()
        assert not kept.exists()


class TestHostileStorage:
    """Whoever keeps the instance put something else where a build looks."""

    @pytest.fixture
    def precious(self, tmp_path: Path) -> Path:
        """A directory of the host with directories in it that might pass for images."""
        for name in ("precious/work", f"precious/{'a' * 64}", "precious/__ROOT"):
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "image.sefs").write_text("precious")
        return tmp_path / "precious"

    @pytest.mark.parametrize(
        "link",
        ["build/previous", "build/mount", ".build-staging", ".build-staging-old",
         ".build-staging-old/previous", ".build-staging/previous", "build/.image-root"],
    )  # fmt: skip
    def test_a_link_leads_no_build_out_of_the_instance(
        self, serdab: Command, instance: Path, precious: Path, link: str
    ) -> None:
        build(serdab, instance)
        upper = instance / "run/mount/__ROOT"
        upper.mkdir(parents=True)
        (upper / "anchor").write_text("")
        path = instance / link
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            path.rename(instance / "aside")
        path.symlink_to(precious)
        before = sorted(precious.rglob("*"))
        (instance / "image/etc/settings").write_text("two")
        build(serdab, instance)
        assert sorted(precious.rglob("*")) == before
        assert not path.is_symlink()

    @pytest.mark.parametrize("name", [".build-staging", ".build-staging-old", "build/.image-root"])
    @pytest.mark.parametrize("kind", ["file", "fifo", "directory"])
    def test_what_lies_in_the_way_of_a_build_is_cleared_away(
        self, serdab: Command, instance: Path, name: str, kind: str
    ) -> None:
        build(serdab, instance)
        path = instance / name
        if kind == "directory":
            path.mkdir()
        else:
            os.mknod(path, stat.S_IFIFO | 0o600 if kind == "fifo" else stat.S_IFREG | 0o600)
        (instance / "image/etc/settings").write_text("two")
        build(serdab, instance)
        assert not path.exists()

    def test_a_link_in_place_of_the_outputs_is_refused(
        self, serdab: Command, instance: Path, precious: Path
    ) -> None:
        (instance / "build").symlink_to(precious)
        before = sorted(precious.rglob("*"))
        result = serdab.run("-C", instance, "build")
        assert result.returncode == 2, describe(result)
        assert b"a symbolic link" in result.stderr
        assert sorted(precious.rglob("*")) == before
        assert sorted(path.name for path in instance.iterdir() if path.name[0] == ".") == []


class TestSigning:
    def test_the_signer_is_that_of_the_key(
        self, serdab: Command, instance: Path, tmp_path: Path
    ) -> None:
        vector = Path(__file__).parents[1] / "vectors/signing-key.pem"
        result = build(serdab, instance, "--sign-key", vector)
        assert result["mrsigner"] == (
            "607deafd927f0671ee0531ad6455fb59ace829b464740e428525accf77d0ccc6"
        )

    def test_a_change_of_the_signer_is_told(self, serdab: Command, instance: Path) -> None:
        vector = Path(__file__).parents[1] / "vectors/signing-key.pem"
        first = build(serdab, instance)
        result = serdab.run("-C", instance, "build", "--sign-key", vector)
        assert b"had another signer" in result.stderr
        assert first["mrsigner"].encode() in result.stderr

    def test_a_reference_mac_must_be_reproduced(self, serdab: Command, instance: Path) -> None:
        first = build(serdab, instance)

        def pin(config: Any, mac: str) -> None:  # noqa: ANN401 - JSON
            config["mount"][0]["options"]["layers"][0]["options"]["MAC"] = mac

        edit(instance, lambda config: pin(config, first["root-mac"]))
        assert build(serdab, instance)["root-mac"] == first["root-mac"]
        edit(instance, lambda config: pin(config, "-".join(["00"] * 16)))
        result = serdab.run("-C", instance, "build")
        assert result.returncode == 3
        assert first["root-mac"].encode() in result.stderr
