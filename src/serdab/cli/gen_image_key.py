# SPDX-License-Identifier: Apache-2.0
"""``serdab gen-image-key FILE``."""

from __future__ import annotations

import argparse
import os
from typing import Final

from serdab.cli.messages import Context
from serdab.errors import UsageError
from serdab.keys import Key

SUMMARY: Final = "write a fresh image key to a file"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", metavar="FILE", help="a path where nothing is yet; mode 0600")


def main(args: argparse.Namespace, context: Context) -> int:
    """Write the key, never over an existing file."""
    if args.file == "-":
        # Elsewhere it is standard input; a key on a terminal or in a log would be one no longer.
        raise UsageError(
            "a key is written to a file only",
            subject=args.file,
            expected="a path where nothing is",
            found="the sign of standard input",
            hint="a file of that name is ./-",
        )
    from serdab.linux.outside import Walk

    try:
        try:
            directory, name = Walk().parent(args.file)
        except UsageError as exc:
            if isinstance(exc.__cause__, OSError):
                raise exc.__cause__ from exc
            raise
        with directory:
            made = directory.create_whole(name, Key.generate().dump().encode("ascii") + b"\n")
    except OSError as exc:
        raise UsageError(
            "the key file cannot be made",
            subject=args.file,
            expected="a path in a directory that can be written",
            found=os.strerror(exc.errno or 0),
            hint="name a file in a directory of yours, on storage you trust",
        ) from exc
    if not made:
        raise UsageError(
            "the key file exists",
            subject=args.file,
            expected="a path where nothing is",
            found="a file",
            hint="keys are never overwritten: data may depend on it",
        )
    context.result({"file": os.path.abspath(args.file)})
    return 0
