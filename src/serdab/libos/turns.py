# SPDX-License-Identifier: Apache-2.0
"""Turns: so many calls are performed at a time, the rest waits, first come, first served.

Above: ``notify``. Below: ``loop``. Each mount or umount on its way has a process and some
descriptors outside, where the limits of the instance do not count.
"""

from __future__ import annotations

from collections import deque

from serdab.libos.loop import Future, Loop


class Turns:
    """``most`` turns. Threads: the loop's."""

    def __init__(self, loop: Loop, most: int) -> None:
        self._loop = loop
        self._free = most
        self._waiting: deque[Future[None]] = deque()

    async def take(self, patience_s: float) -> bool:
        """Wait for a turn; return False if there was none in time."""
        if self._free:
            self._free -= 1
            return True
        turn: Future[None] = self._loop.future()
        self._waiting.append(turn)
        if await self._loop.first(turn, timeout_s=patience_s) or turn.is_done:
            return True
        self._waiting.remove(turn)
        return False

    def give_back(self) -> None:
        """End a turn that was taken."""
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._free += 1
