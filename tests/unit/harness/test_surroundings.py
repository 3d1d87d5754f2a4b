# SPDX-License-Identifier: Apache-2.0
"""The tests run the same from a background job, under nohup, and for somebody who is careful."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import os, signal
from tests.harness.surroundings import make_plain
signals = [getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM")]
for number in signals:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
os.umask(0o777)
make_plain()
for number in signals:
    print(getattr(signal.getsignal(number), "__name__", signal.getsignal(number)))
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), oct(os.umask(0)))
print(os.environ.get("COLUMNS"), os.environ["LC_ALL"])
"""


def test_what_the_starter_brought_along_is_not_ours() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "20", "LC_ALL": "tr_TR.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    default = str(signal.SIG_DFL)
    assert done.stdout.splitlines() == [
        *(default, "default_int_handler", default, default),
        "set() 0o22",
        "None C.UTF-8",
    ]
