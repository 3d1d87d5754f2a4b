# SPDX-License-Identifier: Apache-2.0
"""``serdab print NAME``."""

from __future__ import annotations

import argparse
from typing import Final

from serdab.cli.messages import Context

SUMMARY: Final = "print one measurement of the built instance"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from serdab.instance.measurements import NAMES

    parser.add_argument("name", choices=NAMES, metavar="NAME", help="which: " + ", ".join(NAMES))


def main(args: argparse.Namespace, context: Context) -> int:
    """Print 64 hexadecimal digits."""
    from serdab.instance.layout import Instance
    from serdab.instance.measurements import read_measurements

    measurements = read_measurements(Instance.open_built(context.instance))
    value = measurements.value(args.name)
    context.result(
        {"name": args.name, "value": value, "platform": measurements.descriptor.platform}, value
    )
    return 0
