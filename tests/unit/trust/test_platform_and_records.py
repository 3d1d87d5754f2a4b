# SPDX-License-Identifier: Apache-2.0
"""The simulation platform, the code digest, and the records of signers."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serdab.errors import EnvironmentRefused, UsageError, VerificationError, WrongKeyError
from serdab.trust import measurement, platform, signers
from serdab.trust.measurement import Digest, code_digest
from serdab.trust.platform import SECRET_FILE, KeyPolicy, SimulationPlatform

SIGNER = Digest.of(b"signer")
POLICY = KeyPolicy(SIGNER, 0)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "serdab"


class TestSimulation:
    def test_the_same_policy_gets_the_same_key(self, state: Path) -> None:
        assert SimulationPlatform().seal_key(POLICY) == SimulationPlatform().seal_key(POLICY)

    def test_another_policy_gets_another_key(self, state: Path) -> None:
        here = SimulationPlatform()
        policies = [
            POLICY,
            KeyPolicy(Digest.of(b"other"), 0),
            KeyPolicy(SIGNER, 1),
            KeyPolicy(SIGNER, 0, Digest.of(b"enclave")),
            KeyPolicy(SIGNER, 0, Digest.of(b"another")),
        ]
        assert len({here.seal_key(policy).raw() for policy in policies}) == len(policies)

    def test_the_derivation_is_frozen(self, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # A change makes the automatic keys of every existing writable layer another key.
        state.mkdir(mode=0o700)
        monkeypatch.setattr(platform, "machine_name", lambda: "ab" * 32)
        secret = {"format": 1, "machine": "ab" * 32, "secret": "01" * 32}
        path = state / SECRET_FILE
        path.write_text(json.dumps(secret))
        path.chmod(0o600)
        assert SimulationPlatform().seal_key(POLICY).dump() == FROZEN_KEY
        assert SimulationPlatform().identity() == FROZEN_IDENTITY
        assert FROZEN_IDENTITY not in path.read_text()

    def test_the_secret_is_private_and_made_once(self, state: Path) -> None:
        SimulationPlatform().seal_key(POLICY)
        path = state / SECRET_FILE
        before = path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        SimulationPlatform().seal_key(KeyPolicy(SIGNER, 5))
        assert path.read_bytes() == before
        assert os.listdir(state) == [SECRET_FILE]

    def test_two_first_uses_at_once_agree(self, state: Path) -> None:
        code = (
            "from serdab.trust.platform import *; from serdab.trust.measurement import Digest;"
            "print(SimulationPlatform().seal_key(KeyPolicy(Digest.of(b''), 0)).dump())"
        )

        def derive(_: int) -> str:
            return subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout

        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(derive, range(4)))) == 1

    def test_a_secret_from_another_machine_is_refused(
        self, state: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        SimulationPlatform().seal_key(POLICY)
        monkeypatch.setattr(platform, "machine_name", lambda: "cd" * 32)
        with pytest.raises(WrongKeyError, match="another machine"):
            SimulationPlatform().seal_key(POLICY)

    def test_a_secret_that_others_can_read_is_refused(self, state: Path) -> None:
        SimulationPlatform().seal_key(POLICY)
        (state / SECRET_FILE).chmod(0o640)
        with pytest.raises(EnvironmentRefused, match="cannot be used"):
            SimulationPlatform().seal_key(POLICY)

    @pytest.mark.parametrize("content", [b"", b"{}", b'{"format":2}', b"\0" * 100])
    def test_a_damaged_secret_is_never_replaced(self, state: Path, content: bytes) -> None:
        SimulationPlatform().seal_key(POLICY)
        (state / SECRET_FILE).write_bytes(content)
        with pytest.raises(EnvironmentRefused):
            SimulationPlatform().seal_key(POLICY)
        assert (state / SECRET_FILE).read_bytes() == content

    def test_an_unknown_platform_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SERDAB_PLATFORM", "sev-snp")
        with pytest.raises(UsageError, match="unknown platform"):
            platform.current()


FROZEN_KEY = "21-3c-fb-78-b8-0d-a2-78-a2-91-6b-f6-d3-7a-7e-c9"
FROZEN_IDENTITY = "cf6898385f0088f4f1062c68c1ab6530"


class TestCodeDigest:
    def test_is_the_same_for_a_copy_elsewhere(self, tmp_path: Path) -> None:
        copy = tmp_path / "package"
        shutil.copytree(
            measurement.package_root(), copy, ignore=shutil.ignore_patterns("__pycache__")
        )
        assert code_digest(str(copy)) == code_digest(str(copy))
        (copy / "__pycache__").mkdir()
        before = code_digest(str(copy))
        (copy / "__pycache__" / "x.py").write_text("")
        (copy / "notes.txt").write_text("")
        assert code_digest(str(copy)) == before

    @pytest.mark.parametrize("change", ["edit", "add", "remove", "rename", "program"])
    def test_changes_with_every_file_of_code(self, tmp_path: Path, change: str) -> None:
        (tmp_path / "init" / "bin").mkdir(parents=True)
        (tmp_path / "init" / "bin" / "init").write_bytes(b"\x7fELF")
        (tmp_path / "a.py").write_text("1")
        (tmp_path / "b.py").write_text("2")
        before = code_digest(str(tmp_path))
        match change:
            case "edit":
                (tmp_path / "a.py").write_text("3")
            case "add":
                (tmp_path / "c.py").write_text("")
            case "remove":
                (tmp_path / "b.py").unlink()
            case "rename":
                (tmp_path / "b.py").rename(tmp_path / "d.py")
            case "program":
                (tmp_path / "init" / "bin" / "init").write_bytes(b"\x7fELG")
        assert code_digest(str(tmp_path)) != before


class TestDigest:
    def test_holds_its_algorithm_and_a_fitting_length(self) -> None:
        with pytest.raises(ValueError, match="not a sha256"):
            Digest("sha256", b"short")
        with pytest.raises(ValueError, match="not a md5"):
            Digest("md5", bytes(16))
        assert Digest.parse(str(SIGNER)) == SIGNER
        for text in ("", "00" * 31, "zz" * 32):
            with pytest.raises(ValueError, match=r"expected 64|non-hexadecimal"):
                Digest.parse(text)


class TestSignerRecords:
    def test_nothing_is_expected_before_the_first_use(self, state: Path, tmp_path: Path) -> None:
        assert signers.expected_signer(str(tmp_path), None) is None

    def test_the_recorded_signer_is_expected(self, state: Path, tmp_path: Path) -> None:
        signers.record_signer(str(tmp_path), SIGNER)
        assert signers.expected_signer(str(tmp_path), None) == SIGNER

    def test_a_link_to_the_instance_has_the_same_record(self, state: Path, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        signers.record_signer(str(tmp_path / "link"), SIGNER)
        assert signers.recorded_signer(str(tmp_path / "real")) == SIGNER

    def test_the_named_signer_wins(self, state: Path, tmp_path: Path) -> None:
        signers.record_signer(str(tmp_path), SIGNER)
        assert signers.expected_signer(str(tmp_path), "ab" * 32) == Digest.parse("ab" * 32)
        with pytest.raises(UsageError, match="not a signer"):
            signers.expected_signer(str(tmp_path), "ab")

    def test_the_users_settings_win_over_the_record(self, state: Path, tmp_path: Path) -> None:
        signers.record_signer(str(tmp_path), SIGNER)
        settings = tmp_path / "config/serdab/expected-signer"
        settings.parent.mkdir(parents=True)
        settings.write_text("ab" * 32 + "\n")
        assert signers.expected_signer(str(tmp_path), None) == Digest.parse("ab" * 32)
        assert signers.expected_signer(str(tmp_path), "cd" * 32) == Digest.parse("cd" * 32)
        settings.write_text("")
        with pytest.raises(UsageError, match="not a signer"):
            signers.expected_signer(str(tmp_path), None)

    def test_a_damaged_record_is_not_taken_for_none(self, state: Path, tmp_path: Path) -> None:
        signers.record_signer(str(tmp_path), SIGNER)
        (record,) = (state / "signers").iterdir()
        record.write_bytes(b"")
        with pytest.raises(VerificationError, match="damaged"):
            signers.recorded_signer(str(tmp_path))
