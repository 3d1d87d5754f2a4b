# SPDX-License-Identifier: Apache-2.0
"""``serdab rekey [--sign-key PEM] [--sign-tool EXE] --image-key OLD --new-image-key NEW``."""

from __future__ import annotations

import argparse
from typing import Final

from serdab.cli.measurements import fields_of, lines_of
from serdab.cli.messages import Context
from serdab.cli.parsing import add_signing, read_key, signer_of
from serdab.cli.progress import shown_progress

SUMMARY: Final = "give image and writable layer another key"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_signing(parser)
    parser.add_argument(
        "--image-key", metavar="OLD", required=True, help="the key now; - reads standard input"
    )
    parser.add_argument(
        "--new-image-key",
        metavar="NEW",
        required=True,
        help="the key from now on; - reads (the next line of) standard input",
    )


def main(args: argparse.Namespace, context: Context) -> int:
    """Change the key, then print the measurements."""
    from serdab.cli.inuse import naming_service
    from serdab.instance.layout import Instance
    from serdab.instance.rekey import RekeyRequest, rekey
    from serdab.linux.process import forbid_core

    forbid_core()
    instance = Instance.open(context.instance, sources=False)
    request = RekeyRequest(
        signer_of(args),
        old=read_key(args.image_key, context.say),
        new=read_key(args.new_image_key, context.say),
    )
    with shown_progress(context) as progress, naming_service(instance.path, context):
        result = rekey(instance, request, say=context.say, progress=progress)
    values = fields_of(result)
    done = "image and writable layer" if result.has_layer else "image"
    if result.was_done:
        # Nothing is sealed with the old key any more that it could be compared with.
        context.say(
            f"{done} had the new key already: nothing was left to do, and whether "
            "OLD was the old key was not checked"
        )
        done = "nothing, all was done; the old key was not checked"
    fields: dict[str, object] = {
        **values,
        "writable_layer": result.has_layer,
        "was_done": result.was_done,
    }
    lines = [*lines_of(values), f"rekeyed   {done}"]
    context.result(fields, *([] if context.quiet else lines))
    return 0
