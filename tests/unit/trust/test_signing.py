# SPDX-License-Identifier: Apache-2.0
"""Signatures: frozen vectors, forgeries, the development key, external tools."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from serdab.errors import UsageError, VerificationError
from serdab.trust import signing
from serdab.trust.signing import MODULUS_BYTES, PublicKey, Signer, load_signer
from tests.harness.signers import SIGNING_KEY as KEY
from tests.harness.signers import signer

MRSIGNER = "607deafd927f0671ee0531ad6455fb59ace829b464740e428525accf77d0ccc6"
SIGNATURE_SHA256 = "9b2548bee486af3cf3836a743634e1efefdb8aa8bda99fa4693b7b299bf98bb5"


@functools.cache
def _signed() -> tuple[Signer, bytes]:
    """A signer, and its signature of "one": both take long, and are the same for each example."""
    one = signer()
    return one, one.sign(b"one")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "serdab"


class TestVectors:
    """Frozen: a change of these makes every pinned signer and every signature void."""

    def test_mrsigner_of_the_frozen_key(self) -> None:
        assert str(load_signer(str(KEY)).public.mrsigner()) == MRSIGNER

    def test_mrsigner_is_over_the_little_endian_modulus(self) -> None:
        public = signer().public
        modulus = public.modulus.to_bytes(384, "little")
        assert public.mrsigner().value == hashlib.sha256(modulus).digest()
        assert public.exponent == 3

    def test_the_signature_is_the_one_openssl_makes(self) -> None:
        signature = signer().sign(b"serdab")
        assert hashlib.sha256(signature).hexdigest() == SIGNATURE_SHA256


class TestVerification:
    def test_accepts_its_own_and_refuses_any_other_message(self) -> None:
        signer, signature = _signed()
        signer.public.verify(b"one", signature)
        with pytest.raises(VerificationError, match="does not verify"):
            signer.public.verify(b"two", signature)

    @settings(max_examples=60)
    @given(st.integers(0, MODULUS_BYTES * 8 - 1))
    def test_refuses_a_signature_with_one_bit_changed(self, bit: int) -> None:
        signer, signed = _signed()
        signature = bytearray(signed)
        signature[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VerificationError):
            signer.public.verify(b"one", bytes(signature))

    def test_refuses_other_lengths_and_the_same_number_plus_the_modulus(self) -> None:
        signer, signature = _signed()
        number = int.from_bytes(signature, "big")
        others = [b"", signature[:-1], signature + b"\0", b"\0" + signature]
        if number + signer.public.modulus < 1 << MODULUS_BYTES * 8:
            others.append((number + signer.public.modulus).to_bytes(MODULUS_BYTES, "big"))
        for other in others:
            with pytest.raises(VerificationError):
                signer.public.verify(b"one", other)

    def test_a_cube_root_forgery_is_refused(self) -> None:
        # Exponent 3: a cube whose top bytes look right fools verifiers that parse the padding and
        # do not look at what follows the digest (Bleichenbacher, 2006; CVE-2006-4339).
        public = signer().public
        prefix = b"\0\1" + b"\xff" * 8 + b"\0" + signing._DIGEST_INFO
        wanted = prefix + hashlib.sha256(b"forged").digest()
        block = int.from_bytes(wanted + b"\xff" * (MODULUS_BYTES - len(wanted)), "big")
        root = _cube_root(block)
        opened = pow(root, 3, public.modulus).to_bytes(MODULUS_BYTES, "big")
        assert opened.startswith(wanted), "the forgery must look right to a lax verifier"
        with pytest.raises(VerificationError):
            public.verify(b"forged", root.to_bytes(MODULUS_BYTES, "big"))

    @pytest.mark.parametrize("forged", [0, 1])
    def test_fixed_points_of_rsa_are_no_signatures(self, forged: int) -> None:
        public = signer().public
        with pytest.raises(VerificationError):
            public.verify(b"", forged.to_bytes(MODULUS_BYTES, "big"))

    @pytest.mark.parametrize(
        ("modulus", "exponent"),
        [(3, 3), (1 << 3071, 3), ((1 << 3072) + 1, 3), ((1 << 3071) + 1, 1), ((1 << 3071) + 1, 17)],
    )
    def test_odd_keys_are_refused(self, modulus: int, exponent: int) -> None:
        with pytest.raises(ValueError, match=r"modulus|exponent"):
            PublicKey(modulus, exponent)


def _cube_root(number: int) -> int:
    low, high = 0, 1 << 1025
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**3 <= number else (low, middle - 1)
    return low


class TestKeyFiles:
    def pem(self, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def test_other_kinds_of_keys_are_refused_with_what_they_are(self, tmp_path: Path) -> None:
        path = tmp_path / "key.pem"
        small = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        encrypted = small.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        )
        cases = [
            (self.pem(small), "RSA-2048 with exponent 65537"),
            (self.pem(ec.generate_private_key(ec.SECP256R1())), "a key of another kind"),
            (encrypted, "an encrypted key"),
            (b"hello", "no PEM key"),
        ]
        for content, found in cases:
            path.write_bytes(content)
            with pytest.raises(UsageError) as caught:
                load_signer(str(path))
            assert caught.value.found == found

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be read"):
            load_signer(str(tmp_path / "none.pem"))

    def test_a_public_key_serves_only_with_a_tool(self, tmp_path: Path) -> None:
        path = tmp_path / "public.pem"
        path.write_bytes(public_pem())
        with pytest.raises(UsageError, match="no private half"):
            load_signer(str(path))
        assert str(load_signer(str(path), "/bin/true").public.mrsigner()) == MRSIGNER


def public_pem() -> bytes:
    return subprocess.run(
        ["openssl", "rsa", "-in", KEY, "-pubout"], capture_output=True, check=True
    ).stdout


class TestSignTool:
    def tool(self, tmp_path: Path, body: str) -> str:
        path = tmp_path / "tool"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return str(path)

    def test_is_run_as_agreed_and_its_signature_is_taken(self, tmp_path: Path) -> None:
        body = f'test "$1 $2" = "sign -key" || exit 9\nexec openssl dgst -sha256 -sign "{KEY}"'
        key = tmp_path / "public.pem"
        key.write_bytes(public_pem())
        signer = load_signer(str(key), self.tool(tmp_path, body))
        assert hashlib.sha256(signer.sign(b"serdab")).hexdigest() == SIGNATURE_SHA256

    def test_a_signature_by_another_key_is_refused(self, tmp_path: Path) -> None:
        other = tmp_path / "other.pem"
        subprocess.run(
            ["openssl", "genrsa", "-out", other, "3072"], capture_output=True, check=True
        )
        body = f'exec openssl dgst -sha256 -sign "{other}"'
        signer = load_signer(str(KEY), self.tool(tmp_path, body))
        with pytest.raises(VerificationError, match="the sign tool returned"):
            signer.sign(b"serdab")

    def test_a_failing_tool_is_quoted(self, tmp_path: Path) -> None:
        signer = load_signer(str(KEY), self.tool(tmp_path, "echo no card >&2; exit 3"))
        with pytest.raises(UsageError) as caught:
            signer.sign(b"serdab")
        assert caught.value.found == "3: no card"

    def test_a_missing_tool_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be used"):
            load_signer(str(KEY), str(tmp_path / "none")).sign(b"serdab")


class TestDevelopmentKey:
    def test_is_made_once_and_private(self, state: Path) -> None:
        first = signing.development_signer()
        path = state / signing.DEVELOPMENT_KEY
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        assert first.origin == str(path)
        assert signing.development_signer().public == first.public

    def test_is_private_whatever_the_umask(self, state: Path) -> None:
        old = os.umask(0)
        try:
            signing.development_signer()
        finally:
            os.umask(old)
        assert stat.S_IMODE((state / signing.DEVELOPMENT_KEY).stat().st_mode) == 0o600

    def test_one_that_others_can_read_is_refused(self, state: Path) -> None:
        signing.development_signer()
        (state / signing.DEVELOPMENT_KEY).chmod(0o644)
        with pytest.raises(UsageError, match="open to others"):
            signing.development_signer()

    @pytest.mark.parametrize(
        ("parts", "is_refused"),
        [("n", True), ("d dmp1", True), ("d", False), ("p", False), ("dmq1", False)],
    )
    def test_one_that_is_damaged_signs_as_before_or_is_refused(
        self, state: Path, parts: str, is_refused: bool
    ) -> None:
        first = signing.development_signer()
        path = state / signing.DEVELOPMENT_KEY
        key = load_pem_private_key(path.read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        numbers = key.private_numbers()
        for name in parts.split():
            owner = numbers.public_numbers if name == "n" else numbers
            number: int = getattr(owner, name)
            whole = number.to_bytes((number.bit_length() + 7) // 8, "big")
            assert der.count(whole) == 1
            der = der.replace(whole, whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
        body = base64.encodebytes(der).decode()
        path.write_text(f"-----BEGIN PRIVATE KEY-----\n{body}-----END PRIVATE KEY-----\n")
        if is_refused:
            with pytest.raises(UsageError, match="the development key is damaged"):
                signing.development_signer()
        else:  # the library signs with those numbers that are right
            assert signing.development_signer().sign(b"message") == first.sign(b"message")

    @pytest.mark.parametrize(
        "content", [b"", b"cut short", "public"], ids=["empty", "cut", "public"]
    )
    def test_one_that_is_no_private_key_is_refused(self, state: Path, content: bytes | str) -> None:
        signing.development_signer()
        path = state / signing.DEVELOPMENT_KEY
        path.write_bytes(content if isinstance(content, bytes) else public_pem())
        with pytest.raises(UsageError, match=r"damaged|not a signing key"):
            signing.development_signer()

    def test_two_first_uses_at_once_agree(self, state: Path) -> None:
        code = (
            "from serdab.trust.signing import development_signer;"
            "print(development_signer().public.mrsigner())"
        )

        def make(_: int) -> str:
            return subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout

        with ThreadPoolExecutor(2) as pool:
            assert len(set(pool.map(make, range(2)))) == 1
        assert os.listdir(state) == [signing.DEVELOPMENT_KEY]


def test_verification_agrees_with_the_cryptography_package() -> None:
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = load_pem_public_key(public_pem())
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = signer().sign(b"both")
    key.verify(signature, b"both", PKCS1v15(), SHA256())
