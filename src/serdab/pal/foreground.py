# SPDX-License-Identifier: Apache-2.0
"""One program in the foreground: this process stands for it, as ``serdab run`` does.

Above: ``serdab.pal``. Below: ``booting``, ``libos.signals``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from serdab.errors import Error, InternalError
from serdab.keys import Key
from serdab.libos.begin import Begun
from serdab.libos.interpreter import KEYBOARD
from serdab.libos.request import NOTHING_PINNED, Freshness
from serdab.pal.booting import init
from serdab.pal.running import ExitStatus, Pal, Process

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

_JOB_ENDS_S: Final = 1.0
"""So long, at most, the kernel takes to end a program whose instance was killed."""


def run_foreground(
    instance: str | os.PathLike[str],
    argv: Sequence[str],
    *,
    image_key: Key | None = None,
    private: Sequence[str | os.PathLike[str]] = (),
    expect_signer: str | None = None,
    expect_root: str | None = None,
    freshness: Freshness = NOTHING_PINNED,
    previous: bool = False,
    log_level: str = "notice",
    begun: Begun | None = None,
) -> int:
    """Boot, run one program on our own standard streams, shut down; return its exit status.

    Signals that reach this process are the program's, and it is stopped when that is. It dies of
    what the keys of a terminal send, where that ended the program or the boot, or came after the
    program's end; of a hang-up that ended one of them, too (``libos.signals``). Where an error is
    raised after such a signal, that is left pending, held back: the error can be told first.

    Raises:
        Error: Serdab refused or failed before the program was started, or could not close.
    """
    from serdab.libos.signals import Forwarding, die_of, restore_foreground

    state = _Foreground()
    begun = begun or Begun()
    forwarding = Forwarding(begun.kernel, state)
    try:
        pal = init(
            instance,
            image_key=image_key,
            private=private,
            expect_signer=expect_signer,
            expect_root=expect_root,
            freshness=freshness,
            previous=previous,
            log_level=log_level,
            on_started=state.started,
            is_wanted=lambda: not state.ended_by,
            begun=begun,
            stands_for_program=True,
        )
        try:
            status = _run_program(pal, argv, state)
        finally:
            state.program_is(None)
            # The program has ended, or never was: nothing inside is worth waiting for.
            pal.destroy(patience_s=0)
            state.is_over(pal.unheard)
    except (Error, InternalError):
        restore_foreground(_JOB_ENDS_S if state.has_begun() else 0.0)
        forwarding.end()
        if not state.ended_by:
            if state.died_of:
                os.kill(os.getpid(), state.died_of)
            raise
        code = 128 + state.ended_by
    else:
        restore_foreground()
        forwarding.end()
        # The boot may have been over by the time it was to end: the program was killed for that.
        code = 128 + state.ended_by if state.ended_by else status.shell
    if state.died_of:
        die_of(state.died_of)
    forwarding.restore()
    return code


def _run_program(pal: Pal, argv: Sequence[str], state: _Foreground) -> ExitStatus:
    state.program_follows()
    process = pal.create_process(argv)
    state.program_is(process)
    status = process.wait()
    if status.signal is not None and pal.was_told(process):
        state.dies_of(status.signal)
    return status


class _Foreground:
    """What the thread that waits for signals knows about the run."""

    def __init__(self) -> None:
        self._pal: Pal | None = None
        self._process: Process | None = None
        self._is_booting = True
        # A program may run, and say so, before we hear of it: what comes meanwhile waits for that.
        self._is_known = threading.Event()
        self._has_ended = self._is_over = False
        self.ended_by = 0
        #: The signal that a shell is to see us die of, or 0.
        self.died_of = 0

    def started(self, pal: Pal) -> None:
        self._pal = pal
        if self.ended_by:
            # The signal came before there was anything to end.
            raise Error("the boot was ended", stage="boot")

    def program_follows(self) -> None:
        self._is_booting = False

    def program_is(self, process: Process | None) -> None:
        self._process = process
        self._has_ended = process is None
        self._is_known.set()

    def is_over(self, unheard: int) -> None:
        """The instance has ended; ``unheard`` came when there was no program, or is 0."""
        self._is_over = True
        self.dies_of(unheard)

    def dies_of(self, number: int) -> None:
        self.died_of = self.died_of or number

    def on_ending(self, number: int, *, is_of_terminal: bool) -> bool:
        if self._has_ended and number in KEYBOARD:
            # Nothing is left for it to end, but whoever waits for us is to hear of it. What the
            # terminal sent may have come before the end, and we hear it late: the kernel process,
            # which heard it as well, tells at its own end whether a program was there.
            if self._is_over or not is_of_terminal:
                self.dies_of(number)
            return True
        if not self._is_booting:
            return False
        # The first one counts: `timeout` sends what the terminal did a second time.
        self.ended_by = self.ended_by or number
        if is_of_terminal or number in KEYBOARD:
            self.dies_of(number)
        if self._pal is not None:
            self._pal.abort()
        return True

    def has_begun(self) -> bool:
        return self._pal is not None

    def forward(self, number: int, sender: int) -> None:
        if not self._is_booting:
            self._is_known.wait()
        if self._pal is not None:
            self._pal.pass_on(self._process, number, sender)
