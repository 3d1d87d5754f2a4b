# SPDX-License-Identifier: Apache-2.0
"""The conditions of ``mount``, broken in turn: each has its words, and nothing changes on disk."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from serdab.cli import mount
from serdab.cli.messages import Context
from serdab.cli.verbparser import VerbParser
from tests.harness.command import Command, describe
from tests.harness.instances import BuiltInstance, MakeInstance
from tests.mount_command.mounted import MakeOwner, Owner, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.userns, pytest.mark.root]


def new_key(path: Path) -> Path:
    subprocess.run(
        ["openssl", "genrsa", "-3", "-out", path, "3072"], check=True, capture_output=True
    )
    return path


def test_in_use_by_a_mount_names_the_holder(common_owner: Owner) -> None:
    common_owner.inside("/bin/sh", "-c", "echo kept > /root/file")
    mounted = common_owner.start()
    before = common_owner.files()
    for layer in ("union", "upper", "image"):
        refused = common_owner.refused("--layer", layer, at=common_owner.place("second"))
        assert refused.returncode == 5, describe(refused)
        assert f"process {mounted.process.pid}".encode() in refused.stderr
    run = common_owner.instance.run("/bin/true")
    assert run.returncode == 125
    assert b"[busy]" in run.stderr
    assert common_owner.files() == before
    assert mounted.end().returncode == 0


def test_nobody_touches_the_layers_while_they_are_mounted(common_owner: Owner) -> None:
    common_owner.inside("/bin/sh", "-c", "echo kept > /root/file")
    mounted = common_owner.start()
    before = common_owner.files()
    command, key = common_owner.instance.command, common_owner.key()
    new = common_owner.base / "new.key"
    command.ok("gen-image-key", new)
    for words in (("fsck", *key), ("reset", "--yes"), ("rekey", *key, "--new-image-key", str(new))):
        result = command.run("-C", common_owner.instance.path, *words)
        assert result.returncode == 5, describe(result)
    assert common_owner.files() == before
    assert mounted.end().returncode == 0


def test_a_build_meanwhile_leaves_what_is_mounted(root_owner: Owner) -> None:
    mounted = root_owner.start()
    (root_owner.instance.path / "image/etc/greeting").write_text("new image\n")
    root_owner.instance.command.ok("-C", root_owner.instance.path, "build", *root_owner.key())
    assert (mounted.path / "etc/greeting").read_text() == "hello\n"
    (mounted.path / "root/file").write_text("over the old one\n")
    assert mounted.end().returncode == 0
    shown = root_owner.instance.run("--previous", "/bin/cat", "/root/file")
    assert shown.stdout == b"over the old one\n", describe(shown)


def test_a_pin_elsewhere_is_asked_and_told(root_owner: Owner) -> None:
    pin = root_owner.base / "pin"
    root_owner.inside("/bin/sh", "-c", "echo kept > /root/file")
    mounted = root_owner.start("--pin-file", str(pin))
    (mounted.path / "root/file").write_text("changed\n")
    assert mounted.end().returncode == 0
    told = pin.read_text()
    uuid, epoch, *rest = told.split()
    pin.write_text(" ".join((uuid, str(int(epoch) + 5), *rest)) + "\n")
    refused = root_owner.refused("--pin-file", pin)
    assert refused.returncode == 3, describe(refused)
    assert b"older state" in refused.stderr
    inside = root_owner.refused("--pin-file", root_owner.instance.path / "pin")
    assert inside.returncode == 2, describe(inside)


def test_every_option_is_documented() -> None:
    parser = VerbParser("mount", mount.SUMMARY, Context())
    mount.configure(parser)
    docs = Path(__file__).parents[2] / "docs"
    for name in ("mount.md", "cli-abi.md"):
        text = (docs / name).read_text()
        for action in parser._actions:
            for option in action.option_strings:
                known = action.help == argparse.SUPPRESS or option in ("-h", "--help", "--sgx-mode")
                assert known or f"`{option}" in text, f"{option} in {name}"


def test_in_use_by_a_run_names_the_holder(common_owner: Owner) -> None:
    instance = common_owner.instance
    process = instance.command.popen(
        "-C", instance.path, "run", *common_owner.key(), "/bin/sh", "-c", "echo up; cat",
        stdin=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        before = common_owner.files()
        refused = common_owner.refused()
        assert refused.returncode == 5, describe(refused)
        assert b"in use" in refused.stderr
        assert b"process " in refused.stderr
        assert common_owner.files() == before
    finally:
        process.terminate()
        process.communicate()


def test_another_sign_key_is_named_with_both_signers(common_owner: Owner, tmp_path: Path) -> None:
    other = new_key(tmp_path / "other.pem")
    before = common_owner.files()
    refused = common_owner.refused("--sign-key", other)
    assert refused.returncode == 3, describe(refused)
    assert b"the sign key is not the one" in refused.stderr
    signer = common_owner.instance.command.ok(
        "-C", common_owner.instance.path, "print", "mrsigner"
    ).strip()
    assert signer.encode() in refused.stderr
    assert common_owner.files() == before


def test_no_development_key_is_made_to_be_refused(root_owner: Owner) -> None:
    state = Path(root_owner.instance.command.env["XDG_STATE_HOME"]) / "serdab"
    (state / "development-key.pem").rename(root_owner.base / "kept.pem")
    before = root_owner.files()
    refused = root_owner.refused()
    assert refused.returncode == 3, describe(refused)
    assert b"no sign key was given" in refused.stderr
    assert root_owner.files() == before
    mounted = root_owner.start("--sign-key", str(root_owner.base / "kept.pem"))
    assert mounted.end().returncode == 0


def test_another_sign_tool_is_what_differs(root_owner: Owner, tmp_path: Path) -> None:
    instance = root_owner.instance
    private = new_key(tmp_path / "private.pem")
    public = tmp_path / "public.pem"
    subprocess.run(
        ["openssl", "rsa", "-in", private, "-pubout", "-out", public],
        check=True,
        capture_output=True,
    )
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(f"#!/bin/sh\nexec openssl dgst -sha256 -sign {private}\n")
    bad.write_text("#!/bin/sh\ncat > /dev/null; head -c 384 /dev/zero\n")
    for tool in (good, bad):
        tool.chmod(0o755)
    signing = "--sign-key", public, "--sign-tool"
    instance.command.ok("-C", instance.path, "build", *root_owner.key(), *signing, good)
    before = root_owner.files()
    for wrong in (bad, "/bin/false", "/bin/true"):
        refused = root_owner.refused(*signing, wrong)
        assert refused.returncode == 3, describe(refused)
        assert b"the sign tool is not the one" in refused.stderr
    missing = root_owner.refused(*signing, tmp_path / "missing")
    assert missing.returncode == 2, describe(missing)
    assert root_owner.files() == before
    mounted = root_owner.start(*map(str, signing), str(good))
    assert mounted.end().returncode == 0


def test_another_image_key_is_a_wrong_key(common_owner: Owner) -> None:
    other = common_owner.base / "other.key"
    if not other.exists():
        common_owner.instance.command.ok("gen-image-key", other)
    before = common_owner.files()
    for options in ((), ("--read-only",), ("--layer", "image"), ("--layer", "upper")):
        refused = common_owner.refused("--image-key", other, *options, keyed=False)
        assert refused.returncode == 4, describe(refused)
        assert b"wrong image key" in refused.stderr
    assert common_owner.files() == before


def test_no_image_key_is_a_wrong_key(common_owner: Owner) -> None:
    before = common_owner.files()
    refused = common_owner.refused(keyed=False)
    assert refused.returncode == 4, describe(refused)
    assert b"no key was given" in refused.stderr
    assert common_owner.files() == before


def test_a_superfluous_image_key_is_a_wrong_key(make_owner: MakeOwner) -> None:
    owner = make_owner(encrypted=False)
    key = owner.base / "key"
    owner.instance.command.ok("gen-image-key", key)
    refused = owner.refused("--image-key", key)
    assert refused.returncode == 4, describe(refused)


@pytest.fixture
def automatic(make_owner: MakeOwner) -> Owner:
    """An instance whose writable layer is under the automatic key, with something in it."""
    owner = make_owner(encrypted=False)
    owner.inside("/bin/sh", "-c", "echo kept > /root/file")
    return owner


def elsewhere(owner: Owner, *, has_secret: bool) -> Owner:
    """Return the same instance and signer on another machine."""
    there = Path(owner.instance.command.env["HOME"]).parent / "elsewhere"
    here = Path(owner.instance.command.env["XDG_STATE_HOME"])
    (there / "serdab").mkdir(parents=True, mode=0o700)
    shutil.copy2(here / "serdab/development-key.pem", there / "serdab")
    env = {**owner.instance.command.env, "XDG_STATE_HOME": str(there)}
    command = Command(env, owner.instance.command.prefix)
    if has_secret:
        # Whatever is run there first makes the secret of that machine.
        other = there.parent / "there"
        command.ok("new", other)
        shutil.copytree(owner.instance.path / "image", other / "image", True, dirs_exist_ok=True)
        command.ok("-C", other, "build")
        done = command.run("-C", other, "run", "/bin/sh", "-c", "echo x > /root/x")
        assert done.returncode == 0, describe(done)
    return Owner(BuiltInstance(owner.instance.path, None, command), None, owner.started)


@pytest.mark.parametrize("has_secret", [True, False])
def test_another_machine_has_not_the_automatic_key(automatic: Owner, has_secret: bool) -> None:
    there = elsewhere(automatic, has_secret=has_secret)
    before = there.files()
    for options in ((), ("--read-only",), ("--layer", "upper")):
        refused = there.refused(*options)
        assert refused.returncode == 4, describe(refused)
        assert b"bound to another platform" in refused.stderr
    assert there.files() == before
    mounted = there.start("--layer", "image")
    assert mounted.end().returncode == 0


def change_config(owner: Owner, change: dict[str, object]) -> None:
    path = owner.instance.path / "Occlum.json"
    config = json.loads(path.read_text())
    for layer in config["mount"][0]["options"]["layers"]:
        if layer["target"] == "/" and layer["source"].startswith("./run"):
            layer["options"] = {**layer.get("options", {}), **change}
    path.write_text(json.dumps(config))
    owner.instance.command.ok("-C", owner.instance.path, "build", *owner.key())


def test_a_key_that_is_bound_to_the_measurement_is_refused(make_owner: MakeOwner) -> None:
    owner = make_owner(encrypted=False)
    change_config(owner, {"autokey_policy": 1})
    before = owner.files()
    for options in ((), ("--layer", "upper")):
        refused = owner.refused(*options)
        assert refused.returncode == 4, describe(refused)
        assert b"autokey_policy" in refused.stderr
        assert b"bound to the measurement" in refused.stderr
    assert owner.files() == before
    mounted = owner.start("--layer", "image")
    assert mounted.end().returncode == 0


def test_with_an_image_key_the_policy_does_not_apply(root_owner: Owner) -> None:
    change_config(root_owner, {"autokey_policy": 1})
    mounted = root_owner.start()
    assert mounted.end().returncode == 0


def test_a_changed_image_is_refused(root_owner: Owner) -> None:
    """Occlum forgets to compare the root MAC here."""
    image = next((root_owner.instance.path / "build/mount/__ROOT").iterdir())
    raw = bytearray(image.read_bytes())
    raw[100] ^= 1
    image.write_bytes(raw)
    before = root_owner.files()
    refused = root_owner.refused()
    assert refused.returncode == 3, describe(refused)
    assert b"root MAC" in refused.stderr
    assert root_owner.files() == before


def test_an_image_of_the_same_key_that_was_not_measured_is_refused(
    root_owner: Owner, make_instance: MakeInstance
) -> None:
    other = make_instance(name="other")
    image = root_owner.instance.path / "build/mount/__ROOT"
    assert root_owner.instance.key is not None
    other.command.ok("-C", other.path, "build", "--image-key", root_owner.instance.key)
    shutil.rmtree(image)
    shutil.copytree(other.path / "build/mount/__ROOT", image)
    refused = root_owner.refused()
    assert refused.returncode == 3, describe(refused)
    assert b"root MAC" in refused.stderr


def test_everything_signed_by_another_key_is_refused(root_owner: Owner, tmp_path: Path) -> None:
    """Whoever has that key can prove to be its owner: the record of the first signer decides."""
    instance, other = root_owner.instance, new_key(tmp_path / "other.pem")
    state = Path(instance.command.env["XDG_STATE_HOME"]) / "serdab/signers"
    (record,) = state.iterdir()
    kept = record.read_bytes()
    instance.command.ok("-C", instance.path, "build", *root_owner.key(), "--sign-key", other)
    record.write_bytes(kept)
    before = root_owner.files()
    refused = root_owner.refused("--sign-key", other)
    assert refused.returncode == 3, describe(refused)
    assert b"signed by another key" in refused.stderr
    assert root_owner.files() == before


def test_an_older_writable_layer_is_refused_and_accepted_when_asked(root_owner: Owner) -> None:
    upper = root_owner.instance.path / "run/mount/__ROOT"
    root_owner.inside("/bin/sh", "-c", "echo old > /root/file")
    shutil.copytree(upper, root_owner.base / "backup")
    root_owner.inside("/bin/sh", "-c", "echo new > /root/file")
    shutil.rmtree(upper)
    shutil.copytree(root_owner.base / "backup", upper)
    before = root_owner.files()
    for options in ((), ("--read-only",), ("--layer", "upper")):
        refused = root_owner.refused(*options)
        assert refused.returncode == 3, describe(refused)
        assert b"older state" in refused.stderr
    assert root_owner.files() == before
    mounted = root_owner.start("--accept-rollback")
    assert (mounted.path / "root/file").read_text() == "old\n"
    assert mounted.end().returncode == 0
    assert root_owner.inside("/bin/cat", "/root/file") == "old\n"


def test_an_emptied_writable_layer_is_refused(root_owner: Owner) -> None:
    root_owner.inside("/bin/sh", "-c", "echo kept > /root/file")
    shutil.rmtree(root_owner.instance.path / "run/mount/__ROOT")
    before = root_owner.files()
    for options in ((), ("--read-only",)):
        refused = root_owner.refused(*options)
        assert refused.returncode == 3, describe(refused)
        assert b"emptied writable layer" in refused.stderr
    assert root_owner.files() == before


def test_refusals_are_json_for_programs(common_owner: Owner) -> None:
    result = common_owner.instance.command.run(
        "-C", common_owner.instance.path, "--json", "mount", common_owner.place()
    )
    said = json.loads(result.stdout)
    assert (said["error"], said["exit_code"], result.returncode) == ("wrong-key", 4, 4)


def test_the_lock_is_free_once_the_mount_was_killed(owner: Owner) -> None:
    mounted = owner.start()
    mounted.shell('echo kept > "$M/root/file"; sync "$M/root/file"')
    mounted.process.kill()
    mounted.process.communicate()
    assert owner.inside("/bin/cat", "/root/file") == "kept\n"
    again = owner.start()
    assert again.shell('cat "$M/root/file"') == "kept\n"
    done = again.end()
    assert done.returncode == 0
    assert b"had died" in done.stderr
    wait_until(lambda: again.process.poll() is not None, "the end")
    owner.fsck()
