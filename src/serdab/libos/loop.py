# SPDX-License-Identifier: Apache-2.0
"""The event loop of the kernel process: descriptors, timers and coroutines in one thread.

Above: everything in ``libos`` that waits. Written here because the standard one takes longer to
import than a whole instance takes to boot; it needs no more than this.

Threads: everything but :meth:`Loop.call_from_thread` belongs to the thread that runs the loop.
"""

from __future__ import annotations

import heapq
import os
import select
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Cancelled(BaseException):
    """Thrown into a coroutine that is no longer wanted."""


class Future(Awaitable[T], Generic[T]):
    """A value that will be there later."""

    __slots__ = ("_callbacks", "_error", "_loop", "_value", "is_done")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._callbacks: list[Callable[[], None]] = []
        self._error: BaseException | None = None
        self._value: T | None = None
        self.is_done = False

    def set_result(self, value: T) -> None:
        """Fulfil it; a second time changes nothing."""
        if not self.is_done:
            self._value = value
            self._finish()

    def set_error(self, error: BaseException) -> None:
        """Let whoever waits see ``error``."""
        if not self.is_done:
            self._error = error
            self._finish()

    def _finish(self) -> None:
        self.is_done = True
        for callback in self._callbacks:
            self._loop.call_soon(callback)
        self._callbacks.clear()

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once there is an outcome."""
        if self.is_done:
            self._loop.call_soon(callback)
        else:
            self._callbacks.append(callback)

    def result(self) -> T:
        """Return the value or raise the error; only after it is done."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def __await__(self) -> Generator[Any, None, T]:
        if not self.is_done:
            yield self
        return self.result()


class Task(Future[T]):
    """A running coroutine; awaiting it gives its return value."""

    __slots__ = ("_coroutine",)

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, None, T]) -> None:
        super().__init__(loop)
        self._coroutine = coroutine
        loop.call_soon(self._step)

    def _step(self) -> None:
        if self.is_done:
            return
        try:
            waits_for = self._coroutine.send(None)
        except StopIteration as end:
            self.set_result(end.value)
        except Exception as exc:  # handed to whoever awaits the task
            self.set_error(exc)
        else:
            waits_for.when_done(self._step)

    def cancel(self) -> None:
        """Throw :class:`Cancelled` into the coroutine."""
        if self.is_done:
            return
        self.is_done = True
        self._error = Cancelled()
        try:
            self._coroutine.throw(Cancelled())
        except (Cancelled, StopIteration):
            pass
        self._finish()


class Timer:
    """A call that was asked for later."""

    __slots__ = ("callback", "due")

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback: Callable[[], None] | None = callback

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due

    def cancel(self) -> None:
        """Do not call."""
        self.callback = None


class Loop:
    """See the module."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._soon: deque[Callable[[], None]] = deque()
        self._timers: list[Timer] = []
        self._stopped = False
        self._from_threads: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.watch(self._wake, self._woken)

    def _woken(self) -> None:
        os.eventfd_read(self._wake)
        while self._from_threads:
            self._from_threads.popleft()()

    def call_from_thread(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` in the loop's thread."""
        self._from_threads.append(callback)
        os.eventfd_write(self._wake, 1)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call after what runs now."""
        self._soon.append(callback)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call after a while, unless the timer is cancelled."""
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call whenever ``fd`` is readable or hung up."""
        self._readers[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Stop watching; before the descriptor is closed."""
        if self._readers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def start(self, coroutine: Coroutine[Any, None, T]) -> Task[T]:
        """Run a coroutine beside the others."""
        return Task(self, coroutine)

    def future(self) -> Future[Any]:
        """Return a future of this loop."""
        return Future(self)

    async def sleep(self, delay_s: float) -> None:
        """Wait for a while."""
        done: Future[None] = Future(self)
        self.call_later(delay_s, lambda: done.set_result(None))
        await done

    async def first(self, *futures: Future[Any], timeout_s: float) -> bool:
        """Wait until one has an outcome; return False if none has in time."""
        done: Future[bool] = Future(self)
        timer = self.call_later(timeout_s, lambda: done.set_result(False))
        for future in futures:
            future.when_done(lambda: done.set_result(True))
        outcome = await done
        timer.cancel()
        return outcome

    def stop(self) -> None:
        """Make :meth:`run` return."""
        self._stopped = True

    def is_stopped(self) -> bool:
        """Return whether :meth:`run` is to return."""
        return self._stopped

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        while not self._stopped:
            while self._soon:
                self._soon.popleft()()
            if self.is_stopped():
                return
            timeout = -1.0
            while self._timers and self._timers[0].callback is None:
                heapq.heappop(self._timers)
            if self._timers:
                timeout = max(0.0, self._timers[0].due - time.monotonic())
            for fd, _ in self._epoll.poll(timeout):
                reader = self._readers.get(fd)  # an earlier callback may have ended its watch
                if reader is not None:
                    reader()
            now = time.monotonic()
            while self._timers and self._timers[0].due <= now:
                callback = heapq.heappop(self._timers).callback
                if callback is not None:
                    callback()
