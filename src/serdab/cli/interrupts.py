# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C (SIGINT) from the first instruction of a command to its last: it dies of the signal.

A shell leaves its loop only for a child that was killed by SIGINT, whatever its exit code. So:

* before there is a verb, SIGINT has its default meaning. A KeyboardInterrupt in the middle of an
  import prints a traceback, or is lost: the interpreter runs callbacks there whose exceptions it
  ignores. Nothing has to be put in order until then;
* a verb that puts something in order hears of it as a KeyboardInterrupt (``hear``). Afterwards the
  signal is left pending (``leave_pending``), so that what is to be said can be said;
* at the end it has its default meaning again (``end``).

What comes while the interpreter itself starts, before any code of ours, ``door.c`` holds back.

Above: ``door``, ``main``, ``foreground``. Below: nothing. It is on the way of every
boot, so it imports the core of the signal module, and not the enumerations above it.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    import signal as _signal
    from typing import NoReturn
else:
    import _signal

_KEYBOARD = frozenset({_signal.SIGINT, _signal.SIGQUIT})


def let_end_us() -> None:
    """Give SIGINT its default meaning, unless it is ignored."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def hear_of_children() -> None:
    """Let wait(2) tell how our children end: where SIGCHLD is ignored it does not."""
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)


def hear() -> None:
    """Let SIGINT be a KeyboardInterrupt again, for what has to be put in order."""
    if _signal.getsignal(_signal.SIGINT) is _signal.SIG_DFL:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def leave_pending() -> None:
    """Send ourselves the signal that was heard, held back: we die of it at the end."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGINT})
    os.kill(os.getpid(), _signal.SIGINT)


def let_through() -> None:
    """Let through what was held back, up to now or to the very end; it takes its effect."""
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _KEYBOARD)


def end(code: int) -> NoReturn:
    """Leave with an exit code, or die of what is pending or comes while the interpreter ends.

    Where all output was taken, no thread is to be waited for and nobody wanted to be called at the
    end, the interpreter is not taken apart: a tenth of a short command.
    """
    is_all_out = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            # Whoever read it had enough. What is left would be a failure when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except (OSError, ValueError):
            is_all_out = False  # no failure of the verb's: the interpreter says what it says
    let_end_us()
    let_through()
    threads = sys.modules.get("threading")
    is_alone = threads is None or all(thread.daemon for thread in threads.enumerate()[1:])
    if is_all_out and is_alone and "atexit" not in sys.modules:
        os._exit(code)
    sys.exit(code)
