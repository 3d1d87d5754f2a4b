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
from serdab.libos.request import NOTHING_PINNED, Freshness
from serdab.pal.booting import init
from serdab.pal.running import Pal, Process


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

    Signals that reach this process are the program's, and it is stopped when that is; where a
    signal of the terminal killed the program, this process dies of it (``libos.signals``).

    Raises:
        Error: Serdab refused or failed before the program was started, or could not close.
    """
    from serdab.libos.signals import die_of, restore_foreground, start_forwarding

    state = _Foreground()
    begun = begun or Begun()
    start_forwarding(begun.kernel, state)
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
            state.program_follows()
            process = pal.create_process(argv)
            state.program_is(process)
            status = process.wait()
            if pal.is_of_terminal(process):
                state.died_of = status.signal
        finally:
            state.program_is(None)
            # The program has ended, or never was: nothing inside is worth waiting for.
            pal.destroy(patience_s=0)
    except (Error, InternalError):
        if not state.ended_by:
            raise
        code = 128 + state.ended_by
    else:
        # The boot may have been over by the time it was to end: the program was killed for that.
        code = 128 + state.ended_by if state.ended_by else status.shell
    finally:
        restore_foreground()
    if state.died_of is not None:
        die_of(state.died_of)
    return code


class _Foreground:
    """What the thread that waits for signals knows about the run."""

    def __init__(self) -> None:
        self._pal: Pal | None = None
        self._process: Process | None = None
        self._is_booting = True
        # A program may run, and say so, before we hear of it: what comes meanwhile waits for that.
        self._is_known = threading.Event()
        self.ended_by = 0
        #: The signal of the terminal that killed the program, or ended the boot.
        self.died_of: int | None = None

    def started(self, pal: Pal) -> None:
        self._pal = pal
        if self.ended_by:
            # The signal came before there was anything to end.
            raise Error("the boot was ended", stage="boot")

    def program_follows(self) -> None:
        self._is_booting = False

    def program_is(self, process: Process | None) -> None:
        self._process = process
        self._is_known.set()

    def on_ending(self, number: int, *, is_of_terminal: bool) -> bool:
        if not self._is_booting:
            return False
        self.ended_by = number
        self.died_of = number if is_of_terminal else None
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
