# SPDX-License-Identifier: Apache-2.0
"""The libos descriptor: what a build vouches for, signed.

It ties the digest of the supervisor's code to one protected configuration, a product and a
platform. MRENCLAVE is SHA-256 over its canonical bytes, which are also the bytes that are signed.

On-disk format:
    ``build/lib/libserdab.signed.json``: one JSON object in canonical form (keys sorted, no spaces,
    ASCII, one newline at the end) with ``descriptor`` (the object below), ``modulus`` (768 hex
    digits, big endian), ``exponent`` and ``signature`` (768 hex digits). The canonical bytes of the
    descriptor are those of the inner object, without the newline. Any other spelling is refused, so
    that there is one set of bytes to sign and to measure.

Security:
    A signature says who, not whether to believe him: the caller compares :attr:`SignedDescriptor.
    signer` with the signer that is expected (``signers``, ``chain``).
"""

from __future__ import annotations

import json
from typing import Final

from serdab.config.strict import Section, load_object
from serdab.errors import Error, FormatError
from serdab.structs import frozen
from serdab.trust.measurement import SHA256, Digest
from serdab.trust.signing import EXPONENTS, MODULUS_BYTES, PublicKey, Signer

FORMAT: Final = 1


@frozen
class Descriptor:
    """What is signed. ``family_id`` and ``ext_prod_id`` are empty without key separation."""

    serdab_version: str
    code_digest: Digest
    conf_mac: Digest
    product_id: int
    security_version: int
    debuggable: bool
    platform: str
    family_id: bytes = b""
    ext_prod_id: bytes = b""

    def dump(self) -> bytes:
        """Return the canonical bytes."""
        return _canonical(self._as_object())

    def mrenclave(self) -> Digest:
        """Return the measurement of everything the descriptor names."""
        return Digest.of(self.dump())

    def _as_object(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "serdab_version": self.serdab_version,
            "code_digest": str(self.code_digest),
            "conf_mac": str(self.conf_mac),
            "product_id": self.product_id,
            "security_version": self.security_version,
            "flags": ["debuggable"] if self.debuggable else [],
            "platform": self.platform,
            "family_id": self.family_id.hex(),
            "ext_prod_id": self.ext_prod_id.hex(),
        }


@frozen
class SignedDescriptor:
    """A descriptor with a signature that was verified."""

    descriptor: Descriptor
    signer: PublicKey


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def sign(descriptor: Descriptor, signer: Signer) -> bytes:
    """Return the file that holds ``descriptor`` signed by ``signer``."""
    signature = signer.sign(descriptor.dump())
    signer.public.verify(descriptor.dump(), signature)
    return _dump_file(descriptor, signer.public, signature)


def _dump_file(descriptor: Descriptor, public: PublicKey, signature: bytes) -> bytes:
    value = {
        "descriptor": descriptor._as_object(),
        "modulus": public.modulus.to_bytes(MODULUS_BYTES, "big").hex(),
        "exponent": public.exponent,
        "signature": signature.hex(),
    }
    return _canonical(value) + b"\n"


def _fail(path: str, expected: str, found: str, hint: str) -> Error:
    return FormatError(
        "the signed libos descriptor is malformed",
        stage="signed",
        subject=path or "libos descriptor",
        expected=expected,
        found=found,
        hint=hint or "`serdab build` writes it anew",
    )


def parse_and_verify(raw: bytes) -> SignedDescriptor:
    """Return the descriptor in ``raw`` after its signature verified.

    Raises:
        FormatError: not in canonical form, or a field is unknown, missing or ill-typed.
        VerificationError: the signature is not one by the key in the file.
    """
    top = load_object(raw, _fail)
    inner = top.section("descriptor")
    modulus = top.hex_bytes("modulus", MODULUS_BYTES)
    exponent = top.integer("exponent", high=max(EXPONENTS))
    signature = top.hex_bytes("signature", MODULUS_BYTES)
    top.close()
    descriptor = _parse_descriptor(inner)
    try:
        public = PublicKey(int.from_bytes(modulus, "big"), exponent)
    except ValueError as exc:
        raise _fail("modulus", "RSA-3072 with exponent 3 or 65537", str(exc), "") from None
    if _dump_file(descriptor, public, signature) != raw:
        raise _fail("", "the canonical spelling", "another spelling of the same values", "")
    public.verify(descriptor.dump(), signature)
    return SignedDescriptor(descriptor, public)


def _parse_descriptor(inner: Section) -> Descriptor:
    inner.integer("format", low=FORMAT, high=FORMAT)
    flags = inner.texts("flags")
    if flags not in ((), ("debuggable",)):
        raise inner.refuse("flags", "known flags", "others")
    descriptor = Descriptor(
        serdab_version=inner.text("serdab_version"),
        code_digest=Digest(SHA256, inner.hex_bytes("code_digest", 32)),
        conf_mac=Digest(SHA256, inner.hex_bytes("conf_mac", 32)),
        product_id=inner.integer("product_id", high=(1 << 32) - 1),
        security_version=inner.integer("security_version", high=(1 << 32) - 1),
        debuggable=bool(flags),
        platform=inner.text("platform"),
        family_id=_identity(inner, "family_id"),
        ext_prod_id=_identity(inner, "ext_prod_id"),
    )
    inner.close()
    return descriptor


def _identity(inner: Section, name: str) -> bytes:
    """Take sixteen bytes in hexadecimal, or an empty string."""
    text = inner.text(name)
    if len(text) not in (0, 32) or any(c not in "0123456789abcdef" for c in text):
        raise inner.refuse(name, "32 hexadecimal digits or none", "something else")
    return bytes.fromhex(text)
