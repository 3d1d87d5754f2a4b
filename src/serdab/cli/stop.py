# SPDX-License-Identifier: Apache-2.0
"""``serdab stop [-t SECONDS]``."""

from __future__ import annotations

import argparse
from typing import Final

from serdab.cli.messages import Context
from serdab.errors import UsageError

SUMMARY: Final = "end the instance's service; everything is durable on return"
_PATIENCE_S: Final = 10.0
_MAX_PATIENCE_S: Final = 86400.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "-t",
        dest="patience",
        metavar="SECONDS",
        type=float,
        default=_PATIENCE_S,
        help="how long programs are asked (SIGTERM) before they are killed; default 10",
    )


def main(args: argparse.Namespace, context: Context) -> int:
    """Stop it, and wait until it is down."""
    if not 0 <= args.patience <= _MAX_PATIENCE_S:
        raise UsageError(
            "not a time to wait",
            subject="-t",
            expected="seconds, from 0 to 86400",
            found=f"{args.patience:g}",
            hint="0 kills at once",
        )
    from serdab.instance.layout import Instance
    from serdab.service.client import stop

    instance = Instance.open(context.instance, sources=False).path
    stop(instance, args.patience, on_wait=context.say)
    context.result({"state": "stopped"})
    return 0
