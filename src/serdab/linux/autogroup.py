# SPDX-License-Identifier: Apache-2.0
"""The share of the processor that a whole session has: /proc/self/autogroup, sched(7).

Whoever is in a session may change it for all of it, and no mount can cover a file that each process
has. So it is put back. It is opened early: once a process has hidden its memory, the file is
root's. Nothing here imports what it does not need.
"""

from __future__ import annotations

import errno
import os
import time

_TRIES = 20
_PAUSE_S = 0.1  # the kernel takes no more than one change in that time


class Autogroup:
    """Our session's, whose nice value is remembered; there may be none."""

    __slots__ = ("_before", "_fd")

    def __init__(self) -> None:
        try:
            self._fd = os.open("/proc/self/autogroup", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            self._fd = -1  # a kernel without them, or a process that others may not look at
        self._before = self._nice()

    def _nice(self) -> bytes:
        """Return what stands there: "/autogroup-380 nice 0"."""
        return b"" if self._fd < 0 else os.pread(self._fd, 64, 0).rpartition(b" ")[2].strip()

    def close(self) -> None:
        """Let it go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def restore(self) -> None:
        """Put it back if it is another one."""
        for _ in range(_TRIES):
            if self._nice() == self._before:
                return
            try:
                os.write(self._fd, self._before)
            except OSError as exc:
                if exc.errno != errno.EAGAIN:
                    return  # it was negative, and only root makes it so again
                time.sleep(_PAUSE_S)
