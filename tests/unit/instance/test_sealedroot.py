# SPDX-License-Identifier: Apache-2.0
"""The way to the sealed root FS: the instance verifies, its owner proves it, the keys fit."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from serdab.errors import MeasurementMismatch, SignerMismatch, VerificationError, WrongKeyError
from serdab.instance.build import BuildRequest, build
from serdab.instance.create import new_instance
from serdab.instance.layout import PROTECTED_CONFIG, Instance
from serdab.instance.sealedroot import layer_keys, prove_owner, verified_chain
from serdab.keys import Key
from serdab.trust.descriptor import parse_and_verify
from serdab.trust.signing import load_signer
from tests.harness.signers import SIGNING_KEY, signer

IMAGE_KEY = Key(bytes(range(16)))


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    for name in ("STATE", "CONFIG", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    made = new_instance(str(tmp_path / "instance"))
    build(made, BuildRequest(signer(), image_key=IMAGE_KEY), say=lambda _: None)
    return made


def tool(path: Path, command: str) -> str:
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)
    return str(path)


def test_the_signer_of_the_build_is_the_owner(instance: Instance) -> None:
    prove_owner(verified_chain(instance), signer())


def test_a_tool_that_signs_with_the_key_is_the_owner(instance: Instance, tmp_path: Path) -> None:
    exe = tool(tmp_path / "tool", 'exec openssl dgst -sha256 -sign "$3"')
    prove_owner(verified_chain(instance), load_signer(str(SIGNING_KEY), exe))


def test_another_key_is_named_with_both_signers(instance: Instance, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    subprocess.run(["openssl", "genrsa", "-3", "-out", other, "3072"], check=True, timeout=60,
                   capture_output=True)  # fmt: skip
    chain = verified_chain(instance)
    with pytest.raises(VerificationError, match="the sign key is not") as refusal:
        prove_owner(chain, load_signer(str(other)))
    assert str(chain.signer) in refusal.value.expected
    assert str(load_signer(str(other)).public.mrsigner()) in refusal.value.found


@pytest.mark.parametrize("command", ["exit 1", "exit 0", "head -c 384 /dev/zero"])
def test_another_tool_is_what_differs(instance: Instance, tmp_path: Path, command: str) -> None:
    exe = tool(tmp_path / "tool", command)
    with pytest.raises(VerificationError, match="the sign tool is not"):
        prove_owner(verified_chain(instance), load_signer(str(SIGNING_KEY), exe))


def test_no_key_at_all_is_no_owner(instance: Instance) -> None:
    with pytest.raises(VerificationError, match="no sign key"):
        prove_owner(verified_chain(instance), None)


def test_what_is_signed_for_a_proof_is_never_a_descriptor(
    instance: Instance, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    exe = tool(tmp_path / "tool", f'tee -a {seen} | openssl dgst -sha256 -sign "$3"')
    chain = verified_chain(instance)
    prove_owner(chain, load_signer(str(SIGNING_KEY), exe))
    first = seen.read_bytes()
    prove_owner(chain, load_signer(str(SIGNING_KEY), exe))
    assert seen.read_bytes() != first * 2, "a proof must be fresh"
    assert not first.startswith(chain.descriptor.dump()[:1])


def test_a_changed_configuration_is_refused(instance: Instance) -> None:
    with open(instance.at(PROTECTED_CONFIG), "ab") as file:
        file.write(b"\n")
    with pytest.raises(MeasurementMismatch):
        verified_chain(instance)


def test_a_signer_other_than_the_recorded_one_is_refused(
    instance: Instance, tmp_path: Path
) -> None:
    with pytest.raises(SignerMismatch):
        verified_chain(instance, expect_signer="ab" * 32)


def test_an_encrypted_image_wants_a_key(instance: Instance) -> None:
    chain = verified_chain(instance)
    with pytest.raises(WrongKeyError):
        layer_keys(chain, None)
    keys = layer_keys(chain, IMAGE_KEY)
    assert keys.image == IMAGE_KEY
    assert keys.volume.key == IMAGE_KEY.raw()


def test_an_integrity_only_image_wants_none(instance: Instance) -> None:
    build(instance, BuildRequest(signer()), say=lambda _: None)
    chain = verified_chain(instance)
    with pytest.raises(WrongKeyError):
        layer_keys(chain, IMAGE_KEY)
    keys = layer_keys(chain, None)
    assert keys.image is None
    assert os.fsencode(str(chain.signer)) in keys.volume.source


def test_nothing_is_recorded_on_the_way(instance: Instance, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    prove_owner(verified_chain(instance), signer())
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_the_descriptor_of_the_chain_is_the_one_on_disk(instance: Instance) -> None:
    from serdab.instance.layout import DESCRIPTOR

    signed = parse_and_verify(instance.read(DESCRIPTOR))
    assert verified_chain(instance).descriptor == signed.descriptor
