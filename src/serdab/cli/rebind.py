# SPDX-License-Identifier: Apache-2.0
"""``serdab rebind [OPTION ...]``."""

from __future__ import annotations

import argparse
from typing import Final

from serdab.cli.messages import Context
from serdab.cli.parsing import add_freshness, freshness_of, read_key
from serdab.cli.progress import shown_progress

SUMMARY: Final = "bind the writable layer to an image that was sealed anew"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--image-key", metavar="FILE", help="the key of the image; - reads standard input"
    )
    add_freshness(parser)


def main(args: argparse.Namespace, context: Context) -> int:
    """Bind, then say what belongs to the image now."""
    from serdab.cli.inuse import naming_service
    from serdab.instance.layout import Instance
    from serdab.instance.rebind import rebind_layers
    from serdab.linux.process import forbid_core

    forbid_core()
    instance = Instance.open(context.instance, sources=False)
    key = None if args.image_key is None else read_key(args.image_key, context.say)
    with shown_progress(context) as progress, naming_service(instance.path, context):
        result = rebind_layers(
            instance,
            key,
            freshness=freshness_of(args).placed_outside(instance.path),
            say=context.say,
            progress=progress,
        )
    lines = [f"rebound   {path}" for path in result.bound]
    lines += [f"unchanged {path}" for path in result.unchanged]
    fields: dict[str, object] = {
        "root_mac": result.root_mac.hex(),
        "bound": result.bound,
        "unchanged": result.unchanged,
    }
    context.result(fields, *([] if context.quiet else lines or ["no writable layer"]))
    return 0
