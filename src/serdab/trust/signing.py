# SPDX-License-Identifier: Apache-2.0
"""RSA-3072 signatures: keys from PEM files, the development key, external tools, verification.

RSA-3072 with exponent 3 or 65537, PKCS#1 v1.5 over SHA-256 (RFC 8017, section 8.2), as SGX signs
enclaves. MRSIGNER is SHA-256 over the 384-byte little-endian modulus.

Making and using private keys is left to the cryptography package. Verification is done here: it
handles public values only, is RFC 8017 section 8.2.2 to the letter (the whole encoded message is
computed and compared, nothing is parsed), and spares every boot the import.

Above: ``descriptor``, ``instance.build``. Below: ``measurement``, ``config.dirs``.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from typing import TYPE_CHECKING, Final, Protocol

from serdab.config.dirs import make_private, state_dir
from serdab.errors import UsageError, VerificationError
from serdab.linux.durable import create_durably
from serdab.structs import frozen
from serdab.trust.measurement import SHA256, Digest

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

MODULUS_BYTES: Final = 384
EXPONENTS: Final = (3, 65537)
DEVELOPMENT_KEY: Final = "development-key.pem"
TOOL_TIMEOUT_S: Final = 300
# The DigestInfo of SHA-256 in DER: RFC 8017, section 9.2, note 1.
_DIGEST_INFO: Final = bytes.fromhex("3031300d060960864801650304020105000420")


@frozen
class PublicKey:
    """The public half of a signing key."""

    modulus: int
    exponent: int

    def __post_init__(self) -> None:
        # A modulus with its top bit clear or an even one is no RSA-3072 modulus.
        if self.modulus.bit_length() != 8 * MODULUS_BYTES or self.modulus % 2 == 0:
            raise ValueError("not a modulus of 3072 bits")
        if self.exponent not in EXPONENTS:
            raise ValueError("the exponent is neither 3 nor 65537")

    def mrsigner(self) -> Digest:
        """Return the name of this signer."""
        return Digest(
            SHA256, hashlib.sha256(self.modulus.to_bytes(MODULUS_BYTES, "little")).digest()
        )

    def pem(self) -> bytes:
        """Return it as others read it: a SubjectPublicKeyInfo in PEM (RFC 7468, section 13)."""
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        key = RSAPublicNumbers(self.exponent, self.modulus).public_key()
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def verify(self, message: ReadableBuffer, signature: bytes) -> None:
        """Check a signature over ``message``.

        Raises:
            VerificationError: it is not one by this key.
        """
        number = int.from_bytes(signature, "big")
        good = len(signature) == MODULUS_BYTES and number < self.modulus
        if good:
            opened = pow(number, self.exponent, self.modulus).to_bytes(MODULUS_BYTES, "big")
            good = hmac.compare_digest(opened, _encoded(message))
        if not good:
            raise VerificationError(
                "the signature does not verify",
                stage="signed",
                subject="libos descriptor",
                expected=f"a signature by {self.mrsigner()}",
                found="another one",
                hint="the descriptor or its signature was changed; `serdab build` signs anew",
            )


def _encoded(message: ReadableBuffer) -> bytes:
    """Return EMSA-PKCS1-v1_5 of ``message`` (RFC 8017, section 9.2)."""
    tail = _DIGEST_INFO + hashlib.sha256(message).digest()
    padding = b"\xff" * (MODULUS_BYTES - len(tail) - 3)
    return b"\0\x01" + padding + b"\0" + tail


class Signer(Protocol):
    """Whoever signs for a build."""

    @property
    def public(self) -> PublicKey:
        """The key that verifies."""
        ...

    @property
    def origin(self) -> str:
        """Where the key comes from, for messages."""
        ...

    def sign(self, message: ReadableBuffer) -> bytes:
        """Return the raw signature of 384 bytes; ``message`` may be a mapping of a large file."""
        ...


class SignToolError(UsageError):
    """The sign tool ran and did not sign."""


class FileSigner:
    """Signs with a private key in a PEM file."""

    __slots__ = ("_key", "origin", "public")

    def __init__(self, key: RSAPrivateKey, public: PublicKey, origin: str) -> None:
        self._key = key
        self.public = public
        self.origin = origin

    def sign(self, message: ReadableBuffer) -> bytes:
        """Return the raw signature."""
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
        from cryptography.hazmat.primitives.hashes import SHA256 as Sha256

        # Hashed here, since sign() takes bytes only, and a large file is a mapping.
        digest = hashlib.sha256(message).digest()
        return self._key.sign(digest, PKCS1v15(), Prehashed(Sha256()))


class ToolSigner:
    """Signs by running ``EXE sign -key PEM``: message on stdin, raw signature on stdout.

    The key file may hold the public key alone: what only the tool understands stays with it.
    """

    __slots__ = ("_key_path", "_tool", "origin", "public")

    def __init__(self, tool: str, key_path: str, public: PublicKey) -> None:
        self._tool = tool
        self._key_path = key_path
        self.public = public
        self.origin = f"{key_path}, through {tool}"

    def sign(self, message: ReadableBuffer) -> bytes:
        """Return the raw signature, verified.

        Raises:
            UsageError: the tool cannot be run.
            SignToolError: it fails.
            VerificationError: its signature is not one by this key.
        """
        import subprocess  # not needed to verify, which every boot does

        try:
            result = subprocess.run(
                [self._tool, "sign", "-key", self._key_path],
                input=message,
                capture_output=True,
                timeout=TOOL_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            reason = os.strerror(exc.errno or 0) if isinstance(exc, OSError) else "no answer"
            raise UsageError(
                "the sign tool cannot be used",
                stage="build",
                subject=self._tool,
                expected=f"a program that signs within {TOOL_TIMEOUT_S} s",
                found=reason,
                hint="it is run as EXE sign -key PEM",
            ) from exc
        if result.returncode != 0:
            words = result.stderr.decode("utf-8", "replace").strip().splitlines()
            raise SignToolError(
                "the sign tool failed",
                stage="build",
                subject=self._tool,
                expected="exit status 0",
                found=f"{result.returncode}" + (f": {words[-1]}" if words else ""),
                hint="it is run as EXE sign -key PEM, with the message on stdin",
            )
        try:
            self.public.verify(message, result.stdout)
        except VerificationError:
            raise VerificationError(
                "what the sign tool returned is no signature by the given key",
                stage="build",
                subject=self._tool,
                expected=f"a signature by {self.public.mrsigner()}, the key in {self._key_path}",
                found="another signature"
                if len(result.stdout) == MODULUS_BYTES
                else f"{len(result.stdout)} bytes where {MODULUS_BYTES} were due",
                hint="--sign-key must be the public half of the key that the tool signs with",
            ) from None
        return result.stdout


def load_signer(key_path: str, tool: str | None = None) -> Signer:
    """Return a signer for the PEM file at ``key_path``.

    Raises:
        UsageError: no such file, no RSA-3072 key, another exponent, or the private half is missing.
    """
    from serdab.linux.outside import Walk  # a boot verifies, and loads no signer

    try:
        with open(Walk().file(key_path), "rb") as file:
            pem = file.read(1 << 16)
    except OSError as exc:
        raise UsageError(
            "the signing key cannot be read",
            subject=key_path,
            expected="a PEM file",
            found=os.strerror(exc.errno or 0),
            hint="`openssl genrsa -3 -out key.pem 3072` makes one",
        ) from exc
    private, public = _parse_pem(pem, key_path)
    if tool is not None:
        _check_way(tool)
        return ToolSigner(tool, key_path, public)
    if private is None:
        raise UsageError(
            "the signing key has no private half",
            subject=key_path,
            expected="a private key",
            found="a public key",
            hint="name the tool that holds the private key with --sign-tool",
        )
    return FileSigner(private, public, key_path)


def _check_way(tool: str) -> None:
    """Refuse a sign tool behind a link that others may have put there.

    What is missing, or cannot be run, is said by whoever runs it.

    Raises:
        UsageError: there is such a link.
    """
    if "/" not in tool:
        return  # looked for on the PATH, which is the caller's
    from serdab.linux.outside import Walk
    from serdab.linux.whereabouts import leads_nowhere, untold

    try:
        os.close(Walk().file(tool, os.O_PATH))
    except OSError as exc:
        if not leads_nowhere(exc):
            raise untold(tool, exc) from exc


def _parse_pem(
    pem: bytes, path: str, *, are_primes_tested: bool = False
) -> tuple[RSAPrivateKey | None, PublicKey]:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import (
        load_pem_private_key,
        load_pem_public_key,
    )

    def refuse(found: str) -> UsageError:
        return UsageError(
            "not a signing key",
            subject=path,
            expected="RSA-3072 with exponent 3 or 65537, as unencrypted PEM",
            found=found,
            hint="`openssl genrsa -3 -out key.pem 3072` makes one",
        )

    private: object = None
    try:
        if b"PRIVATE KEY-----" in pem:
            private = load_pem_private_key(
                pem, password=None, unsafe_skip_rsa_key_validation=are_primes_tested
            )
            public: object = private.public_key()
        else:
            public = load_pem_public_key(pem)
    except TypeError:
        raise refuse("an encrypted key") from None
    except (ValueError, UnsupportedAlgorithm):
        raise refuse("no PEM key") from None
    if not isinstance(public, rsa.RSAPublicKey):
        raise refuse("a key of another kind")
    numbers = public.public_numbers()
    try:
        value = PublicKey(numbers.n, numbers.e)
    except ValueError:
        raise refuse(f"RSA-{numbers.n.bit_length()} with exponent {numbers.e}") from None
    return (private if isinstance(private, rsa.RSAPrivateKey) else None), value


def development_key_path() -> str:
    """Return where the user's development key is, or will be."""
    return os.path.join(state_dir(), DEVELOPMENT_KEY)


