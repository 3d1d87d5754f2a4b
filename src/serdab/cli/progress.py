# SPDX-License-Identifier: Apache-2.0
"""How far a long verb is: one line on a terminal, which goes when the verb has ended.

Above: ``build``, ``rekey``, ``fsck``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serdab.cli.messages import Context
from serdab.errors import printable

Progress = Callable[[str, int], None]


@contextmanager
def shown_progress(context: Context) -> Iterator[Progress | None]:
    """Give what shows ``(label, bytes)``; None where nobody would see it."""
    if context.quiet or context.as_json or not sys.stderr.isatty():
        yield None
        return
    shown = ("", -1)

    def show(label: str, count: int) -> None:
        nonlocal shown
        if (label, count >> 20) != shown:
            shown = (label, count >> 20)
            _replace_line(f"{printable(os.path.basename(label))}: {count >> 20} MiB")

    try:
        yield show
    finally:
        _replace_line("")


def _replace_line(text: str) -> None:
    try:
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    except OSError:
        pass  # the terminal has hung up
