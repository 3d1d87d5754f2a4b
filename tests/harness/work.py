# SPDX-License-Identifier: Apache-2.0
"""How much a session does between two looks for the next request, counted and not timed.

Counted are the calls of Python and C functions, which is the same on every machine at every hour:
a thousand take about 0.2 ms. :func:`counting` watches the threads that start within it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Work:
    """``most``: the most calls between two calls of ``readinto``, which receives a request."""

    def __init__(self) -> None:
        self.most = 0
        self._calls = 0

    def reset(self) -> None:
        """What was done so far does not count."""
        self.most = 0

    def see(self, _frame: FrameType, event: str, called: object) -> None:
        """A profile function (sys.setprofile)."""
        if event == "c_call" and getattr(called, "__name__", "") == "readinto":
            self.most = max(self.most, self._calls)
            self._calls = 0
        elif event in ("call", "c_call"):
            self._calls += 1


@contextmanager
def counting() -> Iterator[Work]:
    """Count what threads do that start within."""
    work = Work()
    threading.setprofile(work.see)
    try:
        yield work
    finally:
        threading.setprofile(None)
