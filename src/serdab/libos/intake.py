# SPDX-License-Identifier: Apache-2.0
"""Takes calls in: receives them, copies their arguments, and refuses on the spot what it can.

Above: ``notify``. Below: ``linux.seccomp``, ``loop``. What a call may ask for is said by its
``Look``, in ``mounts``.

A caller's memory may lie in a file that an fs server is slow to deliver, and no system call reads
another process's memory without waiting for that (seccomp_unotify(2), process_vm_readv(2)). To
start a thread for every call costs more than the call. So there is one thread that receives, reads
and answers by itself, the *front*; the loop looks after it while it works, and once it has been
with one call for too long another thread becomes the front. The late one finishes its call and
ends.

Threads: the loop's, which starts fronts and watches them; one front; and those that are late. A
front touches the loop only through ``call_from_thread``. A call that two of them answer is answered
once: the kernel admits one answer for each notification id.

Security:
    1. Every argument is copied once, and decisions use the copies. Before a call is handed on the
       notification is checked: whose memory and namespace were looked at still waits, so it was the
       caller (seccomp_unotify(2)). A refusal needs no such check: its answer reaches nobody else,
       and the operator hears what it says only when the kernel took that answer.
    2. Other callers wait for a late front for tens of milliseconds at most. The late call itself
       ends with EFAULT at its deadline.
    3. The number of late threads is bounded. Beyond it nobody's memory is read: EAGAIN.
    4. What the operator is told of refusals is bounded, by lines per second, whoever asks for what:
       beyond it they are counted.
"""

from __future__ import annotations

import _thread
import errno
import os
import select
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from serdab.libos.loop import Loop
from serdab.libos.mountcall import BadCall, MountCall, UmountCall
from serdab.linux.memory import Memory
from serdab.linux.seccomp import Listener, Notification
from serdab.structs import frozen

#: What a look returns; None for calls that have none.
Copied: TypeAlias = MountCall | UmountCall | None

READ_DEADLINE_S: Final = 10.0
_TICK_S: Final = 0.02
_MAX_LATE: Final = 32
_AT_ONCE: Final = 16
_LINES: Final = 256  # within _LINES_S
_LINES_S: Final = 1.0
_AFTER_DEFECT_S: Final = 1.0  # should it come again and again
_PTRACE_SCOPE: Final = "/proc/sys/kernel/yama/ptrace_scope"


class CallError(Exception):
    """A call is refused with an errno; ``reason`` is the line for the operator, if any."""

    __slots__ = ("code", "reason")

    def __init__(self, code: int, reason: str = "") -> None:
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason or os.strerror(self.code)


class CallerDied(Exception):
    """The caller is gone; nothing it asked for may be done any more."""


@frozen
class Look:
    """What a front does with a call before the loop hears of it.

    ``read(memory, arguments)`` copies and checks the arguments, then ``admit(thread)`` refuses by
    who calls; both run in a front and raise ``CallError``, ``BadCall`` or ``OSError``.
    """

    name: str
    read: Callable[[Memory, tuple[int, ...]], Copied]
    admit: Callable[[int], None]


def unreadable(what: str) -> CallError:
    """Return the refusal of a caller whose /proc files are closed to us."""
    try:
        with open(_PTRACE_SCOPE, encoding="ascii") as file:
            scope = file.read().strip()
    except OSError:
        scope = ""  # a kernel without Yama
    why = f"{what}: this machine does not let us read the caller's memory and directories"
    if scope not in ("", "0", "1"):
        why += f": expected kernel.yama.ptrace_scope 0 or 1, found {scope}"
    return CallError(errno.EPERM, f"{why}, see ptrace(2)")


class _Front:
    """One receiving thread. ``since`` is when it took its call, 0.0 while it has none."""

    __slots__ = ("listener", "memory", "notification", "reads", "since")

    def __init__(self, memory: Memory, *, reads: bool) -> None:
        self.memory = memory
        self.reads = reads
        self.since = 0.0
        self.listener: Listener | None = None
        self.notification: Notification | None = None


