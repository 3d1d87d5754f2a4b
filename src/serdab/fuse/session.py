# SPDX-License-Identifier: Apache-2.0
"""The loop over ``/dev/fuse``: read a request, answer it, until the file system is unmounted.

Above: the process that serves a mount. Below: ``operations`` (what each request means),
``wire`` (bytes).

Threads: :meth:`Session.run` is one thread; :meth:`Session.stop` may be called from any thread or
a signal handler.

What escapes the file system becomes an errno here and nowhere else: an ``OSError`` its own, a
refused verification EIO (the file system has logged it), a malformed request EINVAL, and anything
else EIO with a traceback in the log. The server lives on.

Waiting: a program that waits for every answer leaves its CPU idle while the server works, and the
server its own meanwhile; to wake an idle CPU costs more than to serve a request, on a virtual
machine above all. So the session asks for the next request for some 80 µs before it sleeps
(measured in memory: 28 000 to 49 000 creates per second, against 17 000 to 41 000), gives that up
while it finds nothing, and takes it up again when a request follows soon after it fell asleep.
Binding the server to the CPU of the program is faster still (57 000), but cannot be had: the
scheduler wakes the program on the other, idle CPU, and so they part again. It stays only if the
server runs as SCHED_IDLE, which starves as soon as anyone else computes on that CPU.

What the kernel forgets takes no answer, and it hands it out after up to eight requests that were
queued later (fuse_dev_do_read() in Linux 6.18). So on a full file system a program that removes a
file and makes another could read ENOSPC. Such a request is tried once more when nothing is queued
and nothing that was removed is left to be freed.

Bounded requests: what takes longer than some milliseconds is done in steps, one after each request
of others (``parked``); so are the chores of the file system, what is left to free of removed files.

While the program computes, a file system that has a method ``ahead`` is called once after each
reply, to prepare what is likely to be asked for next: a few microseconds that nobody waits for.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import math
import os
import select
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from io import FileIO
from typing import Final

from serdab.errors import EnvironmentRefused, Error, printable
from serdab.fuse import wire
from serdab.fuse.abi import Opcode
from serdab.fuse.operations import Operations, ServeOptions
from serdab.fuse.parked import Parked, Reply, Request
from serdab.structs import field, frozen
from serdab.vfs.api import FileSystem
from serdab.vfs.steps import Chores, Steps, Unfinished

#: The kernel has let go of the connection: unmounted, aborted, or (in tests) the peer has closed.
_GONE: Final = frozenset((errno.ENODEV, errno.ECONNABORTED, errno.EPIPE, errno.ECONNRESET))
#: After activity the file system is asked within this time what it wants to do when idle.
_TICK_LAG_S: Final = 0.1
#: How many requests may pass without a pause before a busy session looks at the clock.
_BUSY_REQUESTS: Final = 256
#: So many requests wait for room at most: each may be a megabyte, and there may be many threads.
_MAX_LATE: Final = 16
#: So many times in a row polling may find nothing before it is given up.
_POLL_CREDIT: Final = 8


def _log_to_stderr(line: str) -> None:
    # The default when nobody listens.
    print(printable(line), file=sys.stderr, flush=True)  # noqa: T201


def _nothing() -> None: ...


def spare_collector() -> None:
    """Have the collector look for cycles rarely, in a process that serves until its end.

    What is imported stays: to walk it again and again costs 7 % of a request. To look at all that
    is held of a large file system holds everybody up.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@frozen
class SessionOptions:
    """How to serve. ``wake_fd``: a descriptor that ends the session when it becomes readable.

    With ``on_wake`` it does not end it: that is called between two requests, so it may call the
    file system; when it returns False, the descriptor is no longer looked at. Steps that it returns
    are done like those of a request; the end of the session may come before their last.

    ``pid_namespace``: a descriptor of that of whoever mounted, if it is not ours.

    ``poll_s``: how long to ask for the next request before sleeping, see the module.
    """

    serve: ServeOptions = field(default_factory=ServeOptions)
    poll_s: float = 80e-6
    wake_fd: int = -1
    pid_namespace: int = -1
    on_wake: Callable[[], bool | Steps[None]] | None = None


