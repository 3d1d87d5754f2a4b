# SPDX-License-Identifier: Apache-2.0
"""argparse, with our errors instead of its own exit, and with a help that fits the terminal.

Above: ``main``, which asks it for whatever ``plainwords`` does not read. Below: ``messages``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from serdab.cli.messages import Context, show
from serdab.errors import UsageError

#: Wide enough for every line that is written here; nobody reads longer ones with ease.
_WIDTH: Final = 88


def wrapped(line: str) -> str:
    """Return a line of a help text, broken where the terminal is narrower.

    What follows its last run of spaces is the text; the rest goes below that, unless there is no
    room for it.
    """
    import re
    import shutil
    import textwrap

    width = min(shutil.get_terminal_size().columns, _WIDTH)
    if len(line) <= width:
        return line
    column = re.match(r" *\S.*?  +(?=\S)", line)
    indent = column.end() if column is not None and column.end() < width // 2 else 4
    return "\n".join(
        textwrap.wrap(
            line,
            width,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


class _Global(argparse.Action):
    """An option that all verbs have: it counts from where it is read, for errors too."""

    def __init__(self, context: Context, flags: Sequence[str], *, takes_value: bool) -> None:
        name = flags[-1].strip("-")
        super().__init__(
            flags,
            name,
            nargs=None if takes_value else 0,
            default=argparse.SUPPRESS,
            metavar=name,
            help=argparse.SUPPRESS,
        )
        self._context = context

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        _namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        _option: str | None = None,
    ) -> None:
        self._context.take(self.option_strings[-1], values if isinstance(values, str) else "")


class VerbParser(argparse.ArgumentParser):
    """A parser for one verb: no abbreviations, errors are ``UsageError``."""

    def __init__(self, verb: str, summary: str, context: Context) -> None:
        super().__init__(
            prog=f"serdab {verb}",
            description=summary,
            epilog="Options of all verbs, -C DIR for one: `serdab --help`.",
            allow_abbrev=False,
        )
        self._verb = verb
        for flags in (("-C", "--instance"), ("--log-level",)):
            self._add_action(_Global(context, flags, takes_value=True))
        for flags in (("--json",), ("-q", "--quiet"), ("-v", "--verbose")):
            self._add_action(_Global(context, flags, takes_value=False))

    def print_help(self, _file: object = None) -> None:
        """Print the help to standard output."""
        show(self.format_help(), end="")

    def format_help(self) -> str:
        """Return the help, no wider than the terminal."""
        return "\n".join(map(wrapped, super().format_help().split("\n")))

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the process.

        Raises:
            UsageError: always.
        """
        usage = " ".join(self.format_usage().split()).removeprefix("usage: ")
        raise UsageError(f"{self._verb}: {message}", hint=f"usage: {usage}")
