# SPDX-License-Identifier: Apache-2.0
"""Command lines without anything unusual, read without argparse, which is slow to import.

Above: ``main``. Below: ``messages``. A quarter of what ``exec`` costs would be argparse and what it
brings. What is not plain (a mistake, ``--help``, an abbreviation) is not read here: argparse does,
and says what it always says. Where both read a command line they read the same.
"""

from __future__ import annotations

from types import SimpleNamespace

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from serdab.cli.messages import Context

#: argparse.REMAINDER: all that is left of the command line.
REMAINDER = "..."
_GLOBAL_FLAGS = {
    "--json": "--json",
    "-q": "--quiet",
    "--quiet": "--quiet",
    "-v": "--verbose",
    "--verbose": "--verbose",
}
_GLOBAL_VALUES = {
    "-C": "--instance",
    "--instance": "--instance",
    "--log-level": "--log-level",
}


class _Declared:
    """Takes what a verb declares as argparse would: long options and a rest, nothing else."""

    __slots__ = ("flags", "prog", "rest", "usage", "values")

    def __init__(self) -> None:
        self.flags: dict[str, str] = {}
        self.values: dict[str, str] = {}
        self.rest: str | None = None
        self.prog = self.usage = ""

    def add_argument(
        self, name: str, *, action: str = "", nargs: str = "", metavar: str = "", help: str = ""
    ) -> None:  # named as argparse names them; the last two are for its help
        if nargs == REMAINDER:
            self.rest = name
        else:
            declared = self.flags if action == "store_true" else self.values
            declared[name] = name.removeprefix("--").replace("-", "_")


def read(
    configure: Callable[[_Declared], None], words: Sequence[str], context: Context
) -> SimpleNamespace | None:
    """Return what argparse would, or None: it is to be asked.

    Raises:
        UsageError: an option that all verbs have has a value that it cannot have.
    """
    declared = _Declared()
    configure(declared)
    out: dict[str, object] = dict.fromkeys(declared.values.values())
    out |= dict.fromkeys(declared.flags.values(), False)
    taken: list[tuple[str, str]] = []
    left = list(reversed(words))
    while left and left[-1].startswith("-"):
        word = left.pop()
        if word in declared.flags:
            out[declared.flags[word]] = True
        elif word in _GLOBAL_FLAGS:
            taken.append((_GLOBAL_FLAGS[word], ""))
        elif not left or (left[-1].startswith("-") and left[-1] != "-"):
            return None
        elif word in declared.values:
            out[declared.values[word]] = left.pop()
        elif word in _GLOBAL_VALUES:
            taken.append((_GLOBAL_VALUES[word], left.pop()))
        else:
            return None
    if (declared.rest is None) == bool(left):
        return None
    if declared.rest is not None:
        out[declared.rest] = left[::-1]
    for option, value in taken:
        context.take(option, value)
    return SimpleNamespace(**out)
