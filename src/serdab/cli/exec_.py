# SPDX-License-Identifier: Apache-2.0
"""``serdab exec PROGRAM [ARG...]``."""

from __future__ import annotations

from serdab.cli.messages import Context
from serdab.cli.parsing import add_program, program_of

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    import argparse
    from typing import Final

SUMMARY: Final = "run a program in the instance's service"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_program(parser)


def main(args: argparse.Namespace, context: Context) -> int:
    """Run it; the exit code is the program's."""
    command = program_of(args, "exec")
    from serdab.instance.layout import Instance
    from serdab.service.client import execute

    instance = Instance.open(context.instance, sources=False).path
    return execute(instance, command, on_wait=context.say)
