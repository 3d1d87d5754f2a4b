# SPDX-License-Identifier: Apache-2.0
"""Signals of a caller that stands for a program: passed on, and shared.

Above: ``pal``. The caller and the kernel process share a process group, the programs have others.
What the terminal sends to that group the kernel process passes on by itself, see ``jobs``; the
caller passes on what it gets from a process: the kernel is the sender of the first (``SI_KERNEL``).

When the program is stopped, the kernel process stops the caller: by SIGSTOP, or by a signal of ours
upon which it stops itself by SIGTSTP. When the terminal's signal killed the program, the
caller dies of it, too: a shell leaves its loop only if it sees that.
"""

from __future__ import annotations

import _thread
import os
import signal
from typing import Final, Protocol

from serdab.libos.interpreter import STOP_AS_TYPED

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
_JOB_CONTROL: Final = frozenset({signal.SIGTSTP, signal.SIGCONT})

_SI_KERNEL: Final = 0x80


class Listener(Protocol):
    """Hears of signals, in a thread of its own."""

    def on_ending(self, number: int, *, is_of_terminal: bool) -> bool:
        """Hear first of what would end us; return True if that was taken care of."""

    def has_begun(self) -> bool:
        """Return whether the kernel process takes care of the job by now."""

    def forward(self, number: int, sender: int) -> None:
        """Pass a signal of a process on."""


def start_forwarding(kernel: int, listener: Listener) -> None:
    """Hold the signals back in this thread and its later ones, and hand them over in a new one.

    ``kernel`` is the process id of the kernel process. A signal that was ignored when we started
    stays ignored: the program ignores it too.
    """
    wanted: set[int] = {
        number
        for number in FORWARDED | _JOB_CONTROL
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    wanted.add(STOP_AS_TYPED)
    # Those for want of the terminal are the kernel process's to judge: it may have lent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {*wanted, signal.SIGTTIN, signal.SIGTTOU})

    def run() -> None:
        while True:
            info = signal.sigwaitinfo(wanted)
            is_of_terminal = info.si_code == _SI_KERNEL
            if info.si_pid == kernel and not is_of_terminal:
                if info.si_signo == STOP_AS_TYPED:
                    _stop_ourselves()
                continue  # to our whole group: its program knows
            if info.si_signo == STOP_AS_TYPED:
                continue  # a stranger's
            if info.si_signo in ENDING and listener.on_ending(
                info.si_signo, is_of_terminal=is_of_terminal
            ):
                continue
            if info.si_signo == signal.SIGTSTP and not listener.has_begun():
                _stop_ourselves()
            elif not is_of_terminal:
                listener.forward(info.si_signo, info.si_pid)

    _thread.start_new_thread(run, ())


def _stop_ourselves() -> None:
    """Stop this process until it is continued, by the signal that was held back."""
    if signal.SIGCONT in signal.sigpending():
        return  # somebody was faster
    os.kill(os.getpid(), signal.SIGTSTP)
    held = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    signal.pthread_sigmask(signal.SIG_SETMASK, held)


def die_of(number: int) -> None:
    """End this process as the signal does by default; returns only where it may not.

    Only the main thread can give a signal its default meaning.
    """
    from serdab.linux.process import forbid_core

    try:
        signal.signal(number, signal.SIG_DFL)
    except ValueError:
        return
    forbid_core()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)


def restore_foreground() -> None:
    """Take the terminal back from a program's job that no longer exists.

    The kernel process does so, unless it was killed.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        os.killpg(os.tcgetpgrp(0), 0)
    except ProcessLookupError:
        try:
            os.tcsetpgrp(0, os.getpgrp())
        except OSError:
            pass  # hung up meanwhile
    except OSError:
        pass  # no terminal, or not the one that controls us, or somebody's who lives
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
