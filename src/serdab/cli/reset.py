# SPDX-License-Identifier: Apache-2.0
"""``serdab reset [--yes]``."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from serdab.cli.messages import Context
from serdab.errors import UsageError

SUMMARY: Final = "throw the writable layer away"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--yes", action="store_true", help="do not ask")


def main(args: argparse.Namespace, context: Context) -> int:
    """Ask, then remove."""
    from serdab.instance.layout import Instance
    from serdab.instance.reset import reset

    instance = Instance.open(context.instance, sources=False)
    if not args.yes:
        if not sys.stdin.isatty():
            raise UsageError(
                "reset throws everything away that programs wrote",
                expected="--yes, or a terminal to ask on",
                found="neither",
                hint="add --yes if that is what you want",
            )
        print(f"throw away everything that programs wrote in {instance.path}? [y/N] ", end="")
        sys.stdout.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UsageError("reset: not confirmed, nothing was done", hint="y confirms")
    removed = reset(instance)
    context.result(
        {"removed": removed}, "removed " + ", ".join(removed) if removed else "nothing to remove"
    )
    return 0
