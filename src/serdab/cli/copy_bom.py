# SPDX-License-Identifier: Apache-2.0
"""``serdab copy-bom -f FILE --root DIR``."""

from __future__ import annotations

import argparse
from typing import Final

from serdab.cli.messages import Context

SUMMARY: Final = "fill a tree from a BOM, with the libraries its programs need"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-f", "--file", required=True, help="the BOM")
    parser.add_argument("--root", required=True, metavar="DIR", help="the tree to fill")
    parser.add_argument(
        "-i",
        "--include-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="where included BOMs are looked up, after the BOM's own directory; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")


def main(args: argparse.Namespace, context: Context) -> int:
    """Fill the tree."""
    from serdab.cli.named import notice_of_bom
    from serdab.instance.bom import copy_bom

    root = context.inside(args.root)
    notice_of_bom(args.file, root, context)
    summary = copy_bom(
        args.file,
        root,
        include_dirs=args.include_dir,
        dry_run=args.dry_run,
        say=context.say,
        tell=context.tell if (args.dry_run or context.verbose) and not context.as_json else None,
    )
    lines = [
        f"{summary.files} files, {summary.libraries} libraries, {summary.directories} directories, "
        f"{summary.links} links in {summary.root}"
    ]
    context.result(
        {
            "root": summary.root,
            "files": summary.files,
            "libraries": summary.libraries,
            "directories": summary.directories,
            "links": summary.links,
            "copied_bytes": summary.copied_bytes,
            "dry_run": args.dry_run,
        },
        *([] if context.quiet else lines),
    )
    return 0
