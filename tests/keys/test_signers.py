# SPDX-License-Identifier: Apache-2.0
"""Who signs, with what, and that nobody else's signature boots."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from serdab.errors import Error
from serdab.trust.chain import BootChain
from serdab.trust.measurement import code_digest
from tests.harness.command import Command, describe
from tests.harness.instances import BuiltInstance, MakeInstance

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

ROOT = Path(__file__).parents[2]
VECTOR_KEY = ROOT / "tests/vectors/signing-key.pem"
TOOL = ROOT / "demos/signing/openssl-sign"
DESCRIPTOR = "build/lib/libserdab.signed.json"


@pytest.fixture
def instance(make_instance: MakeInstance) -> BuiltInstance:
    return make_instance(encrypted=False)


@pytest.fixture
def key_pair(tmp_path: Path) -> tuple[Path, Path]:
    """Return a private key with exponent 3 and its public half."""
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    subprocess.run(
        ["openssl", "genrsa", "-3", "-out", private, "3072"], capture_output=True, check=True
    )
    subprocess.run(
        ["openssl", "rsa", "-in", private, "-pubout", "-out", public],
        capture_output=True, check=True,
    )  # fmt: skip
    return private, public


def refusal(instance: BuiltInstance, *options: str, verb: str = "run") -> dict[str, str]:
    program = ("/bin/true",) if verb == "run" else ()
    result = instance.command.run("--json", "-C", instance.path, verb, *options, *program)
    assert result.returncode == (125 if verb == "run" else 3), describe(result)
    text = result.stderr if verb == "run" else result.stdout
    value: dict[str, str] = json.loads(text.decode().splitlines()[-1])
    assert int(value["exit_code"]) == 3
    assert value["stage"] == "signed"
    return value


def sign_anew(instance: BuiltInstance, tmp_path: Path) -> tuple[str, str]:
    """Sign everything by another key, as somebody who may write to the instance; return both."""
    first = instance.command.ok("-C", instance.path, "print", "mrsigner").strip()
    evil = Command({**instance.command.env, "XDG_STATE_HOME": str(tmp_path / "evil")})
    evil.ok("-C", instance.path, "build", "--sign-key", VECTOR_KEY)
    return first, evil.ok("-C", instance.path, "print", "mrsigner").strip()


class TestTool:
    def test_the_example_signs_without_showing_the_private_key(
        self, instance: BuiltInstance, key_pair: tuple[Path, Path]
    ) -> None:
        private, public = key_pair
        command = Command({**instance.command.env, "SIGNING_KEY": str(private)})
        shown = json.loads(
            command.ok("--json", "-C", instance.path, "build", "--sign-key", public,
                       "--sign-tool", TOOL)
        )  # fmt: skip
        assert str(TOOL) in shown["signer"]
        modulus = subprocess.run(
            ["openssl", "rsa", "-in", private, "-noout", "-modulus"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        signed = json.loads((instance.path / DESCRIPTOR).read_text())
        assert signed["modulus"] == modulus.strip().removeprefix("Modulus=").lower()
        assert signed["exponent"] == 3
        assert instance.run("/bin/true").returncode == 0
        # The same key in a file is the same signer, and makes the same signature.
        before = (instance.path / DESCRIPTOR).read_bytes()
        command.ok("-C", instance.path, "build", "-f", "--sign-key", private)
        assert (instance.path / DESCRIPTOR).read_bytes() == before

    def test_a_tool_with_another_key_is_refused_and_changes_nothing(
        self, instance: BuiltInstance, key_pair: tuple[Path, Path]
    ) -> None:
        before = (instance.path / DESCRIPTOR).read_bytes()
        command = Command({**instance.command.env, "SIGNING_KEY": str(VECTOR_KEY)})
        result = command.run(
            "-C", instance.path, "build", "--sign-key", key_pair[1], "--sign-tool", TOOL
        )
        assert result.returncode in (2, 3), describe(result)
        assert b"signature" in result.stderr or b"sign tool" in result.stderr
        assert (instance.path / DESCRIPTOR).read_bytes() == before
        assert instance.run("/bin/true").returncode == 0

    @pytest.mark.parametrize("arguments", [[], ["sign"], ["verify", "-key", "x"], ["sign", "x"]])
    def test_the_example_refuses_to_be_called_otherwise(self, arguments: list[str]) -> None:
        result = subprocess.run([TOOL, *arguments], input=b"", capture_output=True, check=False)
        assert result.returncode == 2
        assert result.stdout == b""


class TestDescriptor:
    def test_a_change_of_any_byte_is_refused_at_its_stage(self, instance: BuiltInstance) -> None:
        good = (instance.path / DESCRIPTOR).read_bytes()
        code = code_digest()

        def accept(raw: bytes) -> BootChain:
            chain = BootChain()
            chain.accept_descriptor(
                raw, code_digest=code, expected_signer=None, platform="simulation"
            )
            return chain

        assert json.loads(good)["descriptor"]["code_digest"]
        for position in range(len(good)):
            for change in (1 << position % 8, 0xFF):
                changed = bytearray(good)
                changed[position] ^= change
                with pytest.raises(Error) as caught:
                    accept(bytes(changed))
                assert caught.value.exit_code == 3, (position, change)
                assert caught.value.stage == "signed"

    @pytest.mark.parametrize("field", ["code_digest", "modulus", "signature"])
    def test_a_changed_one_does_not_boot(self, instance: BuiltInstance, field: str) -> None:
        path = instance.path / DESCRIPTOR
        raw = bytearray(path.read_bytes())
        position = raw.index(f'"{field}":"'.encode()) + len(field) + 10
        raw[position] = ord("1") if raw[position] == ord("0") else ord("0")
        path.write_bytes(raw)
        refusal(instance)


class TestAnotherSigner:
    def test_boots_nowhere_that_has_seen_the_first(
        self, instance: BuiltInstance, tmp_path: Path
    ) -> None:
        first, second = sign_anew(instance, tmp_path)
        for value in (refusal(instance), refusal(instance, verb="fsck")):
            assert value["error"] == "signer"
            assert first in value["expected"]
            assert second in value["found"]
            assert "--expect-signer" in value["hint"]

    def test_nor_where_the_user_names_the_first_for_everything(
        self, instance: BuiltInstance, tmp_path: Path
    ) -> None:
        first, second = sign_anew(instance, tmp_path)
        elsewhere = BuiltInstance(tmp_path / "elsewhere", None, instance.command)
        shutil.copytree(instance.path, elsewhere.path, symlinks=True)
        setting = Path(instance.command.env["XDG_CONFIG_HOME"], "serdab/expected-signer")
        setting.parent.mkdir(parents=True)
        setting.write_text(first + "\n")
        value = refusal(elsewhere)
        assert first in value["expected"]
        assert second in value["found"]
        setting.unlink()
        # Nobody has seen it here, and nobody said whom to expect.
        for is_first in (True, False):
            result = elsewhere.run("/bin/true")
            assert result.returncode == 0, describe(result)
            said = f"notice: first use: expected from now on to be signed by mrsigner {second}"
            assert (said in result.stderr.decode()) == is_first

    def test_nor_where_the_option_names_the_first(
        self, instance: BuiltInstance, tmp_path: Path
    ) -> None:
        first, second = sign_anew(instance, tmp_path)
        elsewhere = BuiltInstance(tmp_path / "elsewhere", None, instance.command)
        shutil.copytree(instance.path, elsewhere.path, symlinks=True)
        value = refusal(elsewhere, "--expect-signer", first)
        assert (value["expected"], value["found"]) == (f"mrsigner {first}", f"mrsigner {second}")
