# SPDX-License-Identifier: Apache-2.0
"""Signals of a caller that stands for a program: passed on, and shared.

Above: ``pal``. The caller and the kernel process share a process group, the programs have others.
What the terminal sends to that group the kernel process passes on by itself, see ``jobs``; the
caller passes on what it gets from a process: the kernel is the sender of the first (``SI_KERNEL``).

When the program is stopped, the kernel process stops the caller: by SIGSTOP, or by a signal of ours
upon which it stops itself by SIGTSTP. When Ctrl-C ended the program, the boot or nothing any more,
the caller dies of it, too: a shell leaves its loop only if it sees that.
"""

from __future__ import annotations

import _thread
import os
import signal
import time

from serdab.libos.interpreter import STOP_AS_TYPED

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final, Protocol
else:
    Protocol = object

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


class Forwarding:
    """Signals of this thread and its later ones are held back, and handed over in a new one.

    ``kernel`` is the process id of the kernel process. A signal that was ignored when we started
    stays ignored: the program ignores it too.
    """

    def __init__(self, kernel: int, listener: Listener) -> None:
        self._kernel = kernel
        self._listener = listener
        self._wanted: set[int] = {
            number
            for number in FORWARDED | _JOB_CONTROL
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        self._wanted.add(STOP_AS_TYPED)
        # Those for want of the terminal are the kernel process's to judge: it may have lent it.
        held = {*self._wanted, signal.SIGTTIN, signal.SIGTTOU}
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
        self._has_ended = _thread.allocate_lock()
        self._has_ended.acquire()
        _thread.start_new_thread(self._run, ())

    def end(self) -> None:
        """Hear of no more: what came before was handed over, what comes later stays pending."""
        # Signals are taken by their numbers, lowest first (signal(7)), and this is the highest.
        os.kill(os.getpid(), STOP_AS_TYPED)
        self._has_ended.acquire()

    def restore(self) -> None:
        """Let signals through again as before; one that is pending takes its effect now."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def _run(self) -> None:
        while self._hear(signal.sigwaitinfo(self._wanted)):
            pass
        self._has_ended.release()

    def _hear(self, info: signal.struct_siginfo) -> bool:
        """Act on a signal; return False if it was the last one."""
        number = info.si_signo
        is_of_terminal = info.si_code == _SI_KERNEL
        if number == STOP_AS_TYPED:
            if info.si_pid == self._kernel:
                _stop_ourselves()
            return info.si_pid != os.getpid()  # any other is a stranger's
        if info.si_pid == self._kernel and not is_of_terminal:
            return True  # to our whole group: its program knows
        if number in ENDING and self._listener.on_ending(number, is_of_terminal=is_of_terminal):
            return True
        if number == signal.SIGTSTP and not self._listener.has_begun():
            _stop_ourselves()
        elif not is_of_terminal:
            self._listener.forward(number, info.si_pid)
        return True


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


def restore_foreground(patience_s: float = 0.0) -> None:
    """Take the terminal back from a program's job that no longer exists.

    The kernel process does so, unless it was killed. Then the job is still being ended by the
    kernel: for ``patience_s`` at most it is waited for. Somebody else's job keeps the terminal.
    """
    terminal = _controlling_terminal()
    if terminal < 0:
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    deadline = time.monotonic() + patience_s
    try:
        while True:
            group = os.tcgetpgrp(terminal)
            os.killpg(group, 0)
            if group == os.getpgrp() or time.monotonic() >= deadline:
                return
            time.sleep(0.01)
    except ProcessLookupError:
        try:
            os.tcsetpgrp(terminal, os.getpgrp())
        except OSError:
            pass  # hung up meanwhile
    except OSError:
        pass  # somebody's who lives
    finally:
        os.close(terminal)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _controlling_terminal() -> int:
    """Return a descriptor of the terminal that controls our session, -1 if there is none."""
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        pass  # none; or a /dev without it, and then it may still be one of our streams
    for fd in (0, 1, 2):
        try:
            os.tcgetpgrp(fd)
            return os.dup(fd)
        except OSError:
            continue
    return -1
