# SPDX-License-Identifier: Apache-2.0
"""The signed descriptor: one spelling, one signer, one measurement."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serdab.errors import Error, FormatError, VerificationError
from serdab.structs import replace
from serdab.trust.descriptor import Descriptor, parse_and_verify, sign
from serdab.trust.measurement import Digest
from tests.harness.signers import signer

DESCRIPTOR = Descriptor(
    "0.1.0", Digest.of(b"code"), Digest.of(b"config"), 1, 2, False, "simulation"
)
SIGNER = signer()
RAW = sign(DESCRIPTOR, SIGNER)


def test_what_is_signed_is_read_back() -> None:
    signed = parse_and_verify(RAW)
    assert signed.descriptor == DESCRIPTOR
    assert signed.signer == SIGNER.public


def test_the_canonical_bytes_are_frozen() -> None:
    # They are what is signed and what MRENCLAVE is over: a change is a new format number.
    assert DESCRIPTOR.dump() == (
        b'{"code_digest":"' + hashlib.sha256(b"code").hexdigest().encode() + b'",'
        b'"conf_mac":"' + hashlib.sha256(b"config").hexdigest().encode() + b'",'
        b'"ext_prod_id":"","family_id":"","flags":[],"format":1,"platform":"simulation",'
        b'"product_id":1,"security_version":2,"serdab_version":"0.1.0"}'
    )
    assert DESCRIPTOR.mrenclave().value == hashlib.sha256(DESCRIPTOR.dump()).digest()


def test_every_field_enters_mrenclave() -> None:
    variants = [
        replace(DESCRIPTOR, serdab_version="0.1.1"),
        replace(DESCRIPTOR, code_digest=Digest.of(b"")),
        replace(DESCRIPTOR, conf_mac=Digest.of(b"")),
        replace(DESCRIPTOR, product_id=9),
        replace(DESCRIPTOR, security_version=9),
        replace(DESCRIPTOR, debuggable=True),
        replace(DESCRIPTOR, platform="other"),
        replace(DESCRIPTOR, family_id=bytes(16)),
        replace(DESCRIPTOR, ext_prod_id=bytes(16)),
    ]
    measurements = {variant.mrenclave().value for variant in [DESCRIPTOR, *variants]}
    assert len(measurements) == len(variants) + 1
    for variant in variants:
        assert parse_and_verify(sign(variant, SIGNER)).descriptor == variant


@pytest.mark.parametrize("field", ["product_id", "conf_mac", "platform", "flags"])
def test_a_changed_field_breaks_the_signature(field: str) -> None:
    value: dict[str, Any] = json.loads(RAW)
    changes: dict[str, object] = {
        "product_id": 2,
        "conf_mac": "00" * 32,
        "platform": "sev",
        "flags": ["debuggable"],
    }
    value["descriptor"][field] = changes[field]
    with pytest.raises(VerificationError):
        parse_and_verify(canonical(value))


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"exponent": 1},
        {"exponent": 65539},
        {"modulus": "00" * 384},
        {"signature": ""},
        {"descriptor": {}},
        {"descriptor": []},
    ],
)
def test_malformed_files_are_refused(change: dict[str, object]) -> None:
    value = {**json.loads(RAW), **change}
    with pytest.raises(FormatError) as caught:
        parse_and_verify(canonical(value))
    assert caught.value.stage == "signed"


def test_another_spelling_of_the_same_is_refused() -> None:
    with pytest.raises(FormatError, match="malformed"):
        parse_and_verify(json.dumps(json.loads(RAW)).encode())


@settings(max_examples=200)
@given(st.integers(0, len(RAW) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(position: int, change: int) -> None:
    raw = bytearray(RAW)
    raw[position] ^= change
    with pytest.raises(Error):
        parse_and_verify(bytes(raw))


@given(st.integers(0, len(RAW) - 1))
def test_any_truncation_is_refused(length: int) -> None:
    with pytest.raises(Error):
        parse_and_verify(RAW[:length])


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