class _Line:
    """A line for the operator, and how many refusals in a row that the kernel took have it."""

    __slots__ = ("count", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.count = 0


class Intake:
    """All listeners of an instance.

    ``owner``: a user and a group of the instance; ``accept(listener, notification, copied)`` runs
    in the loop for calls that were not refused here (``copied`` is what the look returned, None for
    calls without one); ``log(level, line)`` is the operator's.
    """

    def __init__(
        self,
        loop: Loop,
        looks: Mapping[int, Look],
        *,
        owner: tuple[int, int],
        accept: Callable[[Listener, Notification, Copied], None],
        log: Callable[[str, str], None],
    ) -> None:
        self._loop = loop
        self._looks = looks
        self._owner = owner
        self._accept = accept
        self._log = log
        self._listeners: dict[int, Listener] = {}
        self._poller = select.epoll()
        self._front: _Front | None = None
        self._late: list[_Front] = []
        self._overdue: set[_Front] = set()
        self._lines: list[_Line] = []
        self._untold = 0
        self._telling = _thread.allocate_lock()
        self._room = _LINES
        self._room_until = 0.0
        self._is_ticking = False

    def add(self, fd: int) -> None:
        """Take over the listener of a program; closed when its last process has ended."""
        self._listeners[fd] = Listener(fd)
        self._poller.register(fd, select.EPOLLIN)
        if self._front is None:
            self._start_front()

    def tell(self, reason: str) -> None:
        """Tell of a call that was refused in the loop, within the same bound; in its thread."""
        with self._telling:
            lines = self._lines
            line = lines[-1] if lines and lines[-1].text == reason else self._note(reason)
            line.count += 1
        if not self._is_ticking:
            self._is_ticking = True
            self._start_ticking()

    def flush(self) -> None:
        """Tell the operator what was refused so far; in the loop's thread."""
        with self._telling:
            lines, self._lines = self._lines, []
            untold, self._untold = self._untold, 0
        for line in lines:
            if not line.count:
                continue
            times = "" if line.count == 1 else f" ({line.count} times)"
            self._log("error", line.text + times)
        if untold:
            self._log("error", f"refused besides, too many to tell: {untold} calls")

    # In the loop's thread ------------------------------------------------------------------

    def _start_front(self) -> None:
        self._front = front = _Front(Memory(self._owner), reads=self._may_read(len(self._late)))
        _thread.start_new_thread(self._run, (front,))

    def _relieve(self, busy: _Front, since: float) -> None:
        """Let another front take over from one that is with a call since then."""
        front = _Front(Memory(self._owner), reads=self._may_read(len(self._late) + 1))
        # Two that receive would wait for one call, and the calls of other programs for them. From
        # here to the assignment no other thread runs: the busy one is with that call, or goes on.
        if busy.since != since:
            return
        self._front = front
        self._late.append(busy)
        _thread.start_new_thread(self._run, (front,))

    def _may_read(self, late: int) -> bool:
        return late + len(self._overdue) < _MAX_LATE

    def _are_all_late(self) -> bool:
        """Return whether as many wait for memory as may, at this moment; any thread."""
        return sum(late.since != 0.0 for late in (*self._late, *self._overdue)) >= _MAX_LATE

    def _start_ticking(self) -> None:
        self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        """Look after the fronts, as long as there is anything to look after."""
        self.flush()
        now = time.monotonic()
        front = self._front
        since = 0.0 if front is None else front.since
        if front is not None and since and now - since >= _TICK_S:
            self._relieve(front, since)
        for late in list(self._late):
            if not late.since:
                self._late.remove(late)
            elif now - late.since >= READ_DEADLINE_S:
                self._late.remove(late)
                self._overdue.add(late)
                self._give_up(late)
        self._overdue = {late for late in self._overdue if late.since}
        if front is not None and not front.reads:
            front.reads = self._may_read(len(self._late))
        if self._late or self._overdue or (self._front and self._front.since):
            self._start_ticking()
            return
        self._is_ticking = False
        front = self._front
        if self._lines or self._untold or (front and front.since):
            self._wake()  # begun while the flag still stood

    def _give_up(self, late: _Front) -> None:
        listener, notification = late.listener, late.notification
        if listener is None or notification is None:
            return
        if listener.answer(notification.id, error=errno.EFAULT):
            self._log("error", "the memory of a program could not be read in time")

    # In a front ----------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._is_ticking:
            self._is_ticking = True
            self._loop.call_from_thread(self._start_ticking)

    def _run(self, front: _Front) -> None:
        try:
            while self._front is front:
                for fd, events in self._poller.poll(-1, _AT_ONCE):
                    if self._front is not front:
                        return
                    self._ready(front, self._listeners[fd], events)
        except BaseException as exc:  # handed over: a defect must not go unnoticed
            error = exc
            self._loop.call_from_thread(lambda: self._failed(error))

    def _failed(self, error: BaseException) -> None:
        self._log("error", f"please report: the intake of calls failed: {error!r}")
        self._loop.call_later(_AFTER_DEFECT_S, self._start_front)

    def _ready(self, front: _Front, listener: Listener, events: int) -> None:
        if not events & select.EPOLLIN:
            # Hung up: receiving would wait for ever on older kernels.
            self._poller.unregister(listener.fd)
            del self._listeners[listener.fd]
            listener.close()
            return
        notification = listener.receive()
        if notification is None:
            return
        look = self._looks.get(notification.number)
        if look is None:
            self._hand_over(listener, notification, None)
            return
        front.listener, front.notification = listener, notification
        front.since = time.monotonic()
        if not self._is_ticking:
            self._wake()
        front.memory.turn_to(notification.thread)
        try:
            if not front.reads and self._are_all_late():
                raise BadCall(errno.EAGAIN, f"the memory of {_MAX_LATE} callers is slow already")
            copied = look.read(front.memory, notification.arguments)
            look.admit(notification.thread)
            if listener.is_alive(notification.id):
                self._hand_over(listener, notification, copied)
        except BadCall as exc:
            self._refuse(listener, notification, exc.code, f"{look.name}: {exc.reason}")
        except CallError as exc:
            self._refuse(listener, notification, exc.code, exc.reason)
        except (FileNotFoundError, ProcessLookupError):
            pass  # the caller died
        except PermissionError:
            refusal = unreadable(look.name)
            self._refuse(listener, notification, refusal.code, refusal.reason)
        except OSError as exc:
            reason = f"{look.name}: the arguments: {exc.strerror}"
            self._refuse(listener, notification, exc.errno or errno.EFAULT, reason)
        except Exception as exc:  # a defect must not leave the caller waiting for ever
            reason = f"please report: a system call failed by a defect: {exc!r}"
            self._refuse(listener, notification, errno.EIO, reason)
        finally:
            front.memory.forget()
            front.since = 0.0

    def _refuse(
        self, listener: Listener, notification: Notification, code: int, reason: str
    ) -> None:
        # Noted before the answer, so that it is told before the caller's end. Not told before the
        # kernel took the answer: else the caller was gone, and somebody else's memory was read.
        lines = self._lines
        if lines and (line := lines[-1]).count and line.text == reason:
            line.count += 1  # without the lock: a count is not worth it
            if not listener.answer(notification.id, error=code):
                line.count -= 1
            return
        with self._telling:
            line = self._note(reason)
            if listener.answer(notification.id, error=code):
                line.count += 1

    def _note(self, text: str) -> _Line:
        """Keep a line for the operator, if there is room. With the lock held."""
        now = time.monotonic()
        if now >= self._room_until:
            self._room_until = now + _LINES_S
            self._room = _LINES
        line = _Line(text)
        if self._room:
            self._room -= 1
            self._lines.append(line)
        else:
            self._untold += 1
        return line

    def _hand_over(self, listener: Listener, notification: Notification, copied: Copied) -> None:
        self._loop.call_from_thread(lambda: self._accept(listener, notification, copied))
