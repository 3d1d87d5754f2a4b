# SPDX-License-Identifier: Apache-2.0
"""``serdab build``."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Final

from serdab.cli.measurements import fields_of, lines_of
from serdab.cli.messages import Context
from serdab.cli.parsing import add_occlum, add_signing, read_key, say_occlum, signer_of
from serdab.cli.progress import shown_progress

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
    parser.add_argument(
        "--owners",
        metavar="tree|FILE",
        default="",
        help="who owns what is in image/: as on the host, or as in a tar archive or mtree list",
    )
    parser.add_argument("-f", "--force", action="store_true", help="seal again what is unchanged")
    parser.add_argument(
        "--check",
        action="store_true",
        help="say what changed since the last signed build; seal, sign and write nothing",
    )
    add_occlum(parser, "--sgx-mode", "--enable-edmm", "--config-id", "--config-svn", "--init-ra")


def main(args: argparse.Namespace, context: Context) -> int:
    """Build, then print the measurements."""
    if args.check:
        return _check(args, context)
    from serdab.instance.build import BuildRequest, build
    from serdab.instance.layout import Instance
    from serdab.trust.signing import development_signer

    say_occlum(args, context)
    instance = Instance.open(context.instance)
    signer = signer_of(args) or development_signer()
    key = None if args.image_key is None else read_key(args.image_key, context.say)
    request = BuildRequest(
        signer,
        image_key=key,
        builtin_key=args.buildin_image_key,
        force=args.force,
        owners=args.owners,
    )
    with shown_progress(context) as show:
        progress = None if show is None else partial(show, "sealing")
        result = build(instance, request, say=context.say, progress=progress)
    if args.sign_key is None:
        context.say(f"signed by the development key {signer.origin}")
    values = fields_of(result)
    done = " and ".join(result.sealed) or "nothing, all was up to date"
    kind = "debuggable" if result.debuggable else "production"
    lines = [
        *lines_of(values),
        f"image     {result.image_type}",
        f"platform  {result.platform}",
        f"kind      {kind}",
        f"sealed    {done}",
    ]
    fields: dict[str, object] = {
        **values,
        "image_type": result.image_type,
        "platform": result.platform,
        "debuggable": result.debuggable,
        "sealed": list(result.sealed),
        "changes": list(result.changes),
        "signer": result.signer_origin,
    }
    context.result(fields, *([] if context.quiet else lines))
    return 0


def _check(args: argparse.Namespace, context: Context) -> int:
    """Print what a build would sign that is not signed yet."""
    from serdab.instance.build import check
    from serdab.instance.layout import Instance

    instance = Instance.open(context.instance)
    key = None if args.image_key is None else read_key(args.image_key, context.say)
    lines = check(
        instance,
        signer_of(args),
        image_key=key,
        builtin_key=args.buildin_image_key,
        say=context.say,
        owners=args.owners,
    )
    shown = lines or ("nothing changed since the last signed build",)
    context.result({"changes": list(lines)}, *shown)
    return 0
