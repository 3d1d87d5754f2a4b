# SPDX-License-Identifier: Apache-2.0
"""Host files of a volume that the newest state needs no more: kept while an anchor names them.

Above: ``journal``. Below: ``segment``, ``hostdir``.

Both anchors stay mountable, so a torn write of one costs nothing: a segment that died with a
checkpoint, or the log that it ended, is deleted after the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final, final

from serdab.sefs.anchor import ANCHOR_NAME, AnchorState
from serdab.sefs.hostdir import Dir
from serdab.sefs.segment import SegmentStore, file_name, file_number

SEGMENTS: Final = "seg"
LOGS: Final = "log"


@final
class Leftovers:
    """Dead segments and ended logs of one session."""

    def __init__(self, segments: SegmentStore, subdir: Callable[[str], Dir]) -> None:
        self._segments = segments
        self._subdir = subdir
        self.dead: dict[int, int] = {}
        """Dead segments, by the epoch of the first anchor that does not refer to them."""
        self._logs: list[int] = []
        self.is_swept = False
        """What a killed session left beyond its last anchor is gone."""

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
                    self._subdir(LOGS).unlink(file_name(number))
        self._logs = self._logs[-1:]

    def sweep_unreachable(self, top: Dir, state: AnchorState) -> None:
        """Delete what a killed session began after its last anchor, ``state``, and no commit of
        that one's log names.

        An older anchor, and its log, name only smaller numbers: so this needs no checkpoint, which
        a full host might have no room for.

        Preconditions: the log was replayed.
        """
        names = set(top.names())
        strays: list[tuple[Dir, str]] = []
        if SEGMENTS in names:
            segments = self._subdir(SEGMENTS)
            strays += [
                (segments, name)
                for number, name in _numbered(segments)
                if number >= state.next_segment and number not in self._segments.usage
            ]
        if LOGS in names:
            logs = self._subdir(LOGS)
            strays += [(logs, name) for number, name in _numbered(logs) if number >= state.next_log]
        if strays:
            self._make_durable(top, state, names)
            for directory, name in strays:
                directory.unlink(name)
        self.is_swept = True

    def _make_durable(self, top: Dir, state: AnchorState, names: set[str]) -> None:
        """Flush what was found: what the killed session wrote last the host may not have yet."""
        files = [(top, ANCHOR_NAME)]
        if state.log:
            files.append((self._subdir(LOGS), file_name(state.log)))
        for directory, name in files:
            file = directory.open(name)
            try:
                file.sync()
            finally:
                file.close()
        for name in (SEGMENTS, LOGS):
            if name in names:
                self._subdir(name).sync()
        top.sync()

    def sweep_strays(self, log: int, *, has_logs: bool) -> None:
        """Delete what a killed session left: files that no state refers to."""
        segments = self._subdir(SEGMENTS)
        for number, name in _numbered(segments):
            if number not in self._segments.usage:
                segments.unlink(name)
        if not has_logs:
            return
        directory = self._subdir(LOGS)
        for number, name in _numbered(directory):
            if number not in (log, *self._logs):
                directory.unlink(name)


def _numbered(directory: Dir) -> list[tuple[int, str]]:
    """Return the files of ours by number."""
    found = ((file_number(name), name) for name in directory.names())
    return [(number, name) for number, name in found if number is not None]
