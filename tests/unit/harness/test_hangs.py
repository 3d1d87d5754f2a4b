# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import signal
import time
from typing import NoReturn

import pytest

from tests.harness.hangs import no_hang


def spin() -> NoReturn:
    while True:
        pass


def test_what_goes_on_for_ever_is_ended() -> None:
    with pytest.raises(TimeoutError, match="it hung"), no_hang("it hung", seconds=1):
        spin()


def test_what_ends_is_left_alone_and_the_timers_are_off() -> None:
    before = signal.getsignal(signal.SIGPROF), signal.getsignal(signal.SIGALRM)
    with no_hang("it hung", seconds=1):
        time.sleep(0.01)
    assert (signal.getsignal(signal.SIGPROF), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
