# SPDX-License-Identifier: Apache-2.0
"""A bound for what may hang: in seconds of a processor, which nobody else on the machine takes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_CLOCKS: Final = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}


@contextmanager
def no_hang(what: str, *, seconds: int = 20) -> Iterator[None]:
    """Fail with ``what`` when more is taken (ITIMER_PROF of setitimer(2)), or ten times as much of
    the clock: who waits takes no processor's time.
    """

    def late(signum: int, frame: object) -> None:
        raise TimeoutError(what)

    old = {number: signal.signal(number, late) for number in _CLOCKS}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)
    try:
        yield
    finally:
        for number, clock in _CLOCKS.items():
            signal.setitimer(clock, 0)
            signal.signal(number, old[number])
