# SPDX-License-Identifier: Apache-2.0
"""How errors, notes and results look, for people and as JSON."""

from __future__ import annotations

import sys
from typing import Final

from serdab.errors import Error, printable

PROGRAM: Final = "serdab"


class Context:
    """What the options before the verb say."""

    __slots__ = ("as_json", "instance", "log_level", "quiet", "verbose")

    def __init__(self) -> None:
        self.instance = "."
        self.log_level = "notice"
        self.as_json = False
        self.quiet = False
        self.verbose = False

    def shown_level(self) -> str:
        """Return up to which level lines for the operator are shown."""
        if self.verbose:
            return "debug"
        return "error" if self.quiet and self.log_level == "notice" else self.log_level

    def say(self, line: str) -> None:
        """Print a note to standard error, unless -q."""
        if not self.quiet:
            self.warn(line)

    def warn(self, line: str) -> None:
        """Print a line to standard error. That nobody reads it (a hang-up) is no failure."""
        try:
            print(printable(f"{PROGRAM}: {line}"), file=sys.stderr, flush=True)
        except OSError:
            pass

    def tell(self, line: str, end: str = "\n") -> None:
        """Print one line to standard output, whatever names stand in it."""
        print(printable(line), end=end, flush=True)

    def result(self, fields: dict[str, object], *lines: str) -> None:
        """Print a result: ``fields`` with --json, else ``lines``, each of which stays one line."""
        if self.as_json:
            import json

            print(json.dumps(fields, sort_keys=True))
        else:
            for line in lines:
                print(printable(line))
        sys.stdout.flush()


def report(error: Error, context: Context, *, starts_program: bool) -> None:
    """Print an error: one line and a hint, or one JSON object.

    The JSON goes to standard output, but for a verb that starts a program: there standard output
    is the program's, so it goes to standard error. Its exit code is that of the error's kind, also
    where the command itself exits with 125.
    """
    if context.as_json:
        import json

        print(
            json.dumps(error.as_dict(), sort_keys=True),
            file=sys.stderr if starts_program else sys.stdout,
            flush=True,
        )
        return
    # A name with a newline or an escape sequence must not forge a second message.
    print(printable(f"{PROGRAM}: error: {_with_kind(error, starts_program)}"), file=sys.stderr)
    if error.hint:
        print(printable(f"hint: {error.hint}"), file=sys.stderr)


def _with_kind(error: Error, starts_program: bool) -> str:  # noqa: FBT001 - private, one caller
    # 125 hides the kind, so the message names it.
    return f"{error} [{error.kind}]" if starts_program else str(error)