class Session:
    """Serves one file system over one ``/dev/fuse`` descriptor, which stays the caller's."""

    def __init__(
        self,
        fd: int,
        fs: FileSystem,
        *,
        options: SessionOptions | None = None,
        log: Callable[[str], None] = _log_to_stderr,
    ) -> None:
        self._fd = fd
        self._fs = fs
        self._options = options or SessionOptions()
        self._log = log
        self._operations = Operations(fs, self._options.serve, partial(os.write, fd))
        self._operations.table[Opcode.INTERRUPT] = self._interrupt
        #: What is answered after more steps, the next one first.
        self._parked: deque[Request] = deque()
        #: Those of which the next step makes sense when a descriptor is readable.
        self._sleeping: dict[int, list[Request]] = {}
        self._poller = select.poll()
        #: What the file system has to do while nobody waits.
        self._chores: Chores = getattr(fs, "chores", deque())
        #: What found no room, and is tried once more.
        self._late: deque[tuple[int, bytes]] = deque()
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        #: Held while the descriptor is used or closed: another thread may stop us as we end.
        self._ending = threading.Lock()
        self._stopped = False
        self._tick_due = 0.0
        self._ticked_at = 0.0
        self._handled_at_tick = -1
        self._handled = 0

    def stop(self) -> None:
        """Make :meth:`run` return after the request it is at; any thread may ask."""
        self._stopped = True
        with self._ending:
            if self._stop_fd >= 0:
                os.eventfd_write(self._stop_fd, 1)

    def run(self) -> None:
        """Serve, once, until the file system is unmounted or :meth:`stop` is called."""
        os.set_blocking(self._fd, False)
        device = FileIO(self._fd, "rb", closefd=False)
        try:
            self._serve(device)
        finally:
            device.close()
            for request in (*self._parked, *itertools.chain(*self._sleeping.values())):
                request.close()
            with self._ending:
                stop_fd, self._stop_fd = self._stop_fd, -1
                os.close(stop_fd)

    def _serve(self, device: FileIO) -> None:
        # One long function on purpose: a call costs a twentieth of a request here.
        receive, send, fd = device.readinto, os.write, self._fd
        operations = self._operations
        request, view = operations.request, operations.view
        find, unsupported = operations.table.get, operations.unsupported
        parse_header = wire.parse_header
        ahead: Callable[[], None] = getattr(self._fs, "ahead", _nothing)
        poll_ns = int(self._options.poll_s * 1e9) if len(os.sched_getaffinity(0)) > 1 else 0
        clock = time.perf_counter_ns
        poller = self._watch()
        credit = _POLL_CREDIT
        busy = 0
        late, parked, chores, sleeping = self._late, self._parked, self._chores, self._sleeping
        tried = 0
        reply: Reply
        while not self._stopped:
            if parked or chores or sleeping:
                self._advance()
            try:
                size = receive(request)
                if size is None and (parked or chores):
                    self._wait(poller, most_ms=0)
                    continue
                if size is None and late:
                    tried, saved = late.popleft()
                    size = len(saved)
                    view[:size] = saved
                elif size is None:
                    busy = 0
                    ahead()
                    now = clock()
                    if credit and poll_ns:
                        until = now + poll_ns
                        while (size := receive(request)) is None and (now := clock()) < until:
                            pass
                        credit = _POLL_CREDIT if size is not None else credit - 1
                    if size is None:
                        self._wait(poller)
                        if clock() - now < poll_ns:
                            credit = _POLL_CREDIT
                        continue
            except OSError as exc:
                if exc.errno in _GONE:
                    return
                if exc.errno in (errno.ENOENT, errno.EINTR):
                    continue  # the request was withdrawn between being queued and being read
                raise
            if size == 0:
                return  # only where something else stands in for the device

            unique = 0
            try:
                opcode, unique, nodeid, uid, gid = parse_header(view, size)
                reply = find(opcode, unsupported)(unique, nodeid, uid, gid, size)
            except (Parked, Unfinished) as exc:
                self._park(unique, size, exc)
                reply = None
            except Exception as exc:
                # The edge: every failure becomes an errno, and the server lives.
                reply = self._refusal(unique, exc)
                is_full = isinstance(exc, OSError) and exc.errno == errno.ENOSPC
                if is_full and unique != tried and len(late) < _MAX_LATE:
                    late.append((unique, bytes(view[:size])))
                    reply = None
            if reply is not None:
                try:
                    send(fd, reply)
                except OSError as exc:
                    if exc.errno in _GONE:
                        return
                    self._unsent(exc)

            self._handled += 1
            busy += 1
            if busy >= _BUSY_REQUESTS:
                busy = 0
                # What wakes us must not starve while there is always another request.
                self._look_up(poller)
                self._refuse(late)

    def _unsent(self, exc: OSError) -> None:
        # ENOENT: the caller was killed, its request is gone. Else we were wrong.
        if exc.errno != errno.ENOENT and exc.errno not in _GONE:
            self._log(f"fuse: the kernel refused a reply: {exc.strerror}")

    # Requests in steps --------------------------------------------------------------------

    def _park(self, unique: int, size: int, why: Parked | Unfinished) -> Request:
        """Answer the request in the buffer later."""
        view = self._operations.view
        pid = wire.parse_pid(view)
        if isinstance(why, Parked):
            request = Request(unique, pid, why.steps, why.answer)
            self._put_off(request, why.waits_for)
        else:
            saved = bytes(view[:size])
            request = Request(unique, pid, why.steps, lambda _: self._ask_again(saved, request))
            self._put_off(request, None)
        return request

    def _put_off(self, request: Request, waits_for: int | None) -> None:
        """Go on with a request in its turn, or when a descriptor is readable."""
        if waits_for is None:
            self._parked.append(request)
            return
        if waits_for not in self._sleeping:
            self._poller.register(waits_for, select.POLLIN)
        self._sleeping.setdefault(waits_for, []).append(request)

    def _wake_those(self, fd: int) -> None:
        """A descriptor is readable: all that wait for it go on."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)
        self._poller.unregister(fd)
        self._parked.extend(self._sleeping.pop(fd))

    def _ask_again(self, saved: bytes, before: Request) -> Reply:
        """Serve a request whose file system knows by now what it did not."""
        operations, size = self._operations, len(saved)
        operations.view[:size] = saved
        opcode, unique, nodeid, uid, gid = wire.parse_header(operations.view, size)
        try:
            call = operations.table.get(opcode, operations.unsupported)
            return call(unique, nodeid, uid, gid, size)
        except (Parked, Unfinished) as exc:
            request = self._park(unique, size, exc)
            # The kernel says so once.
            request.is_interrupted, request.pid = before.is_interrupted, before.pid
            return None

    def _advance(self) -> None:
        """Do one step of what is parked, or else of what the file system has to do."""
        if self._sleeping:
            for fd, _ in self._poller.poll(0):
                if fd in self._sleeping:
                    self._wake_those(fd)
        if not self._parked:
            if self._chores:
                self._do_chore()
            return
        request = self._parked.popleft()
        reply: Reply
        try:
            try:
                waits_for = request.step()
            except StopIteration as end:
                reply = request.answer(end.value)
            else:
                self._put_off(request, waits_for)
                return
        except Exception as exc:
            reply = self._refusal(request.unique, exc)
        if reply is not None:
            try:
                os.write(self._fd, reply)
            except OSError as exc:
                self._unsent(exc)  # if the connection is gone, receiving says so

    def _do_chore(self) -> None:
        chore = self._chores.popleft()
        try:
            next(chore)
        except StopIteration:
            return
        except Exception as exc:
            self._refusal(0, exc)
            return
        self._chores.append(chore)

    def _interrupt(self, _unique: int, _nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        """The caller of a request got a signal: see ``parked``."""
        unique = wire.parse_interrupt(self._operations.view, size)
        namespace = self._options.pid_namespace
        for request in (*self._parked, *itertools.chain(*self._sleeping.values())):
            if request.unique == unique:
                request.interrupt(namespace)
        self._operations.interrupt(unique, namespace)
        for entry in self._late:
            if entry[0] == unique:
                # It was refused; there is no need to try once more.
                self._late.remove(entry)
                return wire.dump_error(unique, errno.ENOSPC)
        return None

    # Refusals -----------------------------------------------------------------------------

    def _refusal(self, unique: int, exc: Exception) -> bytes | None:
        code = errno.EIO
        if isinstance(exc, OSError):
            if exc.errno is not None and 0 < exc.errno < 512:
                code = exc.errno
            else:
                self._log(f"fuse: an error without a number became EIO: {exc!r}")
        elif isinstance(exc, wire.MalformedRequest):
            code = errno.EINVAL
            self._log(f"fuse: malformed request refused: {exc}")
        elif isinstance(exc, MemoryError):
            code = errno.ENOMEM
        elif isinstance(exc, Error):
            if isinstance(exc, EnvironmentRefused):
                code = errno.EPROTO
            # One line for each: a program that reads EIO must not be all that anybody hears of it.
            self._log(str(exc))
        else:
            trace = "".join(traceback.format_exception(exc)).rstrip().replace("\n", " | ")
            self._log(f"fuse: a request failed by a defect, please report: {trace}")
        return wire.dump_error(unique, code) if unique else None

    def _refuse(self, late: deque[tuple[int, bytes]]) -> None:
        """Let those not wait for room any longer who came before so many requests."""
        while late:
            unique, _ = late.popleft()
            with contextlib.suppress(OSError):  # who is gone hears nothing; else receiving says so
                os.write(self._fd, wire.dump_error(unique, errno.ENOSPC))

    def _watch(self) -> select.poll:
        poller = self._poller
        poller.register(self._fd, select.POLLIN)
        poller.register(self._stop_fd, select.POLLIN)
        if self._options.wake_fd >= 0:
            poller.register(self._options.wake_fd, select.POLLIN)
        return poller

    def _wait(self, poller: select.poll, *, most_ms: float | None = None) -> None:
        """Do timed work that is due, or sleep until there is a request or a reason to stop."""
        now = time.monotonic()
        due = self._next_tick()
        if due <= now:
            self._tick()
            return
        timeout_ms = None if due == math.inf else (due - now) * 1000.0 + 0.5
        for fd, _ in poller.poll(timeout_ms if most_ms is None else most_ms):
            if fd == self._fd:
                continue
            if fd in self._sleeping:
                self._wake_those(fd)
            elif fd == self._options.wake_fd and self._options.on_wake is not None:
                self._wake(poller, self._options.on_wake)
            else:
                self._stopped = True

    def _wake(self, poller: select.poll, on_wake: Callable[[], bool | Steps[None]]) -> None:
        answer = on_wake()
        if not isinstance(answer, bool):
            self._put_off(Request(0, 0, answer, lambda _: None), None)
        elif not answer:
            poller.unregister(self._options.wake_fd)

    def _look_up(self, poller: select.poll) -> None:
        if self._next_tick() <= time.monotonic():
            self._tick()
        if self._options.on_wake is None:
            return
        for fd, _ in poller.poll(0):
            if fd == self._options.wake_fd:
                self._wake(poller, self._options.on_wake)

    def _next_tick(self) -> float:
        """Return when the file system is to be asked: its own wish, or soon after a change."""
        if self._handled == self._handled_at_tick:
            return self._tick_due
        return min(self._tick_due, self._ticked_at + _TICK_LAG_S)

    def _tick(self) -> None:
        self._handled_at_tick = self._handled
        try:
            delay_s = self._fs.tick()
        except Exception as exc:
            self._refusal(0, exc)
            delay_s = 1.0
        self._ticked_at = time.monotonic()
        self._tick_due = math.inf if delay_s is None else self._ticked_at + max(delay_s, 0.001)
