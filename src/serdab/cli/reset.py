# SPDX-License-Identifier: Apache-2.0
"""``serdab reset [--yes] [--volume DIR]``."""

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
    parser.add_argument(
        "--volume", metavar="DIR", help="throw away only the volume that programs mount from DIR"
    )


def main(args: argparse.Namespace, context: Context) -> int:
    """Ask, then remove."""
    from serdab.cli.inuse import naming_service
    from serdab.instance.layout import Instance
    from serdab.instance.reset import reset, reset_volume

    instance = Instance.open(context.instance, sources=False)
    what = f"the volume in {args.volume}" if args.volume else "everything that programs wrote"
    if not args.yes:
        if not sys.stdin.isatty():
            raise UsageError(
                f"reset throws away {what}",
                expected="--yes, or a terminal to ask on",
                found="neither",
                hint="add --yes if that is what you want",
            )
        context.tell(f"throw away {what} (instance {instance.path})? [y/N] ", end="")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UsageError("reset: not confirmed, nothing was done", hint="y confirms")
    with naming_service(instance.path, context):
        if args.volume is None:
            removed = reset(instance, say=context.say)
        else:
            removed = reset_volume(instance, args.volume, say=context.say)
    context.result(
        {"removed": removed}, "removed " + ", ".join(removed) if removed else "nothing to remove"
    )
    return 0
