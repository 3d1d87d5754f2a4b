# SPDX-License-Identifier: Apache-2.0
"""The fs server process: opens one file system, serves it until it is unmounted, makes it durable.

Above: ``nursery`` (which forks it). Below: ``storage``, ``fuse.session``. Its peer is the kernel
process: ``fsclient``.

Life: it waits; ``join`` moves it to a control group; ``hold`` brings a lock, which is
thus held until all is written; ``open`` brings orders, answered by ``opened`` or ``refused``;
``serve`` brings the descriptor of ``/dev/fuse``, and one of the PID namespace that was mounted
from, if it is another; from then on it serves, and answers
``sync``, until the kernel says that the mount is gone (ENODEV). Then it closes the file system and
says ``closed``. Neither a signal nor the death of the kernel process ends it earlier: late pages
of mappings are still to be written.

Security: it is non-dumpable before it receives a key; of the instance's directory it has no
descriptor but while it opens, unless that is what it serves. It holds the keys of one file system
and never more than one descriptor of ``/dev/fuse``, of which nobody else holds a copy.
"""

from __future__ import annotations

import _socket
import errno
import logging
import os
import traceback
from typing import Final, NoReturn

from serdab.errors import Error, InternalError
from serdab.libos.channel import Channel, close_all
from serdab.libos.limits import join
from serdab.libos.messages import Value
from serdab.libos.orders import Opened, Orders
from serdab.libos.storage import open_file_system
from serdab.linux.ownlimits import lift_limits
from serdab.linux.process import name_process
from serdab.vfs.api import FileSystem
from serdab.vfs.steps import Steps

_LEVELS: Final = {logging.ERROR: "error", logging.WARNING: "warning", logging.INFO: "info"}


class _Forward(logging.Handler):
    """Sends log lines to the kernel process."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        level = _LEVELS.get(record.levelno, "debug")
        _tell(self._channel, {"op": "log", "level": level, "line": record.getMessage()})


def _tell(channel: Channel, record: dict[str, Value]) -> None:
    try:
        channel.send(record)
    except OSError:
        pass  # the kernel process died: nobody is left to tell, the data still counts


class _Server:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._opened: Opened | None = None
        self._held: list[int] = []  # closed by the end of the process, and not before
        self._syncs_asked = 0

    def run(self) -> None:
        """Serve the messages of the kernel process in their order."""
        while (message := self._channel.receive()) is not None:
            record, fds = message
            match record.get("op"):
                case "hold":
                    self._held += fds
                case "join":
                    join(fds)
                    close_all(fds)
                case "open":
                    try:
                        orders = Orders.parse(record, fds)
                    except BaseException:
                        close_all(fds)
                        raise
                    try:
                        self._open(orders)
                    finally:
                        orders.close()  # what it opened holds descriptors of its own
                case "serve" if self._opened is not None and len(fds) in (1, 2):
                    is_root = record.get("is_root") is True
                    self._serve(fds[0], self._opened, *fds[1:], is_root=is_root)
                    return
                case "quit":
                    close_all(fds)
                    break
                case other:
                    close_all(fds)
                    raise InternalError(f"fs server: {other!r} is out of turn")
        # Asked to leave, or alone, before anything was mounted.
        if self._opened is not None:
            self._opened.fs.close()

    def _open(self, orders: Orders) -> None:
        if self._opened is not None:
            raise InternalError("fs server: a second open")
        try:
            lift_limits()
            self._opened = open_file_system(orders)
        except Error as exc:
            _tell(self._channel, {"op": "refused", **exc.as_dict()})
        except OSError as exc:
            error = Error(
                os.strerror(exc.errno or 0).lower(),
                subject=str(exc.filename or orders.image or orders.host_path),
            )
            _tell(self._channel, {"op": "refused", **error.as_dict()})
        else:
            for line in self._opened.notices:
                _tell(self._channel, {"op": "log", "level": "notice", "line": line})
            _tell(
                self._channel,
                {
                    "op": "opened",
                    "root_mac": self._opened.root_mac,
                    "read_only": self._opened.read_only,
                },
            )

    def _serve(self, fd: int, opened: Opened, pid_namespace: int = -1, *, is_root: bool) -> None:
        from serdab.fuse.operations import ServeOptions
        from serdab.fuse.session import Session, SessionOptions, spare_collector

        spare_collector()
        options = SessionOptions(
            serve=ServeOptions(shows_trusted=False, is_root=is_root),
            wake_fd=self._channel.fileno(),
            pid_namespace=pid_namespace,
            on_wake=self._spoken_to,
        )
        try:
            Session(fd, opened.fs, options=options, log=self._log).run()
        finally:
            os.close(fd)
            problem = ""
            try:
                opened.fs.close()
            except (Error, OSError) as exc:
                problem = str(exc)
            _tell(self._channel, {"op": "closed", "problem": problem})

    def _spoken_to(self) -> bool | Steps[None]:
        message = self._channel.receive()
        if message is None:
            return False
        record, fds = message
        close_all(fds)
        if record.get("op") == "sync" and self._opened is not None:
            self._syncs_asked += 1
            if self._syncs_asked == 1:
                return self._sync(self._opened.fs)
        return True

    def _sync(self, fs: FileSystem) -> Steps[None]:
        """Answer all who ask for it: one that begins after several have asked is for them all.

        Of those that the end of the session leaves, its peer knows (``fsclient``).
        """
        from serdab.fuse.insteps import InSteps

        in_steps = InSteps(fs)
        while asked := self._syncs_asked:
            code = 0
            try:
                yield from in_steps.syncfs()
            except OSError as exc:
                code = exc.errno or errno.EIO
            except Error as exc:
                self._log(str(exc))
                code = errno.EIO
            for _ in range(asked):
                _tell(self._channel, {"op": "synced", "errno": code})
            self._syncs_asked -= asked

    def _log(self, line: str) -> None:
        _tell(self._channel, {"op": "log", "level": "error", "line": line})


def import_early() -> None:
    """Import everything a server may need; a key has not arrived yet."""
    import serdab.fuse.session
    import serdab.libos.owners
    import serdab.sefs.image
    import serdab.sefs.memorydir
    import serdab.sefs.volume
    import serdab.trust.freshness
    import serdab.vfs.hostfs
    import serdab.vfs.union  # noqa: F401


def serve(fd: int) -> NoReturn:
    """Be an fs server whose channel is ``fd``, from here to the end of the process."""
    name_process("serdab-fs")
    channel = Channel(_socket.socket(fileno=fd))
    handler = _Forward(channel)
    logging.getLogger("serdab").addHandler(handler)
    logging.getLogger("serdab").setLevel(logging.INFO)
    try:
        _Server(channel).run()
    except BaseException:
        lines = traceback.format_exc().rstrip().replace("\n", " | ")
        _tell(channel, {"op": "log", "level": "error", "line": f"please report: {lines}"})
        os._exit(1)
    # The volume is closed; taking the interpreter apart would only cost time.
    os._exit(0)
