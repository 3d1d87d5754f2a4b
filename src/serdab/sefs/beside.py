# SPDX-License-Identifier: Apache-2.0
"""Flushes of the host that a thread waits for, while the loop serves on.

It is a flush in advance: the commit that follows flushes the same files, and relies on nothing here
but on finding little to do. Only a failure counts: the host tells of it once, to whoever asks first
(fsync(2), "Errors"), so what this flush was told the commit must hear.

Above: ``journal``. Below: ``content``, ``hostdir`` (:meth:`File.flusher`).

Threads: one for each flush; it touches nothing but descriptors of its own.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, final

from serdab.errors import FsError
from serdab.sefs.content import Content
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.reserve import FlushError
from serdab.sefs.segment import Writer
from serdab.vfs.steps import Steps

_DONE: Final = object()


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


@final
class SlowCommits:
    """Commits before which much is sealed in steps, and flushed beside the loop."""

    def __init__(
        self,
        commit: Callable[[], None],
        guarded: Callable[[Callable[[], None]], None],
        state: Callable[[], tuple[bool, bool]],
        content: Content,
        pages: Writer,
        limits: VolumeLimits,
    ) -> None:
        """``guarded`` runs a step that writes to the host. ``state`` says whether the host failed,
        and whether the next commit goes to a log, and not into a checkpoint."""
        self._commit = commit
        self._guarded = guarded
        self._state = state
        self._content = content
        self._writers = (content.writer, pages)
        self._limits = limits
        self._beside = FlushBeside()

    def steps(self) -> Steps[None]:
        """Commit. Of little, that is all."""
        content, beside_bytes = self._content, self._limits.beside_bytes
        if content.dirty_bytes > beside_bytes and self._is_much():
            yield from self.sealing()
        if self._beside.is_running:
            yield from self._until_flushed()
        if content.writer.unsynced_bytes > beside_bytes and not self._state()[0]:
            self._attempt(self._begin)
            yield from self._until_flushed()
        self._commit()

    def sealing(self) -> Iterator[None]:
        """Seal what is dirty, in steps."""
        sealing = self._content.flush_steps()
        while self._has_more(sealing):
            yield None

    @property
    def is_flushing(self) -> bool:
        """Whether a flush beside the loop is not at its end."""
        return self._beside.is_running

    def flush_beside(self) -> None:
        """Begin to flush what was written, unless that is little, or one is not at its end."""
        unsynced = sum(writer.unsynced_bytes for writer in self._writers)
        if unsynced > self._limits.beside_bytes and not self._beside.is_running:
            self._attempt(self._begin)

    def _is_much(self) -> bool:
        """Return whether the next commit has much to seal."""
        has_failed, has_log = self._state()
        if has_failed:
            return False
        much = self._limits.inline_commit_bytes
        return not has_log or self._content.uncommitted_bytes() > much

    def _has_more(self, steps: Iterator[None]) -> bool:
        """Do a step; return whether more follow."""
        ends: list[bool] = []
        self._attempt(lambda: ends.append(next(steps, _DONE) is _DONE))
        return ends == [False]

    def _attempt(self, step: Callable[[], None]) -> None:
        """Run a step that the commit does otherwise: so it may find no room on the host."""
        try:
            self._guarded(step)
        except FsError as exc:
            if exc.errno != errno.ENOSPC or self._state()[0]:
                raise

    def _begin(self) -> None:
        self.settle()
        flushers: list[Callable[[], None]] = []
        for writer in self._writers:
            if writer.unsynced_bytes:
                writer.flush()
                flushers += writer.flushers()
        self._beside.begin(flushers)

    def _until_flushed(self) -> Iterator[int]:
        while self._beside.is_running:
            yield self._beside.done_fd

    def settle(self) -> None:
        """Hear what became of the flush that was begun: the host may tell of a failure only once.

        Raises:
            FlushError: it failed.
        """
        try:
            self._beside.settle()
        except OSError as exc:
            raise FlushError(exc.errno, exc.strerror) from exc

    def close(self) -> None:
        """Wait for what was begun, whatever becomes of it."""
        self._beside.close()
