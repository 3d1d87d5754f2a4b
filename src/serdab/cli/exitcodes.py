# SPDX-License-Identifier: Apache-2.0
"""Exit codes: promised in docs/cli-abi.md; a number is never given another meaning.

The codes of errors stand with their classes (``serdab.errors``); this module holds the others and
the translation for ``run`` and ``exec``, whose own codes are those of the program.
"""

from __future__ import annotations

from serdab.errors import Error, NotAllowedError, NotFoundError

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
REFUSED: Final = 3
WRONG_KEY: Final = 4
BUSY: Final = 5
LACKING: Final = 6
NOT_STARTED: Final = 125
NOT_ALLOWED: Final = 126
NOT_FOUND: Final = 127
SIGNAL_BASE: Final = 128
INTERRUPTED: Final = SIGNAL_BASE + 2


def of_error(error: Error, *, starts_program: bool) -> int:
    """Return the exit code of a command that failed with ``error``."""
    if starts_program and not isinstance(error, NotAllowedError | NotFoundError):
        return NOT_STARTED
    return error.exit_code
