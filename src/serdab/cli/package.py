# SPDX-License-Identifier: Apache-2.0
"""``serdab package [NAME.tar.gz]``."""

from __future__ import annotations

import argparse
import os
from typing import Final

from serdab.cli.messages import Context
from serdab.cli.parsing import add_signing, read_key, signer_of
from serdab.errors import EnvironmentRefused, UsageError

SUMMARY: Final = "a signed tarball that runs where no Serdab is installed"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_signing(parser)
    parser.add_argument(
        "--debug", action="store_true", help="also a debuggable or simulation instance"
    )
    parser.add_argument(
        "--buildin-image-key",
        action="store_true",
        help="also an instance that shows its image key to whoever has the package",
    )
    parser.add_argument(
        "--image-key", metavar="FILE", help="verify every byte of an encrypted image with this key"
    )
    parser.add_argument(
        "--public-key", metavar="FILE", help="write the signer's public key there, as PEM"
    )
    parser.add_argument("name", nargs="?", metavar="NAME.tar.gz", help="default: the instance's")


def main(args: argparse.Namespace, context: Context) -> int:
    """Write the package, then say what it is."""
    from serdab.instance.layout import Instance, package_parts
    from serdab.instance.package import PackageRequest, package
    from serdab.instance.packageoutput import output_path
    from serdab.trust.codetree import package_root

    if package_parts(os.path.realpath(package_root())):
        raise EnvironmentRefused(
            "a package makes no packages: its libraries are not installed ones",
            expected="an installed Serdab",
            found="the copy that a package carries",
            hint="pass the tarball on as it is, with its signature",
        )
    instance = Instance.open_built(context.instance)
    output = output_path(instance, args.name)
    signer = signer_of(args)
    if signer is None:
        raise UsageError(
            "no key to sign the package with",
            expected="the key that signed the build",
            found="no --sign-key, and no development key of this user",
            hint="--sign-key PEM names the key",
        )
    key = None if args.image_key is None else read_key(args.image_key, context.say)
    request = PackageRequest(
        output,
        signer,
        debug=args.debug,
        builtin_key=args.buildin_image_key,
        image_key=key,
        public_key=args.public_key,
    )
    made = package(instance, request, say=context.say)
    fields: dict[str, object] = {
        "package": made.path,
        "signature": made.written.signature,
        "sha256": made.written.sha256,
        "size_bytes": made.written.size_bytes,
        "mrenclave": str(made.descriptor.mrenclave()),
        "mrsigner": str(signer.public.mrsigner()),
        "platform": made.descriptor.platform,
        "runs_on": made.runs_on,
    }
    lines = [f"{name:11}{fields[name]}" for name in fields if name != "size_bytes"]
    context.result(fields, *([] if context.quiet else lines))
    return 0
