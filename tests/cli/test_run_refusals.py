# SPDX-License-Identifier: Apache-2.0
"""Real boots that are refused: the exit code, the stage, what was expected and found, the hint."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness.command import Command, describe
from tests.harness.instances import BuiltInstance, MakeInstance

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

VECTOR_KEY = Path(__file__).parents[1] / "vectors/signing-key.pem"
CONFIG = "build/.Occlum_sys.json.protected"
DESCRIPTOR = "build/lib/libserdab.signed.json"


@pytest.fixture
def encrypted(make_instance: MakeInstance) -> BuiltInstance:
    return make_instance(encrypted=True)


def refused(result: subprocess.CompletedProcess[bytes], code: int, *words: str) -> dict[str, str]:
    """Require one refusal with all its parts; return it."""
    text = result.stderr.decode()
    assert result.returncode == code, describe(result)
    assert "Traceback" not in text
    last = [line for line in text.splitlines() if line.startswith("{")]
    assert last, text
    value: dict[str, str] = json.loads(last[-1])
    for name in ("stage", "message", "expected", "found", "hint"):
        assert value[name], value
    for word in words:
        assert word in last[-1]
    assert result.stdout == b""
    return value


def run(
    instance: BuiltInstance, *args: str | Path, key: Path | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    options = ("--image-key", key) if key else ()
    return instance.command.run("--json", "-C", instance.path, "run", *options, *args, stdin=stdin)


class TestKeys:
    def test_the_key_opens_and_can_come_from_standard_input(self, encrypted: BuiltInstance) -> None:
        assert encrypted.key is not None
        for key, stdin in ((encrypted.key, b""), (Path("-"), encrypted.key.read_bytes())):
            result = run(encrypted, "/bin/echo", "works", key=key, stdin=stdin)
            assert result.returncode == 0, describe(result)
            assert result.stdout == b"works\n"

    def test_what_follows_the_key_on_standard_input_is_the_program_s(
        self, encrypted: BuiltInstance
    ) -> None:
        assert encrypted.key is not None
        stdin = encrypted.key.read_bytes() + b"first\nsecond\n"
        result = run(encrypted, "/bin/cat", key=Path("-"), stdin=stdin)
        assert result.stdout == b"first\nsecond\n", describe(result)

    def test_a_wrong_key(self, encrypted: BuiltInstance, tmp_path: Path) -> None:
        other = tmp_path / "other"
        encrypted.command.ok("gen-image-key", other)
        value = refused(run(encrypted, "/bin/true", key=other), 125)
        assert value["error"] == "wrong-key"
        assert other.read_text().strip() not in json.dumps(value)

    def test_no_key(self, encrypted: BuiltInstance) -> None:
        value = refused(run(encrypted, "/bin/true"), 125, "--image-key")
        assert value["error"] == "wrong-key"
        assert value["stage"] == "rootfs"

    def test_a_key_for_an_image_that_has_none(
        self, make_instance: MakeInstance, tmp_path: Path
    ) -> None:
        plain = make_instance(encrypted=False)
        key = tmp_path / "key"
        plain.command.ok("gen-image-key", key)
        assert refused(run(plain, "/bin/true", key=key), 125)["error"] == "wrong-key"


class TestTampering:
    def test_the_signature(self, encrypted: BuiltInstance) -> None:
        path = encrypted.path / DESCRIPTOR
        value = json.loads(path.read_text())
        value["signature"] = "00" + value["signature"][2:]
        path.write_text(json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n")
        found = refused(run(encrypted, "/bin/true", key=encrypted.key), 125, "signature")
        assert (found["error"], found["stage"]) == ("verification", "signed")

    def test_the_configuration(self, encrypted: BuiltInstance) -> None:
        path = encrypted.path / CONFIG
        path.write_bytes(path.read_bytes().replace(b'["/bin"]', b'["/opt"]'))
        found = refused(run(encrypted, "/bin/true", key=encrypted.key), 125, "conf-mac")
        assert (found["error"], found["stage"]) == ("measurement", "config")

    @pytest.mark.parametrize(("tree", "stage"), [("initfs", "initfs"), ("mount", "rootfs")])
    def test_a_whole_file_system_of_another_build(
        self, make_instance: MakeInstance, tree: str, stage: str
    ) -> None:
        ours = make_instance(encrypted=False, name="ours")
        theirs = make_instance(encrypted=False, name="theirs", files={"/etc/other": b"x"})
        init = theirs.path / "initfs/etc/more"
        init.write_text("")
        theirs.command.ok("-C", theirs.path, "build")
        shutil.rmtree(ours.path / "build" / tree)
        shutil.copytree(theirs.path / "build" / tree, ours.path / "build" / tree)
        found = refused(run(ours, "/bin/true"), 125)
        assert found["error"] == "measurement"
        assert found["stage"] == stage

    def test_everything_signed_anew_by_another(
        self, encrypted: BuiltInstance, tmp_path: Path
    ) -> None:
        """The storage attacker builds an image of his own and signs it: all is consistent."""
        assert encrypted.key is not None
        evil = Command({**encrypted.command.env, "XDG_STATE_HOME": str(tmp_path / "evil-state")})
        key = ("--image-key", encrypted.key)
        evil.ok("-C", encrypted.path, "build", "--sign-key", VECTOR_KEY, *key)
        found = refused(run(encrypted, "/bin/true", key=encrypted.key), 125, "--expect-signer")
        assert found["error"] == "signer"
        mrsigner = evil.ok("-C", encrypted.path, "print", "mrsigner").strip()
        assert mrsigner in found["found"]
        # Said explicitly, the new signer is accepted, and expected from then on.
        result = run(encrypted, "--expect-signer", mrsigner, "/bin/true", key=encrypted.key)
        assert result.returncode == 0, describe(result)
        assert run(encrypted, "/bin/true", key=encrypted.key).returncode == 0

    def test_another_expected_signer_or_root(self, encrypted: BuiltInstance) -> None:
        for option, kind in (("--expect-signer", "signer"), ("--expect-root", "measurement")):
            result = run(encrypted, option, "ab" * 32, "/bin/true", key=encrypted.key)
            assert refused(result, 125)["error"] == kind
            result = run(encrypted, option, "ab", "/bin/true", key=encrypted.key)
            assert refused(result, 125)["error"] == "usage"

    def test_another_serdab(self, encrypted: BuiltInstance, tmp_path: Path) -> None:
        package = tmp_path / "elsewhere" / "serdab"
        shutil.copytree(Path(__file__).parents[2] / "src/serdab", package)
        (package / "extra.py").write_text("")
        other = Command({**encrypted.command.env, "PYTHONPATH": str(package.parent)})
        found = refused(run(BuiltInstance(encrypted.path, None, other), "/bin/true"), 125)
        assert found["error"] == "measurement"
        assert "serdab build" in found["hint"]


class TestPrograms:
    def test_an_entry_point_that_is_not_listed(self, encrypted: BuiltInstance) -> None:
        found = refused(run(encrypted, "/usr/bin/env", key=encrypted.key), 126, "/usr/bin/env")
        assert found["error"] == "not-allowed"

    def test_a_program_that_is_not_there(self, encrypted: BuiltInstance) -> None:
        found = refused(run(encrypted, "/bin/none", key=encrypted.key), 127, "/bin/none")
        assert found["error"] == "not-found"

    def test_a_relative_path(self, encrypted: BuiltInstance) -> None:
        assert refused(run(encrypted, "bin/true", key=encrypted.key), 125)["error"] == "usage"


def test_an_image_that_is_missing_is_named(make_instance: MakeInstance) -> None:
    made = make_instance(encrypted=False)
    image = made.path / "build/mount/__ROOT/image.sefs"
    away = image.rename(made.path / "away")
    refused = made.run("/bin/true")
    assert refused.returncode == 125, describe(refused)
    assert b"rootfs: no sealed file system here" in refused.stderr
    assert b"expected image.sefs" in refused.stderr
    assert b"[format]" in refused.stderr
    away.rename(image)
    assert made.run("/bin/true").returncode == 0
