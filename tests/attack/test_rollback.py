# SPDX-License-Identifier: Apache-2.0
"""Real boots after the storage brought an old state of the writable layer back, or none at all."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from serdab.instance.layout import Instance
from serdab.instance.locks import is_in_use
from tests.harness.command import Command, describe
from tests.harness.instances import BuiltInstance, MakeInstance
from tests.harness.user import OrdinaryUser
from tests.recovery.processes import find_family, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

Result = subprocess.CompletedProcess[bytes]
UPPER = "run/mount/__ROOT"


def run(instance: BuiltInstance, *args: str | Path, script: str = "") -> Result:
    """Run a shell script inside, or /bin/true; ``args`` are options."""
    key = ("--image-key", instance.key) if instance.key else ()
    program = ("/bin/sh", "-c", script) if script else ("/bin/true",)
    return instance.command.run("-C", instance.path, "run", *key, *args, *program)


def said(result: Result, code: int = 0) -> str:
    assert result.returncode == code, describe(result)
    text = result.stderr.decode()
    assert "Traceback" not in text
    return text


def refused(instance: BuiltInstance, *args: str | Path) -> dict[str, str]:
    """Require a refusal with all its parts; return the JSON of the same."""
    text = said(run(instance, *args), 125)
    assert "hint: " in text
    key = ("--image-key", instance.key) if instance.key else ()
    result = instance.command.run("--json", "-C", instance.path, "run", *key, *args, "/bin/true")
    value: dict[str, str] = json.loads(result.stderr.splitlines()[-1])
    assert value["stage"] == "rootfs"
    for name in ("message", "subject", "expected", "found", "hint"):
        assert value[name], value
    assert f"[{value['error']}]" in text
    return value


def put_command(text: str, path: str) -> str:
    """Return the command that writes a file inside and synchronizes it."""
    return f"echo {text} | busybox dd of={path} conv=fsync 2>/dev/null"


def save(instance: BuiltInstance, name: str) -> Path:
    copy = instance.path.with_name(name)
    shutil.copytree(instance.path, copy, symlinks=True)
    return copy


def restore(instance: BuiltInstance, copy: Path) -> None:
    """Put the whole host directory back as it was, as the storage can at any time."""
    shutil.rmtree(instance.path)
    shutil.copytree(copy, instance.path, symlinks=True)


def content(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def volumes(command: Command) -> Path:
    return Path(command.env["XDG_STATE_HOME"]) / "serdab/volumes"


def epoch(instance: BuiltInstance) -> str:
    """Return what the record remembers; a session that takes long has more than one."""
    (record,) = volumes(instance.command).glob("*/record.json")
    return f"epoch {json.loads(record.read_text())['epoch']},"


def test_a_rolled_back_instance_is_refused_and_accepted_only_on_request(
    make_instance: MakeInstance,
) -> None:
    instance = make_instance()
    assert said(run(instance, script="echo one > /root/state")) == ""
    old, old_epoch = save(instance, "old"), epoch(instance)
    assert said(run(instance, script="echo two > /root/state")) == ""
    newest, new_epoch = save(instance, "newest"), epoch(instance)
    assert new_epoch != old_epoch

    restore(instance, old)
    before = content(instance.path / UPPER)
    found = refused(instance)
    assert found["error"] == "rollback"
    assert "older state" in found["message"]
    assert new_epoch in found["expected"]
    assert old_epoch in found["found"]
    assert "--accept-rollback" in found["hint"]
    assert content(instance.path / UPPER) == before, "what was refused is left as it was"

    result = run(instance, "--accept-rollback", script="cat /root/state")
    assert result.stdout == b"one\n"
    lines = said(result).splitlines()
    assert len(lines) == 1
    assert "--accept-rollback" in lines[0]
    result = run(instance, script="cat /root/state; echo three > /root/state")
    assert (said(result), result.stdout) == ("", b"one\n")

    # The history that was given up is not a later state of this one.
    restore(instance, newest)
    assert refused(instance)["error"] == "rollback"


def test_on_another_machine_it_is_accepted_said_once_and_remembered(
    make_instance: MakeInstance, tmp_path: Path
) -> None:
    instance = make_instance()
    said(run(instance, script="echo one > /root/state"))
    old = save(instance, "old")
    said(run(instance, script="echo two > /root/state"))
    elsewhere = Command({**instance.command.env, "XDG_STATE_HOME": str(tmp_path / "elsewhere")})
    there = BuiltInstance(instance.path, instance.key, elsewhere)
    first, line = said(run(there, script="cat /root/state")).splitlines()
    assert "first use" in first  # of the signer: nobody here had seen the instance
    assert line.startswith("serdab: notice: ")
    assert "unchecked" in line
    assert said(run(there)) == ""
    restore(there, old)
    assert refused(there)["error"] == "rollback"
    # A quiet run is quiet, and remembers all the same.
    third = Command({**instance.command.env, "XDG_STATE_HOME": str(tmp_path / "third")})
    key = ("--image-key", str(instance.key))
    assert third.run("-q", "-C", instance.path, "run", *key, "/bin/true").stderr == b""
    assert list(volumes(third).glob("*/record.json"))


@pytest.mark.parametrize("what", [UPPER, f"{UPPER}/anchor", "run"])
def test_an_emptied_layer_is_not_a_new_one_until_reset(
    make_instance: MakeInstance, what: str
) -> None:
    instance = make_instance(encrypted=False)
    said(run(instance, script="echo one > /root/state"))
    path = instance.path / what
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    for option in ((), ("--accept-rollback",)):
        found = refused(instance, *option)
        assert found["error"] == "rollback"
        assert "emptied" in found["message"]
        assert "serdab reset" in found["hint"]
    assert not (instance.path / UPPER / "anchor").exists()
    instance.command.ok("-C", instance.path, "reset", "--yes")
    result = run(instance, script="cat /root/state || echo two > /root/state")
    assert result.returncode == 0, describe(result)
    assert said(run(instance)) == ""


def test_a_layer_that_was_reset_does_not_come_back(make_instance: MakeInstance) -> None:
    instance = make_instance(encrypted=False)
    said(run(instance, script="echo one > /root/state"))
    old = save(instance, "old")
    instance.command.ok("-C", instance.path, "reset", "--yes")
    restore(instance, old)
    found = refused(instance)
    assert found["error"] == "rollback"
    assert "thrown away" in found["message"]
    result = run(instance, "--accept-rollback", script="cat /root/state")
    assert result.stdout == b"one\n"


def test_a_new_instance_at_an_old_path_is_new(make_instance: MakeInstance, serdab: Command) -> None:
    first = make_instance(encrypted=False)
    said(run(first, script="echo one > /root/state"))
    shutil.rmtree(first.path)
    second = make_instance(encrypted=False)
    assert second.path == first.path
    assert said(run(second, script="echo two > /root/state")) == ""


def test_the_older_of_two_copies_of_an_instance_is_refused(make_instance: MakeInstance) -> None:
    instance = make_instance(encrypted=False)
    said(run(instance, script="echo one > /root/state"))
    twin = BuiltInstance(save(instance, "twin"), None, instance.command)
    said(run(twin, script="echo two > /root/state"))
    assert refused(instance)["error"] == "rollback"
    assert run(twin, script="cat /root/state").stdout == b"two\n"


def test_a_damaged_record_is_no_missing_record(make_instance: MakeInstance) -> None:
    instance = make_instance(encrypted=False)
    said(run(instance, script="echo one > /root/state"))
    (record,) = volumes(instance.command).glob("*/record.json")
    whole = record.read_bytes()
    for raw in (b"", whole[: len(whole) // 2]):
        record.write_bytes(raw)
        found = refused(instance)
        assert found["error"] == "verification"
        assert str(record) in found["subject"]
    record.write_bytes(whole)
    assert said(run(instance)) == ""


def test_after_kill_9_the_record_may_lag_behind(make_instance: MakeInstance) -> None:
    instance = make_instance(encrypted=False)
    said(run(instance, script="echo one > /root/state"))
    script = f"{put_command('two', '/root/more')}; echo ready; sleep 600"
    process = instance.command.popen(
        "-C", instance.path, "run", "/bin/sh", "-c", script, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        find_family(process.pid, instance.path).volume.kill()
    finally:
        process.kill()
        process.communicate()
    # The processes of the killed session let go one after the other.
    wait_until(lambda: not is_in_use(Instance(str(instance.path))), "the end of the session")
    result = run(instance, script="cat /root/state /root/more")
    assert result.stdout == b"one\ntwo\n"
    assert said(result) == ""


class TestPins:
    @pytest.fixture
    def keeper(self, tmp_path: Path) -> Path:
        path = tmp_path / "keeper"
        path.write_text(
            f"#!/bin/sh\nset -e\ncd {tmp_path}\n"
            "[ ! -e fail ] || { echo out of order >&2; exit 3; }\n"
            '[ "$1" != get ] || { [ ! -e "pin-$2" ] || cat "pin-$2"; }\n'
            '[ "$1" != put ] || printf "%s\\n" "$3" > "pin-$2"\n'
        )
        path.chmod(0o755)
        return path

    @pytest.mark.parametrize("kind", ["file", "command"])
    def test_a_pin_protects_where_no_record_is(
        self, make_instance: MakeInstance, tmp_path: Path, keeper: Path, kind: str
    ) -> None:
        instance = make_instance(encrypted=False)
        pin = ("--pin-file", tmp_path / "pin") if kind == "file" else ("--pin-command", keeper)
        assert said(run(instance, *pin, script="echo one > /root/state")) == ""
        old = save(instance, "old")
        assert said(run(instance, *pin, script="echo two > /root/state")) == ""
        restore(instance, old)
        shutil.rmtree(volumes(instance.command))
        found = refused(instance, *pin)
        assert found["error"] == "rollback"
        assert f"pin {kind}" in found["message"]
        assert len(said(run(instance, *pin, "--accept-rollback")).splitlines()) == 2
        assert said(run(instance, *pin)) == ""

    def test_under_enforce_a_failing_pin_fails_the_fsync(
        self, make_instance: MakeInstance, tmp_path: Path, keeper: Path
    ) -> None:
        instance = make_instance(encrypted=False)
        path = instance.path / "Occlum.json"
        value = json.loads(path.read_text())
        value["serdab"] = {**value.get("serdab", {}), "freshness": "enforce"}
        path.write_text(json.dumps(value))
        instance.command.ok("-C", instance.path, "build")
        pin = ("--pin-command", keeper)
        script = f"{put_command('one', '/root/a')} && echo synced"
        result = run(instance, *pin, script=script)
        assert (said(result), result.stdout) == ("", b"synced\n")
        script = (
            f"{put_command('two', '/root/b')} && echo synced; read x; "
            f"{put_command('three', '/root/c')} || echo refused; echo four > /root/d || echo full"
        )
        process = instance.command.popen(
            "-C", instance.path, "run", *pin, "/bin/sh", "-c", script, stdin=subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"synced\n"
            (tmp_path / "fail").touch()
            out, err = process.communicate(b"\n", timeout=120)
        finally:
            process.kill()
            process.communicate()
        assert out == b"refused\nfull\n", err
        assert b"not acknowledged" in err
        assert b"out of order" in err
        (tmp_path / "fail").unlink()
        # What was committed and not acknowledged may be there: in front of the pin is no rollback.
        result = run(instance, *pin, script="cat /root/a /root/b")
        assert (said(result), result.stdout) == ("", b"one\ntwo\n")

    def test_a_pin_in_the_instance_or_without_a_program_is_refused(
        self, make_instance: MakeInstance
    ) -> None:
        instance = make_instance(encrypted=False)
        for option in (
            ("--pin-file", instance.path / "run/pin"),
            ("--pin-command", instance.path / "image/bin/busybox"),
            ("--pin-command", "/nonexistent"),
        ):
            text = said(run(instance, *option), 125)
            assert "[usage]" in text
            assert "hint: " in text


def test_a_noted_state_is_required(make_instance: MakeInstance) -> None:
    instance = make_instance(encrypted=False)
    said(run(instance, script="echo one > /root/state"))
    (record,) = volumes(instance.command).glob("*/record.json")
    mac = json.loads(record.read_text())["root_mac"]
    assert said(run(instance, "--expect-upper", mac)) == ""
    prefix = bytes.fromhex(mac)[:16].hex("-")
    assert said(run(instance, "--expect-upper", prefix, script="echo two > /root/state")) == ""
    assert refused(instance, "--expect-upper", mac)["error"] == "measurement"
    for wrong in ("ab", "", "zz" * 32, " " * 64):
        assert "[usage]" in said(run(instance, "--expect-upper", wrong), 125)


def test_the_expected_root_may_be_a_prefix(make_instance: MakeInstance) -> None:
    instance = make_instance(encrypted=False)
    mac = instance.command.ok("-C", instance.path, "print", "root-mac").strip()
    for expected in (mac, bytes.fromhex(mac)[:16].hex("-"), mac.upper()):
        assert said(run(instance, "--expect-root", expected)) == ""
    other = bytes.fromhex(mac)[1:17].hex("-")
    assert "[measurement]" in said(run(instance, "--expect-root", other), 125)


def test_another_configuration_on_the_same_layer_is_said_once(
    make_instance: MakeInstance,
) -> None:
    instance = make_instance(encrypted=False)
    said(run(instance, script="echo one > /root/state"))
    path = instance.path / "Occlum.json"
    path.write_text(path.read_text().replace('"OCCLUM=yes"', '"OCCLUM=no"'))
    instance.command.ok("-C", instance.path, "build")
    (line,) = said(run(instance)).splitlines()
    assert "another configuration" in line
    assert said(run(instance)) == ""


def test_an_ordinary_user_is_protected_as_well(
    make_instance: MakeInstance, as_user: OrdinaryUser
) -> None:
    instance = make_instance(encrypted=False, user=as_user)
    said(run(instance, script="echo one > /root/state"))
    old = save(instance, "old")
    said(run(instance, script="echo two > /root/state"))
    restore(instance, old)
    as_user.own(instance.path)
    assert refused(instance)["error"] == "rollback"


def test_reset_lets_go_of_every_layer_of_the_instance_that_is_gone(
    make_instance: MakeInstance,
) -> None:
    """Such as one that an earlier configuration, or an init, kept elsewhere in the instance."""
    instance = make_instance(encrypted=False)
    path = instance.path / "Occlum.json"
    plain = path.read_text()
    path.write_text(plain.replace(UPPER, "run/other"))
    instance.command.ok("-C", instance.path, "build")
    said(run(instance, script="echo one > /root/state"))
    shutil.rmtree(instance.path / "run/other")
    assert refused(instance)["error"] == "rollback"
    path.write_text(plain)
    assert "run/other" in instance.command.ok("-C", instance.path, "reset", "--yes")
    path.write_text(plain.replace(UPPER, "run/other"))
    assert said(run(instance, script="echo two > /root/state")) == ""
