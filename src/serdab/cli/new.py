# SPDX-License-Identifier: Apache-2.0
"""``serdab new PATH``."""

from __future__ import annotations

import argparse
from typing import Final

from serdab.cli.messages import Context
from serdab.cli.parsing import add_occlum, say_occlum

SUMMARY: Final = "make a directory and an instance in it"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("path", metavar="PATH", help="a path where nothing is yet")
    add_occlum(parser, "--init-ra")


def main(args: argparse.Namespace, context: Context) -> int:
    """Make it."""
    say_occlum(args, context)
    from serdab.instance.create import new_instance

    fill = None
    if context.is_occlum:
        from serdab.instance.skeleton import lay_c_library

        fill = lay_c_library
    instance = new_instance(args.path, fill=fill)
    context.result({"instance": instance.path}, f"{instance.path} is an instance")
    return 0
