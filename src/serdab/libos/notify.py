# SPDX-License-Identifier: Apache-2.0
"""Receives the calls that the filter hands to the kernel process, and answers them.

Above: ``kernel``. Below: ``linux.seccomp``, ``filter``, ``rootconfig``.

Threads: notifications are received, decided and answered in the loop's thread. Only memory of the
caller that is not present is read in a thread of its own: its pages may lie in a file that an fs
server is slow to deliver, and then the loop must go on.

Security:
    1. The caller's memory is opened first, then the notification is checked, then every argument is
       copied once; decisions use the copies (seccomp_unotify(2)).
    2. The answer is always ours. No checked call is ever passed on to the kernel.
    3. Reading has a deadline; a caller that exceeds it gets EFAULT.
"""

from __future__ import annotations

import _thread
import errno
import os
import select
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from serdab.errors import Error
from serdab.libos.filter import MOUNT_ROOT_FS, Numbers
from serdab.libos.loop import Future, Loop
from serdab.linux.seccomp import (
    Memory,
    Notification,
    answer,
    is_alive,
    receive,
)

T = TypeVar("T")

_READ_DEADLINE_S: Final = 30.0


class CallError(Exception):
    """A call is refused with an errno; ``reason`` is the line for the operator, if any."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(reason or os.strerror(code))
        self.code = code
        self.reason = reason


class CallerDied(Exception):
    """The caller is gone; nothing it asked for may be done any more."""


class Caller:
    """The thread that made a call: its memory, and whether it still waits."""

    def __init__(self, loop: Loop, listener: int, notification: Notification) -> None:
        self._loop = loop
        self._listener = listener
        self.notification = notification

    def check_alive(self) -> None:
        """Check that the caller still waits.

        Raises:
            CallerDied: it does not.
        """
        if not is_alive(self._listener, self.notification.id):
            raise CallerDied

    async def read(self, work: Callable[[Memory], T]) -> T:
        """Run ``work`` on the caller's memory, with a deadline.

        It runs in a thread: the caller's pages may lie in a slow file (seccomp_unotify(2)).

        Raises:
            CallError: EFAULT, it cannot be read, or not in time; EPERM, the host forbids it.
            CallerDied: the caller was gone before it could be sure whose memory this is.
        """
        try:
            memory = Memory(self.notification.thread)
        except FileNotFoundError:
            raise CallerDied from None
        except PermissionError:
            raise CallError(
                errno.EPERM,
                "the memory of a program cannot be read: kernel.yama.ptrace_scope must be 0 or 1, "
                "see ptrace(2)",
            ) from None
        outcome: Future[Any] = self._loop.future()

        def run() -> None:
            try:
                value = work(memory)
            except BaseException as exc:  # handed over, see below
                error = exc
                self._loop.call_from_thread(lambda: outcome.set_error(error))
            else:
                self._loop.call_from_thread(lambda: outcome.set_result(value))
            finally:
                memory.close()

        try:
            self.check_alive()
        except CallerDied:
            memory.close()
            raise
        _thread.start_new_thread(run, ())
        if not await self._loop.first(outcome, timeout_s=_READ_DEADLINE_S):
            raise CallError(errno.EFAULT, "the memory of a program could not be read in time")
        try:
            value: T = await outcome
        except OSError as exc:
            raise CallError(exc.errno or errno.EFAULT) from None
        return value


class Settle(Protocol):
    """Called after the answer to a mount or umount was sent."""

    async def __call__(self, *, delivered: bool) -> None:
        """``delivered``: the caller got it; else it is gone, and what it asked for is undone."""
        ...


@dataclass(frozen=True, slots=True)
class Handlers:
    """What performs the calls; all raise :class:`CallError`.

    ``mount_root(caller)`` performs MountRootFS, ``mount`` and ``umount`` those of programs,
    ``sync()`` makes everything durable.
    """

    mount_root: Callable[[Caller], Awaitable[None]]
    mount: Callable[[Caller], Awaitable[Settle]]
    umount: Callable[[Caller], Awaitable[Settle]]
    sync: Callable[[], Awaitable[None]]


class Notifications:
    """All listeners of an instance. ``log(level, line)`` is the operator's."""

    def __init__(
        self,
        loop: Loop,
        numbers: Numbers,
        *,
        handlers: Handlers,
        log: Callable[[str, str], None],
    ) -> None:
        self._loop = loop
        self._numbers = numbers
        self._do = handlers
        self._log = log

    def add(self, listener: int) -> None:
        """Take over the listener of a program; closed when its last process has ended."""
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        self._loop.watch(listener, lambda: self._readable(listener, poller))

    def _readable(self, listener: int, poller: select.poll) -> None:
        events = poller.poll(0)
        if not events:
            return
        if not events[0][1] & select.POLLIN:
            # Hung up: receiving would wait for ever on older kernels.
            self._loop.unwatch(listener)
            os.close(listener)
            return
        notification = receive(listener)
        if notification is not None:
            self._loop.start(self._handle(listener, notification))

    async def _handle(self, listener: int, notification: Notification) -> None:
        caller = Caller(self._loop, listener, notification)
        code = 0
        settle: Settle | None = None
        try:
            settle = await self._dispatch(caller)
        except CallerDied:
            return
        except CallError as exc:
            code = exc.code
            if exc.reason:
                self._log("error", exc.reason)
        except Error as exc:
            code = errno.EIO
            self._log("error", str(exc))
        except Exception as exc:  # a defect must not leave the caller waiting for ever
            code = errno.EIO
            self._log("error", f"please report: a system call failed by a defect: {exc!r}")
        delivered = answer(listener, notification.id, error=code)
        if settle is not None:
            await settle(delivered=delivered)

    async def _dispatch(self, caller: Caller) -> Settle | None:
        number = caller.notification.number
        if number == MOUNT_ROOT_FS:
            await self._do.mount_root(caller)
        elif number == self._numbers.mount:
            return await self._do.mount(caller)
        elif number == self._numbers.umount2:
            return await self._do.umount(caller)
        elif number in (self._numbers.sync, self._numbers.syncfs):
            await self._do.sync()
        else:
            raise CallError(errno.ENOSYS)
        return None
