# SPDX-License-Identifier: Apache-2.0
"""``serdab run PROGRAM [ARG...]``."""

from __future__ import annotations

from serdab.cli.door import FOUND
from serdab.cli.messages import Context
from serdab.cli.parsing import (
    add_boot,
    add_program,
    freshness_of,
    program_of,
    read_key,
    say_occlum,
    take_cpus,
)
from serdab.errors import BusyError

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    import argparse
    from typing import Final

    from serdab.libos.begin import Begun

SUMMARY: Final = "boot the instance, run a program in it, shut down"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_boot(parser)
    add_program(parser)


def main(args: argparse.Namespace, context: Context) -> int:
    """Run it; the exit code is the program's."""
    say_occlum(args, context)
    take_cpus(args)
    command = program_of(args, "run [--image-key FILE|-] [--expect-signer HEX]")
    from serdab.instance.layout import Instance

    instance = Instance.open_built(context.instance)
    # Before anything that takes its time: the new processes get ready while this one does.
    from serdab.libos.begin import Begun

    begun = Begun(FOUND.ignored)
    try:
        return _run(args, context, instance.path, command, begun)
    except BusyError as exc:
        begun.abandon()
        from serdab.cli.inuse import name_service

        name_service(exc, instance.path, context)
        raise
    except BaseException:
        begun.abandon()
        raise


def _run(
    args: argparse.Namespace, context: Context, instance: str, command: list[str], begun: Begun
) -> int:
    from serdab import pal

    key = None
    if args.image_key is not None:
        key = read_key(args.image_key, context.say)
    return pal.run_foreground(
        instance,
        command,
        image_key=key,
        private=() if args.image_key in (None, "-") else (args.image_key,),
        expect_signer=args.expect_signer,
        expect_root=args.expect_root,
        freshness=freshness_of(args),
        previous=args.previous,
        log_level=context.shown_level(),
        begun=begun,
    )
