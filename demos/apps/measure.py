# SPDX-License-Identifier: Apache-2.0
"""How much memory a command and all that it starts have, at most, at the same time."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Final

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_PAUSE_S: Final = 0.1


def _parents() -> dict[int, int]:
    """Return the parent of every process that is there."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text(errors="replace")
            except OSError:
                continue  # it has ended
            found[int(entry.name)] = int(text.rpartition(")")[2].split()[1])
    return found


def descendants(top: int) -> list[int]:
    """Return the processes below one."""
    parents = _parents()
    found, front = [], [top]
    while front:
        front = [process for process, parent in parents.items() if parent in front]
        found += front
    return found


def own_bytes(process: int) -> int:
    """Return the memory that is a process's own: resident, without what it maps of files."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text().split()
    except OSError:
        return 0  # it has ended
    return max(int(pages[1]) - int(pages[2]), 0) * _PAGE_BYTES


class PeakMemory:
    """Looks ten times a second while it is entered: ``peak_bytes`` of all descendants together."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(_PAUSE_S):
            total = sum(own_bytes(process) for process in descendants(os.getpid()))
            self.peak_bytes = max(self.peak_bytes, total)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
