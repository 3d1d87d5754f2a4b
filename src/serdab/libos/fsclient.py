# SPDX-License-Identifier: Apache-2.0
"""The kernel process's side of an fs server.

Above: ``boot``, ``kernel``. Below: ``loop``, ``channel``, ``early``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from serdab.errors import Error, InternalError, from_dict
from serdab.libos.channel import Channel, close_all
from serdab.libos.early import Nursery
from serdab.libos.loop import Future, Loop
from serdab.libos.messages import Value
from serdab.libos.orders import Orders


class FsServer:
    """One fs server process. ``log(level, line)`` gets what it has to say."""

    def __init__(
        self, loop: Loop, name: str, *, nursery: Nursery, log: Callable[[str, str], None]
    ) -> None:
        self._loop = loop
        self.name = name
        self._log = log
        self._opened: Future[bytes] | None = None
        self._synced: list[Future[int]] = []
        self.closed: Future[str] = loop.future()
        self.is_serving = False
        self.is_read_only = False
        #: Its loss was told where it was unmounted: sync(2) says no more of it.
        self.is_given_up = False
        self._is_gone = False
        self._channel = Channel(nursery.new_server())
        loop.watch(self._channel.fileno(), self._readable)

    def _readable(self) -> None:
        message = self._channel.receive()
        if message is None:
            self._ended()
            return
        record, fds = message
        close_all(fds)
        match record.get("op"):
            case "opened":
                mac = record.get("root_mac")
                self.is_read_only = record.get("read_only") is True
                if self._opened is not None:
                    self._opened.set_result(mac if isinstance(mac, bytes) else b"")
            case "refused" if self._opened is not None:
                self._opened.set_error(from_dict(record))
            case "synced":
                code = record.get("errno")
                if self._synced:
                    self._synced.pop(0).set_result(code if isinstance(code, int) else 5)
            case "log":
                self._log(str(record.get("level")), f"{self.name}: {record.get('line')}")
            case "closed":
                self.closed.set_result(str(record.get("problem")))

    def _ended(self) -> None:
        self._loop.unwatch(self._channel.fileno())
        self._channel.close()
        self._is_gone = True
        died = self._death()
        if self._opened is not None:
            self._opened.set_error(died)
        self.closed.set_result(str(died) if self.is_serving else "")
        # One that closed its file system in order made everything durable on its way out.
        code = errno.EIO if self.closed.result() else 0
        for waiting in self._synced:
            waiting.set_result(code)
        self._synced.clear()

    def hold(self, fd: int) -> None:
        """Let it share a descriptor until it has ended; it stays the caller's too."""
        self._send({"op": "hold"}, (fd,))

    def join(self, group: list[int]) -> None:
        """Let it move to a control group; the descriptors stay the caller's too."""
        if group:
            self._send({"op": "join"}, tuple(group))

    async def open(self, orders: Orders, *, stage: str) -> bytes:
        """Let it open a file system; return the root MAC. After a refusal it may be asked again.

        The store does not know for which stage of the boot it opens: a refusal gets its name here.

        Raises:
            Error: what it refused, or that it is gone.
        """
        if self._is_gone:
            raise self._death()
        self._opened = self._loop.future()
        self._send(orders.dump(), orders.fds)
        try:
            return await self._opened
        except Error as exc:
            exc.stage = exc.stage or stage
            raise

    def _death(self) -> Error:
        return Error("an fs server ended unexpectedly", stage=self.name, subject="fs server")

    def serve(self, fuse_fd: int, pid_namespace: int = -1, *, is_root: bool = False) -> None:
        """Hand over the mount. The descriptor is closed here: the server is its only holder.

        ``pid_namespace``: a descriptor of the one that was mounted from, if that is another than
        the server's; it stays the caller's too. ``is_root``: it is mounted as ``tree`` mounts the
        root of an instance.
        """
        try:
            self.is_serving = True
            also = () if pid_namespace < 0 else (pid_namespace,)
            self._send({"op": "serve", "is_root": is_root}, (fuse_fd, *also))
        finally:
            os.close(fuse_fd)

    async def sync(self) -> int:
        """Let it make everything durable; return an errno."""
        if not self.is_serving:
            return 0
        if self.closed.is_done:
            # syncfs(2) on a dead mount succeeds, so this is where the caller hears of it.
            return errno.EIO if self.closed.result() and not self.is_given_up else 0
        future: Future[Any] = self._loop.future()
        self._synced.append(future)
        self._send({"op": "sync"})
        return int(await future)

    def dismiss(self) -> None:
        """Send it away before anything is mounted."""
        if self.is_serving:
            raise InternalError("an fs server is dismissed while it serves")
        self._send({"op": "quit"})

    def _send(self, record: dict[str, Value], fds: tuple[int, ...] = ()) -> None:
        if self._is_gone:
            return  # its end was told already, through the futures
        try:
            self._channel.send(record, fds)
        except (BrokenPipeError, ConnectionResetError):
            pass  # _readable hears the end of file and tells everybody
