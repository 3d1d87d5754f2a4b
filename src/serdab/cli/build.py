# SPDX-License-Identifier: Apache-2.0
"""``serdab build``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Final

from serdab.cli.messages import Context
from serdab.cli.parsing import add_occlum, add_signing, read_key, say_occlum, signer_of

SUMMARY: Final = "seal initfs/ and image/, write and sign the measurements"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_signing(parser)
    parser.add_argument("--image-key", metavar="FILE", help="encrypt the image under this key")
    parser.add_argument(
        "--buildin-image-key",
        action="store_true",
        help="put the image key in clear into the init FS: it is public then",
    )
    parser.add_argument("-f", "--force", action="store_true", help="seal again what is unchanged")
    add_occlum(parser, "--sgx-mode", "--enable-edmm", "--config-id", "--config-svn", "--init-ra")


def main(args: argparse.Namespace, context: Context) -> int:
    """Build, then print the measurements."""
    from serdab.instance.build import BuildRequest, build
    from serdab.instance.layout import Instance
    from serdab.trust.signing import development_signer

    say_occlum(args, context)
    instance = Instance.open(context.instance)
    signer = signer_of(args) or development_signer()
    if args.sign_key is None:
        context.say(f"signed by the development key {signer.origin}")
    key = None if args.image_key is None else read_key(args.image_key)
    request = BuildRequest(
        signer, image_key=key, builtin_key=args.buildin_image_key, force=args.force
    )
    progress = _progress(context)
    try:
        result = build(instance, request, say=context.say, progress=progress)
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
    text = "\n".join(f"{name:10}{value}" for name, value in values.items())
    done = " and ".join(result.sealed) or "nothing, all was up to date"
    kind = "debuggable" if result.debuggable else "production"
    text = f"{text}\nimage     {result.image_type}\nplatform  {result.platform}"
    text = f"{text}\nkind      {kind}\nsealed    {done}"
    fields: dict[str, object] = {
        **values,
        "image_type": result.image_type,
        "platform": result.platform,
        "debuggable": result.debuggable,
        "sealed": list(result.sealed),
        "signer": result.signer_origin,
    }
    context.result(fields, "" if context.quiet else text)
    return 0


def _progress(context: Context) -> Callable[[int], None] | None:
    """Return what shows the bytes that were sealed, on a terminal only."""
    if context.quiet or context.as_json or not sys.stderr.isatty():
        return None
    shown = -1

    def show(count: int) -> None:
        nonlocal shown
        if count >> 20 != shown:
            shown = count >> 20
            print(f"\rsealing: {shown} MiB", end="", file=sys.stderr, flush=True)

    return show
