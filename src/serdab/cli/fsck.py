# SPDX-License-Identifier: Apache-2.0
"""``serdab fsck [--image-key FILE] [--lower DIR] [--repair --output DIR] [DIR]``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from serdab.cli import exitcodes
from serdab.cli.messages import Context
from serdab.cli.progress import shown_progress
from serdab.errors import UsageError

if TYPE_CHECKING:
    from serdab.instance.check import Checked

SUMMARY: Final = "verify a sealed file system to the last byte"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--image-key", metavar="FILE", help="the key; - reads standard input")
    parser.add_argument("--lower", metavar="DIR", help="the image that a writable DIR belongs to")
    parser.add_argument(
        "--repair", action="store_true", help="copy what verifies into a new volume"
    )
    parser.add_argument("--output", metavar="DIR", help="where the repaired volume goes")
    parser.add_argument("directory", nargs="?", metavar="DIR", help="default: the instance's all")


def main(args: argparse.Namespace, context: Context) -> int:
    """Check, or repair, and print what is damaged or rolled back; 0 if nothing is, else 3."""
    if args.repair != (args.output is not None):
        raise UsageError("fsck: --repair and --output go together")
    from serdab.cli.inuse import naming_service
    from serdab.instance import check
    from serdab.instance.layout import Instance
    from serdab.linux.outside import Walk
    from serdab.linux.process import hide_memory

    hide_memory()  # without an image key the automatic one is derived here
    key = None
    if args.image_key is not None:
        from serdab.cli.parsing import read_key

        key = read_key(args.image_key, context.say)
    directory = None if args.directory is None else Walk().directory(args.directory)
    lower = None if args.lower is None else Walk().directory(args.lower)
    with shown_progress(context) as progress:
        if args.repair:
            instance = None if directory is not None else Instance.open_built(context.instance)
            results = [
                check.repair(
                    instance, directory, args.output, key=key, lower=lower, progress=progress
                )
            ]
        elif directory is not None:
            results = [check.check_directory(directory, key, lower, progress)]
        else:
            whole = Instance.open_built(context.instance)
            with naming_service(whole.path, context):
                results = check.check_instance(whole, key, progress)
    _print(results, context)
    clean = all(checked.is_clean() for checked in results)
    return exitcodes.DONE if clean else exitcodes.REFUSED


def _print(results: list[Checked], context: Context) -> None:
    fields: dict[str, object] = {}
    lines = []
    for checked in results:
        report = checked.report
        fields[checked.label] = {
            "clean": checked.is_clean(),
            "files": report.files,
            "directories": report.directories,
            "content_bytes": report.content_bytes,
            "damaged": report.damaged,
            "rolled-back": checked.rolled_back.as_dict() if checked.rolled_back else None,
            "root-mac": checked.root_mac.hex(),
        }
        found = [f"{len(report.damaged)} damaged"] if report.damaged else []
        found += ["rolled back"] if checked.rolled_back else []
        state = ", ".join(found) or "clean"
        lines.append(f"{checked.label}: {state}, {report.files} files, "
                     f"{report.content_bytes} bytes verified")  # fmt: skip
        if checked.root_mac:
            lines.append(f"  root MAC {checked.root_mac.hex()}")
        if checked.rolled_back:
            lines += [f"  {checked.rolled_back}", f"  hint: {checked.rolled_back.hint}"]
        lines.extend(f"  {path}: {problem}" for path, problem in sorted(report.damaged.items()))
    context.result(fields, *lines)
