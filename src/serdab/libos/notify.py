# SPDX-License-Identifier: Apache-2.0
"""Performs the calls that the filter hands to the kernel process, and answers them.

Above: ``kernel``. Below: ``intake`` (which has received the call, and refused it if its arguments
were reason enough), ``filter``, ``rootconfig``.

Threads: calls are performed and answered in the loop's thread. Only the arguments of MountRootFS
are read here, in a thread of their own.

Security: the answer is always ours. No checked call is ever passed on to the kernel. The number of
mounts and umounts on their way is bounded, since each takes processes and descriptors outside.
"""

from __future__ import annotations

import _thread
import ctypes
import errno
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

from serdab.errors import Error
from serdab.libos.filter import MOUNT_ROOT_FS, Numbers
from serdab.libos.intake import (
    READ_DEADLINE_S,
    CallerDied,
    CallError,
    Copied,
    Intake,
    Look,
    unreadable,
)
from serdab.libos.loop import Future, Loop
from serdab.libos.mountcall import MountCall, UmountCall
from serdab.libos.turns import Turns
from serdab.linux.memory import Memory
from serdab.linux.process import is_open_file
from serdab.linux.seccomp import Listener, Notification
from serdab.structs import frozen

T = TypeVar("T")

#: With six descriptors each, and all the mounts there may be, this fits into the usual 1024.
MAX_AT_ONCE: Final = 64
TURN_PATIENCE_S: Final = 10.0


class Caller:
    """The thread that made a call: its memory, and whether it still waits."""

    def __init__(
        self,
        loop: Loop,
        listener: Listener,
        notification: Notification,
        owner: tuple[int, int],
    ) -> None:
        self._loop = loop
        self._owner = owner
        self._listener = listener
        self.notification = notification

    def check_alive(self) -> None:
        """Check that the caller still waits.

        Raises:
            CallerDied: it does not.
        """
        if not self._listener.is_alive(self.notification.id):
            raise CallerDied

    def check_open_file(self) -> None:
        """Check that the first argument is an open file of the caller.

        Raises:
            CallError: EBADF, it is not.
        """
        fd = ctypes.c_int(self.notification.arguments[0]).value
        try:
            is_open = is_open_file(self.notification.thread, fd)
        except OSError:
            return  # who keeps its files from us, or is gone, is not refused for that
        if not is_open:
            raise CallError(errno.EBADF)

    def answer(self, code: int) -> bool:
        """Answer with an errno, 0 for success; return False if the caller is gone."""
        return self._listener.answer(self.notification.id, error=code)

    async def read(self, work: Callable[[Memory], T]) -> T:
        """Run ``work`` on the caller's memory, with a deadline.

        It runs in a thread: the caller's pages may lie in a slow file (seccomp_unotify(2)).

        Raises:
            CallError: EFAULT, it cannot be read, or not in time; EPERM, the host forbids it.
            CallerDied: the caller was gone before it could be sure whose memory this is.
        """
        memory = Memory(self._owner)
        memory.turn_to(self.notification.thread)
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
                memory.forget()

        _thread.start_new_thread(run, ())
        if not await self._loop.first(outcome, timeout_s=READ_DEADLINE_S):
            raise CallError(errno.EFAULT, "the memory of a program could not be read in time")
        try:
            value: T = await outcome
        except ProcessLookupError:
            raise CallerDied from None
        except PermissionError:
            raise unreadable("rootfs") from None
        except OSError as exc:
            reason = f"rootfs: the arguments: {exc.strerror}"
            raise CallError(exc.errno or errno.EFAULT, reason) from None
        self.check_alive()  # so it was the caller's memory
        return value


class Settle(Protocol):
    """Called after the answer to a mount or umount was sent."""

    async def __call__(self, *, delivered: bool) -> None:
        """``delivered``: the caller got it; else it is gone, and what it asked for is undone."""
        ...


@frozen
class Handlers:
    """What performs the calls; all raise :class:`CallError`.

    ``mount_root(caller)`` performs MountRootFS, ``mount`` and ``umount`` those of programs, with
    what their looks returned; ``sync()`` makes everything durable.
    """

    look_at_root: Look
    mount_root: Callable[[Caller], Awaitable[None]]
    look_at_mount: Look
    mount: Callable[[Caller, MountCall], Awaitable[Settle]]
    look_at_umount: Look
    umount: Callable[[Caller, UmountCall], Awaitable[Settle]]
    sync: Callable[[], Awaitable[None]]


class Notifications:
    """All calls that the filter hands over.

    ``owner`` is a user and a group of the instance, ``log(level, line)`` is the operator's.
    """

    def __init__(
        self,
        loop: Loop,
        numbers: Numbers,
        *,
        handlers: Handlers,
        owner: tuple[int, int],
        log: Callable[[str, str], None],
    ) -> None:
        self._loop = loop
        self._numbers = numbers
        self._do = handlers
        self._owner = owner
        self._log = log
        looks = {
            MOUNT_ROOT_FS: handlers.look_at_root,
            numbers.mount: handlers.look_at_mount,
            numbers.umount2: handlers.look_at_umount,
        }
        self._turns = Turns(loop, MAX_AT_ONCE)
        self._intake = Intake(loop, looks, owner=owner, accept=self._accept, log=log)
        self.add = self._intake.add
        self.flush = self._intake.flush

    def _accept(self, listener: Listener, notification: Notification, copied: Copied) -> None:
        caller = Caller(self._loop, listener, notification, self._owner)
        self._loop.start(
            self._handle(caller, None) if copied is None else self._in_turn(caller, copied)
        )

    async def _in_turn(self, caller: Caller, copied: MountCall | UmountCall) -> None:
        if not await self._turns.take(TURN_PATIENCE_S):
            if caller.answer(errno.EAGAIN):
                line = f"{MAX_AT_ONCE} mounts and umounts are on their way, and none of them ends"
                self._intake.tell(line)
            return
        try:
            await self._handle(caller, copied)
        finally:
            self._turns.give_back()

    async def _handle(self, caller: Caller, copied: Copied) -> None:
        code = 0
        settle: Settle | None = None
        try:
            settle = await self._dispatch(caller, copied)
        except CallerDied:
            return
        except CallError as exc:
            code = exc.code
            if exc.reason:
                self._intake.tell(exc.reason)
        except Error as exc:
            code = errno.EIO
            self._intake.tell(str(exc))
        except Exception as exc:  # a defect must not leave the caller waiting for ever
            code = errno.EIO
            self._log("error", f"please report: a system call failed by a defect: {exc!r}")
        delivered = False
        try:
            delivered = caller.answer(code)
        finally:
            if settle is not None:
                await settle(delivered=delivered)

    async def _dispatch(self, caller: Caller, copied: Copied) -> Settle | None:
        number = caller.notification.number
        if isinstance(copied, MountCall):
            return await self._do.mount(caller, copied)
        if isinstance(copied, UmountCall):
            return await self._do.umount(caller, copied)
        if number == MOUNT_ROOT_FS:
            await self._do.mount_root(caller)
        elif number in (self._numbers.sync, self._numbers.syncfs):
            if number == self._numbers.syncfs:
                caller.check_open_file()
            await self._do.sync()
        else:
            raise CallError(errno.ENOSYS)
        return None
