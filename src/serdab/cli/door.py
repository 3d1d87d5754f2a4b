# SPDX-License-Identifier: Apache-2.0
"""What the command ``serdab`` found before an interpreter ran, and the first that is done then.

``init/src/door.c`` is that command. It holds SIGINT back, puts a directory aside that is standard
input, and says in the environment what signals meant: an interpreter would show a traceback, end,
and forget. Here all of it is put back. ``python -m serdab`` comes without it, and lacks just that.

Above: ``__main__``, the script beside the command, ``packaged``. Below: ``interrupts``, ``main``.
It is on the way of every boot, so it imports next to nothing.
"""

from __future__ import annotations

import gc
import os
import sys

from serdab.cli import interrupts

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import NoReturn

_VARIABLE = "SERDAB_DOOR"
_SIGPIPE = 13
_SIGXFSZ = 25
_COLLECT_EVERY = 50_000  # objects


class Found:
    """``ignored``: what the caller ignores of that which an interpreter ignores by itself.

    ``name``: by which name the command was called, as far as ``door.c`` was on the way.
    """

    __slots__ = ("ignored", "name")

    def __init__(self) -> None:
        self.ignored: tuple[int, ...] = ()
        self.name = ""


#: Of this process.
FOUND = Found()


def enter() -> None:
    """Put back what was found, and let Ctrl-C end us. To be called once, first of all."""
    told = os.environ.pop(_VARIABLE, "").split(" ", 2)
    is_held_by_caller = False
    if len(told) == 3 and len(told[0]) == 3:
        signals, directory, FOUND.name = told
        wanted = zip(signals, (_SIGPIPE, _SIGXFSZ), strict=False)
        FOUND.ignored = tuple(number for state, number in wanted if state == "i")
        is_held_by_caller = signals[2] == "b"
        _put_directory_back(directory)
    interrupts.let_end_us()
    interrupts.hear_of_children()
    if not is_held_by_caller:
        interrupts.let_through()


def _put_directory_back(text: str) -> None:
    try:
        fd = int(text)
        os.dup2(fd, 0)
        os.close(fd)
    except (ValueError, OSError):
        pass  # none was put aside, or somebody else set the variable


def main() -> NoReturn:
    """Be the command."""
    enter()
    # Imports make many objects and no cycles: looks for these were a tenth of a short command.
    gc.set_threshold(_COLLECT_EVERY, 20, 100)
    from serdab.cli.main import main as command_line

    interrupts.end(command_line([FOUND.name or sys.argv[0], *sys.argv[1:]]))
