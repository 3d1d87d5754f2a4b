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
import os
from dataclasses import dataclass
from typing import Final

from serdab.errors import InternalError

SHA256: Final = "sha256"
_LENGTHS: Final = {SHA256: 32}
_LABEL: Final = b"serdab code digest 1\n"


@dataclass(frozen=True, slots=True)
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


def package_root() -> str:
    """Return the directory of the running package."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def code_digest(root: str | None = None) -> Digest:
    """Return the digest over every file of code below ``root`` (default: the running package).

    It is SHA-256 over a label and, in byte order of the paths, each path, a NUL and the SHA-256 of
    the file. Byte-code caches are not read: the processes that boot run without them or with
    caches of their own (see ``libos``).
    """
    base = root or package_root()
    entries: list[tuple[bytes, str]] = []
    pending = [("", base)]
    while pending:
        prefix, directory = pending.pop()
        with os.scandir(directory) as listing:
            for entry in listing:
                relative = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        pending.append((relative + "/", entry.path))
                elif entry.name.endswith(".py") or relative.startswith("init/bin/"):
                    entries.append((os.fsencode(relative), entry.path))
    if not entries:
        raise InternalError(f"no code below {base}")
    entries.sort()
    total = hashlib.sha256(_LABEL)
    for name, path in entries:
        with open(path, "rb", buffering=0) as file:
            content = file.read()
        total.update(name + b"\0" + hashlib.sha256(content).digest())
    return Digest(SHA256, total.digest())
