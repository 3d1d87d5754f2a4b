# SPDX-License-Identifier: Apache-2.0
"""The signals of a client, as events beside its other ones.

Above: ``client``. Below: ``linux.signalfd``, ``libos.signals``. All are held back, so what ends or
stops the program never ends or stops us before we know.
"""

from __future__ import annotations

import os
import signal

from serdab.libos.signals import FORWARDED
from serdab.linux.signalfd import Sent, open_signals, read_signals

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

#: Passed on to the program; but one that was ignored when we started stays ignored.
_PASSED_ON: Final = FORWARDED - {signal.SIGWINCH}
#: Acted on by ourselves.
_ACTED_ON: Final = frozenset({signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH})
#: Held back: whether we may touch the terminal is looked up before we do.
_HELD: Final = frozenset({signal.SIGTTOU, signal.SIGTTIN})


class Signals:
    """From its making to the end of the process signals are events."""

    def __init__(self) -> None:
        wanted = {s for s in _PASSED_ON if signal.getsignal(s) is not signal.SIG_IGN} | _ACTED_ON
        # Ignored by default, and what is ignored is dropped before anybody can read it.
        for number in (signal.SIGCONT, signal.SIGWINCH):
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, wanted | _HELD)
        self._fd = open_signals(wanted)

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is one."""
        return self._fd

    def take(self) -> list[Sent]:
        """Return what came."""
        return read_signals(self._fd)


def stop_ourselves(*, alone: bool) -> None:
    """Stop this process, or all of its job, as SIGTSTP does; return when it is continued.

    The kernel decides, as it does for any program: where nobody could continue us (an orphaned
    process group, setpgid(2)) it returns at once.
    """
    before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    # Ours is pending until it is let through, as one with any that came before.
    os.kill(os.getpid() if alone else 0, signal.SIGTSTP)
    held = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    signal.pthread_sigmask(signal.SIG_SETMASK, held)
    signal.signal(signal.SIGTSTP, before if before is not None else signal.SIG_DFL)
