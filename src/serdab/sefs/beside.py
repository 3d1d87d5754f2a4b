# SPDX-License-Identifier: Apache-2.0
"""Flushes of the host that a thread waits for, while the loop serves on.

It is a flush in advance: the commit that follows flushes the same files, and relies on nothing here
but on finding little to do. Only a failure counts: the host tells of it once, to whoever asks first
(fsync(2), "Errors"), so what this flush was told the commit must hear.

Above: ``journal``. Below: ``hostdir`` (:meth:`File.flusher`).

Threads: one for each flush; it touches nothing but descriptors of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import final


@final
class FlushBeside:
    """Flushes in a thread; one at a time."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._is_done = threading.Event()
        self._errors: list[OSError] = []
        self._done_fd = -1

    @property
    def is_running(self) -> bool:
        """Whether a flush was begun and is not at its end."""
        return self._thread is not None and not self._is_done.is_set()

    @property
    def done_fd(self) -> int:
        """What becomes readable when a flush is at its end: an eventfd(2)."""
        if self._done_fd < 0:
            self._done_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return self._done_fd

    def begin(self, flushers: Sequence[Callable[[], None]]) -> None:
        """Call all of these in a thread.

        Preconditions: :meth:`settle` was called since the flush before.
        """
        done = self.done_fd
        self._is_done.clear()

        def run() -> None:
            try:
                for flush in flushers:
                    try:
                        flush()
                    except OSError as exc:
                        self._errors.append(exc)
            finally:
                self._is_done.set()
                os.eventfd_write(done, 1)

        thread = threading.Thread(target=run, name="flush", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            run()  # no more threads are allowed here
        else:
            self._thread = thread

    def settle(self) -> None:
        """Wait for the flush that was begun, if any.

        Raises:
            OSError: it failed.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def close(self) -> None:
        """Wait, whatever becomes of it."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        if self._done_fd >= 0:
            os.close(self._done_fd)
            self._done_fd = -1
