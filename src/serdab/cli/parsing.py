# SPDX-License-Identifier: Apache-2.0
"""argparse, with our errors instead of its own exit, and options that several verbs share."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from serdab.errors import UsageError
from serdab.keys import Key

_KEY_FILE_BYTES = 4096


class VerbParser(argparse.ArgumentParser):
    """A parser for one verb: no abbreviations, errors are ``UsageError``."""

    def __init__(self, verb: str, summary: str) -> None:
        super().__init__(
            prog=f"serdab {verb}",
            description=summary,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._verb = verb

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the process.

        Raises:
            UsageError: always.
        """
        usage = " ".join(self.format_usage().split()).removeprefix("usage: ")
        raise UsageError(f"{self._verb}: {message}", hint=f"usage: {usage}")


def add_signing(parser: argparse.ArgumentParser) -> None:
    """Add --sign-key and --sign-tool."""
    parser.add_argument(
        "--sign-key",
        metavar="PEM",
        help="RSA-3072 key that signs; without it a development key of this user is made",
    )
    parser.add_argument(
        "--sign-tool",
        metavar="EXE",
        help="run as EXE sign -key PEM, message on stdin, raw signature on stdout",
    )


def read_key(path: str) -> Key:
    """Return the key in the file at ``path``; ``-`` is standard input.

    Raises:
        UsageError: it cannot be read or holds no key. The message never holds the content.
    """
    try:
        if path == "-":
            raw = sys.stdin.buffer.read(_KEY_FILE_BYTES)
        else:
            with open(path, "rb") as file:
                raw = file.read(_KEY_FILE_BYTES)
    except OSError as exc:
        raise UsageError(
            "the image key cannot be read",
            subject=path,
            expected="a file with a key",
            found=os.strerror(exc.errno or 0),
            hint="`serdab gen-image-key FILE` makes one",
        ) from exc
    try:
        return Key.parse(raw.decode("ascii", "replace"))
    except UsageError as exc:
        raise UsageError(
            exc.message,
            subject="standard input" if path == "-" else path,
            expected=exc.expected,
            found="something else",
            hint=exc.hint,
        ) from None
