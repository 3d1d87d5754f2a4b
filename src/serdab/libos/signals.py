# SPDX-License-Identifier: Apache-2.0
"""Signals of a caller that stands for a program: passed on, unless the program has them already.

Above: ``pal``. The caller, the kernel process and the program share a process group, so that the
terminal treats them as one job. What the terminal sends (Ctrl-C, hang-up) reaches the program
directly; what somebody sends to the caller alone must be passed on. The two can be told apart: the
kernel is the sender of the first (``SI_KERNEL``). A signal sent to the whole group by a process is
recognised by the kernel process, see ``kernel.signal_of_group``.

Ctrl-Z is not among them: the terminal stops the caller and the program alike, and continues both.
"""

from __future__ import annotations

import _thread
import os
import signal
from collections.abc import Callable
from typing import Final

#: What is passed on.
FORWARDED: Final = frozenset(
    {
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGALRM,
        signal.SIGWINCH,
    }
)
#: What ends a boot that is still under way.
ENDING: Final = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP})

_SI_KERNEL: Final = 0x80


def start_forwarding(forward: Callable[[int, int], None], on_ending: Callable[[int], bool]) -> None:
    """Hold the signals back in this thread and its later ones, and hand them over in a new one.

    ``on_ending(number)`` hears first of what would end us; it returns True if it took care.
    ``forward(number, sender)`` passes one on. A signal that was ignored when
    we started stays ignored: the program ignores it too.
    """
    wanted = {number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)

    def run() -> None:
        while True:
            info = signal.sigwaitinfo(wanted)
            if info.si_signo in ENDING and on_ending(info.si_signo):
                continue
            if info.si_code != _SI_KERNEL:
                forward(info.si_signo, info.si_pid)

    _thread.start_new_thread(run, ())


class Foreground:
    """Remembers whether we were the terminal's foreground job, and becomes it again.

    A shell inside makes jobs of its own and hands the terminal to them; when it ends, the terminal
    would belong to a job that no longer exists.
    """

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        try:
            self._was_ours = os.tcgetpgrp(fd) == os.getpgrp()
        except OSError:
            self._was_ours = False  # no terminal, or not the one that controls us

    def restore(self) -> None:
        """Take the terminal back, if it was ours."""
        if not self._was_ours:
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            if os.tcgetpgrp(self._fd) != os.getpgrp():
                os.tcsetpgrp(self._fd, os.getpgrp())
        except OSError:
            pass  # hung up meanwhile
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
