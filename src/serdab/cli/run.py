# SPDX-License-Identifier: Apache-2.0
"""``serdab run PROGRAM [ARG...]``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from serdab.cli.messages import Context
from serdab.cli.parsing import add_freshness, add_occlum, freshness_of, read_key, say_occlum
from serdab.errors import UsageError

if TYPE_CHECKING:
    from serdab.libos.begin import Begun

SUMMARY: Final = "boot the instance, run a program in it, shut down"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--image-key", metavar="FILE", help="hand this key to init; - reads standard input"
    )
    parser.add_argument("--expect-signer", metavar="HEX", help="the signer (mrsigner) to require")
    parser.add_argument("--expect-root", metavar="HEX", help="the root FS (root-mac) to require")
    parser.add_argument(
        "--previous",
        action="store_true",
        help="boot the image that the writable layer belongs to, not the one built since",
    )
    add_freshness(parser)
    add_occlum(parser, "--config-id", "--config-svn")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="PROGRAM [ARG ...]")


def main(args: argparse.Namespace, context: Context) -> int:
    """Run it; the exit code is the program's."""
    say_occlum(args, context)
    command = args.command
    if command[:1] == ["--"]:
        del command[0]
    if not command:
        raise UsageError(
            "run: no program",
            expected="the absolute path of a program inside",
            found="nothing",
            hint="usage: serdab run [--image-key FILE|-] [--expect-signer HEX] PROGRAM [ARG ...]",
        )
    from serdab.instance.layout import Instance

    instance = Instance.open_built(context.instance)
    # Before anything that takes its time: the new processes get ready while this one does.
    from serdab.libos.begin import Begun

    begun = Begun()
    try:
        return _run(args, context, instance.path, command, begun)
    except BaseException:
        begun.abandon()
        raise


def _run(
    args: argparse.Namespace, context: Context, instance: str, command: list[str], begun: Begun
) -> int:
    from serdab import pal

    key = None
    if args.image_key is not None:
        key = read_key(args.image_key)
    return pal.run_foreground(
        instance,
        command,
        image_key=key,
        private=() if args.image_key in (None, "-") else (args.image_key,),
        expect_signer=args.expect_signer,
        expect_root=args.expect_root,
        freshness=freshness_of(args),
        previous=args.previous,
        log_level=_log_level(context),
        begun=begun,
    )


def _log_level(context: Context) -> str:
    if context.verbose:
        return "debug"
    return "error" if context.quiet and context.log_level == "notice" else context.log_level
