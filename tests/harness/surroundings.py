# SPDX-License-Identifier: Apache-2.0
"""Surroundings as a login shell has them, whoever started the tests; what they start inherits them.

A job in the background of a script ignores SIGINT and SIGQUIT, nohup(1) makes it ignore SIGHUP
(signal(7)), and Serdab leaves ignored what it finds ignored. A umask of 077 keeps the ordinary user
of the tests from what root writes for them. A service manager has a word for its own services.
"""

from __future__ import annotations

import os
import signal
from typing import Final

#: Python ignores these itself, and gives them back to what it starts.
_PYTHONS_OWN: Final = {signal.SIGPIPE, signal.SIGXFSZ}
#: How wide and how colourful things are shown, in which language, and whom a service tells.
_OF_THE_STARTER: Final = (
    "COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "LANGUAGE", "NOTIFY_SOCKET", "SOURCE_DATE_EPOCH",
)  # fmt: skip


def make_plain() -> None:
    """Leave what the starter ignored, blocked, masked, or meant for itself."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - _PYTHONS_OWN:
        if signal.getsignal(number) is signal.SIG_IGN:
            is_interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
    os.umask(0o022)
    for name in _OF_THE_STARTER:
        os.environ.pop(name, None)
    os.environ["LC_ALL"] = "C.UTF-8"
