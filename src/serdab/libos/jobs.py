# SPDX-License-Identifier: Apache-2.0
"""Job control between the caller's terminal and the programs inside, as a shell does it.

Above: ``kernel``. Below: ``sandbox``, ``linux.signalfd``.

Programs have process groups of their own: ours, which is the caller's and his shell's job, is none
of theirs. So we stand between the two (setpgid(2), credentials(7)):

* What the terminal sends to our group (Ctrl-C, Ctrl-Z, a hang-up, a new size) is passed on to the
  programs, and SIGCONT lets them go on.
* A program that is stopped because it is in the background (SIGTTIN, SIGTTOU) gets the terminal if
  our group has it, and loses it when it stops or ends. If our group does not have it either, the
  group is stopped as the terminal would have done; whoever continues it continues the program.
  When another process of our group needs the terminal meanwhile, we take it back.
* What was typed while the program had it (``init/src/lending.c``) our group gets as well, if it
  killed or stopped the program.
* A caller that stands for one program is stopped when it is, and hears of Ctrl-C that came before
  the program was started, or after its end.
* Where nobody could continue our group (it is orphaned), or it ignores the signal, no program stays
  stopped for the terminal.

A terminal is lent only where it controls our session and is one of the boot's standard streams;
else everything inside has another session.

Security: what programs do to themselves, however they stop or die, sends nothing to our group. It
can be stopped by one that wants the terminal while the group is in the background, as by any.
"""

from __future__ import annotations

import os
import signal
from typing import Final

from serdab.libos.interpreter import HELD_SIGNALS, KEYBOARD, STOP_AS_TYPED
from serdab.libos.launcher import LENT_IS_HERE, LENT_SIGNALS
from serdab.libos.loop import Loop
from serdab.libos.sandbox import Program, Sandbox
from serdab.linux.autogroup import Autogroup
from serdab.linux.signalfd import open_signals, read_signals

_WANTING: Final = frozenset({signal.SIGTTIN, signal.SIGTTOU})