def existing_development_signer() -> Signer | None:
    """Return the user's development key if there is one.

    Raises:
        UsageError: the file is open to others.
    """
    return development_signer() if os.path.lexists(development_key_path()) else None


def development_signer() -> Signer:
    """Return the user's development key, made at the first use (0600, whole or not at all).

    Raises:
        UsageError: the file is open to others.
    """
    path = development_key_path()
    if not os.path.lexists(path):
        from cryptography.hazmat.primitives.asymmetric import rsa
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
        )

        make_private(os.path.dirname(path))
        key = rsa.generate_private_key(public_exponent=65537, key_size=8 * MODULUS_BYTES)
        # Two builds at once: the first to link the name wins, both load the same key.
        create_durably(
            path,
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )
    status = os.lstat(path)
    if (
        not stat.S_ISREG(status.st_mode)
        or status.st_uid != os.geteuid()
        or stat.S_IMODE(status.st_mode) & 0o077
    ):
        raise UsageError(
            "the development key is open to others",
            subject=path,
            expected=f"a file of uid {os.geteuid()} with mode 0600",
            found=f"uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}",
            hint="chmod 600 it, or delete it: the next build makes another",
        )
    return _load_own(path)


def _load_own(path: str) -> Signer:
    """Return a signer for a key that was made here.

    Its primes were chosen when it was made; to test them again would be half of what a build takes.
    That the file is still whole is shown by a signature.
    """
    with open(path, "rb") as file:
        private, public = _parse_pem(file.read(1 << 16), path, are_primes_tested=True)
    if private is not None:
        signer = FileSigner(private, public, path)
        try:
            public.verify(b"whole", signer.sign(b"whole"))
        except (VerificationError, ValueError):
            pass
        else:
            return signer
    raise UsageError(
        "the development key is damaged",
        subject=path,
        expected="a private key that signs for its public half",
        found="one that does not" if private else "a public key",
        hint="restore it, or delete it: the next build makes another, which is another signer",
    )
