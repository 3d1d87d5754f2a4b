# SPDX-License-Identifier: Apache-2.0
"""``serdab start [--foreground]``."""

from __future__ import annotations

import os

from serdab.cli.messages import Context
from serdab.cli.parsing import add_boot, freshness_of, read_key, say_occlum, take_cpus

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    import argparse
    from typing import Final

SUMMARY: Final = "boot the instance as a service, for many programs"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_boot(parser)
    parser.add_argument(
        "--foreground", action="store_true", help="be the service, as service managers want it"
    )


def main(args: argparse.Namespace, context: Context) -> int:
    """Boot; return when the instance is ready, or, in the foreground, when it is down."""
    say_occlum(args, context)
    take_cpus(args)
    from serdab.instance.layout import Instance

    instance = Instance.open_built(context.instance).path
    from serdab.linux.process import hide_memory
    from serdab.service import starter

    starter.refuse_second(instance, on_wait=context.say)
    hide_memory()  # before there is a key in it
    key = None if args.image_key is None else read_key(args.image_key, context.say)
    request = starter.request_for(
        instance,
        has_key=key is not None,
        private=() if args.image_key in (None, "-") else (os.path.abspath(args.image_key),),
        expect_signer=args.expect_signer,
        expect_root=args.expect_root,
        freshness=freshness_of(args).placed_outside(instance),
        previous=args.previous,
    )
    level = context.shown_level()
    if args.foreground:
        starter.become(request, key, level=level, as_json=context.as_json)
    from serdab.pal import log_to_stderr

    pid = starter.start(request, key, log_to_stderr(level))
    context.result({"state": "running", "pid": pid})
    context.say(f"{instance} is running, process {pid}")
    return 0
