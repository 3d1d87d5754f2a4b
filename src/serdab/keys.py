# SPDX-License-Identifier: Apache-2.0
"""Keys of 128 bits: parse, print, make, and never leak by accident.

The text form is the one Occlum uses, sixteen hexadecimal bytes joined by hyphens
(``c7-32-b3-ed-44-df-ec-7b-25-2d-9a-32-38-8d-58-61``); upper case and one-digit items are read.

Security:
    1. ``repr`` and ``str`` show nothing of the key.
    2. Comparison takes the same time wherever the bytes differ.
    3. Not covered: Python keeps copies of immutable bytes; wiping them is not possible.
"""

from __future__ import annotations

import os

from serdab.errors import UsageError

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final, final
else:

    def final(decorated):  # noqa: ANN001, ANN201 - typing's, which does nothing at run time
        return decorated


KEY_BYTES: Final = 16


def parse_hyphened(text: str, count: int) -> bytes:
    """Return the bytes of ``count`` hyphen-joined hexadecimal items.

    Raises:
        ValueError: the count is wrong, or an item is not a number from 0 to ff.
    """
    items = text.split("-")
    if len(items) != count:
        raise ValueError(f"expected {count} items joined by '-', found {len(items)}")
    out = bytearray()
    for number, item in enumerate(items):
        if not 1 <= len(item) <= 2 or any(c not in "0123456789abcdefABCDEF" for c in item):
            # The item itself is not shown: it may be part of a secret.
            raise ValueError(f"item {number + 1} is not one or two hexadecimal digits")
        out.append(int(item, 16))
    return bytes(out)


@final
class Key:
    """A 128-bit key with a redacted representation."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(raw)}")
        self._raw = bytes(raw)

    @classmethod
    def parse(cls, text: str) -> Key:
        """Return the key written as ``xx-xx-…``.

        Raises:
            UsageError: the text is not sixteen hyphened bytes. The message never holds the text.
        """
        try:
            return cls(parse_hyphened(text.strip(), KEY_BYTES))
        except ValueError as exc:
            raise UsageError(
                f"not a key: {exc}",
                expected="sixteen bytes as xx-xx-…-xx",
                hint="`serdab gen-image-key FILE` makes one",
            ) from None

    @classmethod
    def generate(cls) -> Key:
        """Return a fresh key from the kernel's randomness."""
        return cls(os.urandom(KEY_BYTES))

    def raw(self) -> bytes:
        """Return the sixteen bytes."""
        return self._raw

    def dump(self) -> str:
        """Return the text form; only for files that are meant to hold the key."""
        return self._raw.hex("-")

    def __repr__(self) -> str:
        return "Key(redacted)"

    def __eq__(self, other: object) -> bool:
        import hmac  # brings libcrypto, and few keys are compared

        return isinstance(other, Key) and hmac.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash(self._raw)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a key is not pickled")
