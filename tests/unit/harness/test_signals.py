# SPDX-License-Identifier: Apache-2.0
"""The tests run the same from a background job, or under nohup."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import signal
from tests.harness.signals import forget_what_was_ignored
signals = [getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM")]
for number in signals:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
forget_what_was_ignored()
for number in signals:
    print(getattr(signal.getsignal(number), "__name__", signal.getsignal(number)))
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


def test_what_the_starter_ignored_or_blocked_is_not_ours() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True
    )
    default = str(signal.SIG_DFL)
    assert done.stdout.splitlines() == [default, "default_int_handler", default, default, "set()"]
