# SPDX-License-Identifier: Apache-2.0
"""How errors, notes and results look, for people and as JSON."""

from __future__ import annotations

import os
import sys

from serdab.errors import Error, UsageError, printable

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

PROGRAM: Final = "serdab"


#: Occlum's words and ours, by the level each means.
LOG_LEVELS: Final = {
    "off": "off",
    "error": "error",
    "warn": "warning",
    "warning": "warning",
    "info": "info",
    "debug": "debug",
    "trace": "debug",
}


class Context:
    """What the options that all verbs have say, before the verb or after it.

    ``directory`` is what ``-C`` names; ``instance`` is that, once :meth:`enter` has looked at it.
    ``is_occlum``: the command was called by the name that scripts written for Occlum know.
    """

    __slots__ = ("as_json", "directory", "instance", "is_occlum", "log_level", "quiet", "verbose")

    def __init__(self, instance: str = ".") -> None:
        self.directory: str | None = None
        self.instance = instance
        self.is_occlum = False
        self.log_level = "notice"
        self.as_json = False
        self.quiet = False
        self.verbose = False

    def take(self, option: str, value: str = "") -> None:
        """Take note of an option by its long name.

        Raises:
            UsageError: there is no such log level.
        """
        match option:
            case "--instance":
                self.directory = value
            case "--log-level":
                self.log_level = _log_level(value)
            case "--json":
                self.as_json = True
            case "--quiet":
                self.quiet = True
            case "--verbose":
                self.verbose = True

    def take_occlum_level(self, text: str) -> None:
        """Take the log level that scripts written for Occlum set in the environment."""
        if text.lower() in LOG_LEVELS:
            self.log_level = LOG_LEVELS[text.lower()]
        elif text:
            self.say(f"OCCLUM_LOG_LEVEL: no such level, {text}; known: {', '.join(LOG_LEVELS)}")

    def enter(self) -> None:
        """Take the directory that ``-C`` names for the instance.

        Raises:
            UsageError: there is no such directory.
        """
        if self.directory is None:
            return
        try:
            os.stat(os.path.join(self.directory, ""))
        except OSError as exc:
            raise UsageError(
                "not an instance",
                subject=self.directory,
                expected="a directory that `serdab new` has made",
                found=os.strerror(exc.errno or 0),
                hint="-C names the instance; `serdab new PATH` makes one",
            ) from exc
        self.instance = self.directory

    def inside(self, path: str) -> str:
        """Return where a path lies that names a part of the instance."""
        return path if self.directory is None else os.path.join(self.directory, path)

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
        show(printable(line), end)

    def result(self, fields: dict[str, object], *lines: str) -> None:
        """Print a result: ``fields`` with --json, else ``lines``, each of which stays one line."""
        if self.as_json:
            import json

            show(json.dumps(fields, sort_keys=True))
        else:
            for line in lines:
                show(printable(line))


def _log_level(text: str) -> str:
    if text not in LOG_LEVELS:
        raise UsageError(
            "unknown log level",
            subject="--log-level",
            expected="one of " + ", ".join(LOG_LEVELS),
            found=text,
            hint="without the option errors and notices are shown",
        )
    return LOG_LEVELS[text]


def show(text: str, end: str = "\n") -> None:
    """Print; that a reader has enough (``| head -1``) changes neither work nor verdict."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
