# SPDX-License-Identifier: Apache-2.0
"""Digests as values, and the digest of the running Serdab's own code.

Security:
    1. The code digest covers every ``.py`` file of the package and every program it ships for the
       sandbox, by path and content. It says *which* Serdab boots.
    2. Not covered: the interpreter, the standard library, libcrypto and the extension modules of
       dependencies. On a plain machine it proves nothing to others; the installed Serdab is
       trusted.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from serdab.structs import frozen
from serdab.trust.codetree import code_hash, package_root

SHA256: Final = "sha256"
_LENGTHS: Final = {SHA256: 32}


@frozen
class Digest:
    """A digest with the algorithm that made it; never a bare string of digits."""

    algorithm: str
    value: bytes

    def __post_init__(self) -> None:
        if len(self.value) != _LENGTHS.get(self.algorithm):
            raise ValueError(f"not a {self.algorithm} digest: {len(self.value)} bytes")

    @classmethod
    def of(cls, raw: bytes) -> Digest:
        """Return the SHA-256 of ``raw``."""
        return cls(SHA256, hashlib.sha256(raw).digest())

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Return the SHA-256 digest written as 64 hexadecimal digits.

        Raises:
            ValueError: it is not.
        """
        if len(text) != 64:
            raise ValueError(f"expected 64 hexadecimal digits, found {len(text)} characters")
        return cls(SHA256, bytes.fromhex(text))

    def matches(self, other: Digest) -> bool:
        """Return whether both are the same, in the same time whatever differs."""
        return self.algorithm == other.algorithm and hmac.compare_digest(self.value, other.value)

    def __str__(self) -> str:
        return self.value.hex()


def code_digest(root: str | None = None) -> Digest:
    """Return the digest over every file of code below ``root`` (default: the running package)."""
    return Digest(SHA256, code_hash(root))


__all__ = ["SHA256", "Digest", "code_digest", "package_root"]
