# SPDX-License-Identifier: Apache-2.0
"""Host files of a volume that the newest state needs no more: kept while an anchor names them.

Above: ``journal``. Below: ``segment``, ``hostdir``.

Both anchors stay mountable, so a torn write of one costs nothing: a segment that died with a
checkpoint, or the log that it ended, is deleted after the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import final

from serdab.sefs.hostdir import Dir
from serdab.sefs.segment import SegmentStore, file_name, file_number


@final
class Leftovers:
    """Dead segments and ended logs of one session."""

    def __init__(self, segments: SegmentStore, subdir: Callable[[str], Dir]) -> None:
        self._segments = segments
        self._subdir = subdir
        self.dead: dict[int, int] = {}
        """Dead segments, by the epoch of the first anchor that does not refer to them."""
        self._logs: list[int] = []

    def bury(self, epoch: int) -> None:
        """Note the segments that the anchor of this epoch does not refer to."""
        for number, usage in self._segments.usage.items():
            if usage.live <= 0 and not self._segments.is_open(number) and number not in self.dead:
                self.dead[number] = epoch

    def end_log(self, number: int) -> None:
        """A checkpoint took the place of this log."""
        if number:
            self._logs.append(number)

    def sweep(self, epoch: int, log: int) -> None:
        """Delete what neither durable anchor refers to; ``log`` is the newest one's."""
        for number, buried in list(self.dead.items()):
            if buried < epoch:
                self._segments.remove(number)
                del self.dead[number]
        for number in self._logs[:-1]:
            if number not in (log, self._logs[-1]):
                with contextlib.suppress(FileNotFoundError):
                    self._subdir("log").unlink(file_name(number))
        self._logs = self._logs[-1:]

    def sweep_strays(self, log: int, *, has_logs: bool) -> None:
        """Delete what a killed session left: files that no state refers to."""
        segments = self._subdir("seg")
        for name in segments.names():
            number = file_number(name)
            if number is not None and number not in self._segments.usage:
                segments.unlink(name)
        if not has_logs:
            return
        directory = self._subdir("log")
        for name in directory.names():
            number = file_number(name)
            if number is not None and number not in (log, *self._logs):
                directory.unlink(name)
