# SPDX-License-Identifier: Apache-2.0
"""``serdab init``."""

from __future__ import annotations

import argparse
from typing import Final

from serdab.cli.messages import Context
from serdab.cli.parsing import add_occlum, say_occlum

SUMMARY: Final = "make the current directory an instance"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_occlum(parser, "--init-ra")


def main(args: argparse.Namespace, context: Context) -> int:
    """Make it."""
    say_occlum(args, context)
    from serdab.instance.create import init_instance

    fill = None
    if context.is_occlum:
        from serdab.instance.skeleton import lay_c_library

        fill = lay_c_library
    instance = init_instance(context.instance, fill=fill)
    context.result({"instance": instance.path}, f"{instance.path} is an instance")
    return 0
