# SPDX-License-Identifier: Apache-2.0
"""``serdab rekey [--sign-key PEM] [--sign-tool EXE] --image-key OLD --new-image-key NEW``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Final

from serdab.cli.messages import Context
from serdab.cli.parsing import add_signing, read_key, signer_of

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
        signer_of(args), old=read_key(args.image_key), new=read_key(args.new_image_key)
    )
    progress = _progress(context)
    try:
        with naming_service(instance.path):
            result = rekey(instance, request, say=context.say, progress=progress)
    finally:
        if progress is not None:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    values = {
        "mrenclave": str(result.mrenclave),
        "mrsigner": str(result.mrsigner),
        "conf-mac": str(result.conf_mac),
        "init-mac": result.init_mac.hex(),
        "root-mac": result.root_mac.hex(),
    }
    done = "image and writable layer" if result.has_layer else "image"
    if result.was_done:
        context.say(f"{done} had the new key already; nothing was left to do")
    text = "\n".join(f"{name:10}{value}" for name, value in values.items())
    fields: dict[str, object] = {
        **values,
        "writable_layer": result.has_layer,
        "was_done": result.was_done,
    }
    context.result(fields, "" if context.quiet else f"{text}\nrekeyed   {done}")
    return 0


def _progress(context: Context) -> Callable[[str, int], None] | None:
    """Return what shows the bytes that were sealed, on a terminal only."""
    if context.quiet or context.as_json or not sys.stderr.isatty():
        return None
    shown = ("", -1)

    def show(label: str, count: int) -> None:
        nonlocal shown
        if (label, count >> 20) != shown:
            shown = (label, count >> 20)
            print(f"\r\033[K{label}: {count >> 20} MiB", end="", file=sys.stderr, flush=True)

    return show
