# SPDX-License-Identifier: Apache-2.0
"""Signals as a login shell has them, whoever started the tests.

A job in the background of a script ignores SIGINT and SIGQUIT, nohup(1) makes it ignore SIGHUP, and
a child inherits both (signal(7)): every program under test would, and Serdab leaves ignored what it
finds ignored.
"""

from __future__ import annotations

import signal
from typing import Final

#: Python ignores these itself, and gives them back to what it starts.
_PYTHONS_OWN: Final = {signal.SIGPIPE, signal.SIGXFSZ}


def forget_what_was_ignored() -> None:
    """Give signals that were ignored or blocked their meaning back."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - _PYTHONS_OWN:
        if signal.getsignal(number) is signal.SIG_IGN:
            is_interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