class Jobs:
    """Of one instance. Nothing happens before ``begin``."""

    def __init__(self, loop: Loop, sandbox: Sandbox, autogroup: Autogroup) -> None:
        self._loop = loop
        self._sandbox = sandbox
        self._caller = os.getppid()
        self._terminal = -1
        self._signals = -1
        self._stands = False
        self._is_caller_stopped = False
        self._heard: dict[int, int] = {}
        #: What the terminal's keys send, and came when there was no program to hear of it; or 0.
        self.unheard = 0
        self._autogroup = autogroup

    def begin(self, stdio: tuple[int, ...], *, lends: bool, stands: bool) -> None:
        """Decide whose session the programs have, and listen.

        ``lends``: our group is the programs' job, too. ``stands``: the caller is for one program.
        """
        self._stands = stands
        if not lends:
            return
        self._terminal = next((os.dup(fd) for fd in stdio if _foreground_of(fd) is not None), -1)
        if self._terminal >= 0:
            self._sandbox.own_session = False
        # What was ignored when we started is ignored by programs as well.
        wanted = {n for n in HELD_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}
        self._signals = open_signals(wanted)
        self._loop.watch(self._signals, self._hear)

    def end(self) -> None:
        """Take the terminal back from those that are no more, when all have ended."""
        if self._signals >= 0:
            self._loop.unwatch(self._signals)
            for sent in read_signals(self._signals):
                if sent.is_of_kernel and sent.number in KEYBOARD:
                    self.unheard = sent.number
        if self._terminal >= 0:
            group = _foreground_of(self._terminal)
            if group is not None and not _exists(group):
                self._take()
            self._autogroup.restore()

    # Our group hears ------------------------------------------------------------------------

    def _hear(self) -> None:
        for sent in read_signals(self._signals):
            if sent.sender == os.getpid():
                continue
            self._heard[sent.number] = sent.sender
            if sent.number == signal.SIGCONT:
                self.resume()
            elif sent.number in _WANTING:
                self._loop.start(self._reclaim(sent.number))
            elif sent.is_of_kernel:
                self._pass_on(sent.number)

    def has_reached_us(self, number: int, sender: int) -> bool:
        """Return whether a signal that the caller got went to its whole group: we got it, too.

        The sender may be 0 on both sides: the kernel fills in one record for the whole group, and
        once it has told a process that does not see the sender that it is nobody, everybody after
        it hears so too (send_signal_locked() in Linux 6.18).
        """
        if self._signals < 0:
            return False
        self._hear()
        return self._heard.pop(number, -1) == sender

    def _programs(self) -> list[Program]:
        return [program for program in self._sandbox.programs() if not program.own_session]

    def _pass_on(self, number: int) -> None:
        programs = self._programs()
        if number == signal.SIGTSTP and not programs:
            self.stop_caller(number)
        if number in KEYBOARD and not programs:
            self.unheard = number
        for program in programs:
            program.sent.add(number)
            program.is_to_stop |= number == signal.SIGTSTP
            self._sandbox.kill(number, program, group=True)

    def resume(self) -> None:
        """Let the programs go on; one that had the terminal has it again, if it is ours to lend."""
        self._continue_caller()
        for program in self._programs():
            if program.had_terminal and self._is_ours():
                self._sandbox.lend(program, self._terminal)
            else:
                self._sandbox.kill(signal.SIGCONT, program, group=True)
            program.had_terminal = program.is_to_stop = False

    async def _reclaim(self, number: int) -> None:
        """Take the terminal for another process of our group, which was stopped for want of it.

        If it is none of ours that has it, our whole group is to stop.
        """
        if self._terminal >= 0 and await self._sandbox.has_terminal():
            self._take()
            os.kill(0, signal.SIGCONT)
        else:
            self._pass_on(number)
            self.stop_caller(signal.SIGSTOP)

    def stop_caller(self, number: int) -> None:
        """Stop the one that stands for a program."""
        if self._stands and os.getppid() == self._caller:
            self._is_caller_stopped = True
            os.kill(self._caller, STOP_AS_TYPED if number == signal.SIGTSTP else number)

    def _continue_caller(self) -> None:
        if self._is_caller_stopped and os.getppid() == self._caller:
            os.kill(self._caller, signal.SIGCONT)
        self._is_caller_stopped = False

    # Programs begin, stop and end ---------------------------------------------------------------

    def started(self, program: Program) -> None:
        """Pass on what was typed between the boot and the program."""
        if self._stands and self.unheard and not program.own_session:
            program.sent.add(self.unheard)
            self._sandbox.kill(self.unheard, program, group=True)
            self.unheard = 0

    def stopped(self, program: Program, number: int, lent: int) -> None:
        """Do what a stop of a program means to our group."""
        is_to_stop, program.is_to_stop = program.is_to_stop, False
        program.had_terminal = bool(lent & LENT_IS_HERE)
        if program.had_terminal:
            self._take()
        if number in _WANTING and self._is_ours():
            program.had_terminal = False
            self._sandbox.lend(program, self._terminal)
            if is_to_stop:
                # Ctrl-Z met one that was stopped already, and what continues it drops SIGTSTP.
                self._sandbox.kill(signal.SIGTSTP, program, group=True)
        elif number == signal.SIGSTOP:
            self.stop_caller(number)
        elif _is_orphaned(self._caller) or signal.getsignal(number) is signal.SIG_IGN:
            if number in _WANTING:
                # So that the terminal tells it, with EIO, as it tells every orphaned group.
                self._sandbox.leave_session()
            self._sandbox.kill(signal.SIGCONT, program, group=True)
        elif number in _WANTING and self._terminal >= 0:
            # The caller first: whoever has lent the terminal continues it after the second.
            self.stop_caller(signal.SIGSTOP)
            os.kill(0, number)
        else:
            if lent & LENT_SIGNALS[signal.SIGTSTP]:
                os.kill(0, signal.SIGTSTP)
            self.stop_caller(signal.SIGTSTP)

    def ended(self, program: Program, status: int) -> None:
        """Do what the end of a program means to our group."""
        if program.lent & LENT_IS_HERE:
            self._take()
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if program.lent & LENT_SIGNALS.get(number, 0):
            program.sent.add(number)
            os.kill(0, number)
        self._continue_caller()

    # The terminal ---------------------------------------------------------------------------

    def _is_ours(self) -> bool:
        return self._terminal >= 0 and _foreground_of(self._terminal) == os.getpgrp()

    def _take(self) -> None:
        try:
            os.tcsetpgrp(self._terminal, os.getpgrp())  # SIGTTOU is held back
        except OSError:
            pass  # hung up meanwhile


def _foreground_of(fd: int) -> int | None:
    """Return the foreground group of the terminal that controls our session; None if it is none."""
    try:
        return os.tcgetpgrp(fd)
    except OSError:
        return None


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_orphaned(pid: int) -> bool:
    """Return whether the process group of a process has nobody in its session who continues it.

    Only its line of ancestors is looked at: a shell starts jobs itself.
    """
    try:
        group, session = os.getpgid(pid), os.getsid(pid)
        while os.getpgid(pid) == group:
            pid = _parent_of(pid)
            if pid == 0 or os.getsid(pid) != session:
                return True
    except (ProcessLookupError, FileNotFoundError):
        return True
    return False


def _parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])
