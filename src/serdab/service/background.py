# SPDX-License-Identifier: Apache-2.0
"""A service in the background: the process that ``starter`` executes.

Above: ``starter``, at the other end of its channel. Below: ``server``, ``log``.

It has a session of its own and nothing of its starter's: standard streams are /dev/null and the
log file, every other descriptor is closed. Until the instance is ready the starter hears what the
operator is to know, and what init writes; afterwards the log does.
"""

from __future__ import annotations

import _socket
import _thread
import os
import signal
from functools import partial
from typing import Final

from serdab.errors import Error, InternalError
from serdab.libos.channel import Channel
from serdab.libos.messages import Value
from serdab.linux.process import hide_memory
from serdab.service.log import LogFile
from serdab.service.place import Place
from serdab.service.protocol import StartRequest
from serdab.service.server import Reporter, Server, default_signals

_CHUNK: Final = 4096


class _Background(Reporter):
    """Tells the log, and the starter as long as it is there."""

    def __init__(self, starter: Channel, file: LogFile) -> None:
        self._starter: Channel | None = starter
        self._file = file
        self.server: Server | None = None

    def claimed(self) -> None:
        self._file.publish()
        self.log_path = self._file.path

    def write(self, level: str, line: str) -> None:
        """Write a line to the log."""
        self._file.write(level, line)

    def log(self, level: str, line: str) -> None:
        self.write(level, line)
        self._tell({"op": "log", "level": level, "line": line})

    def output(self, written: bytes) -> None:
        """Pass on what init, or somebody it left behind, wrote."""
        self.write("init", written.decode("utf-8", "backslashreplace").removesuffix("\n"))
        self._tell({"op": "output", "bytes": written})

    def ready(self) -> None:
        self.write("notice", "the instance is ready")
        self._tell({"op": "ready", "pid": os.getpid()})
        self._let_starter_go()

    def failed(self, error: Error | InternalError) -> None:
        self.write("error", str(error))
        if isinstance(error, Error):
            self._tell({"op": "failed", **error.as_dict()})
        else:
            self._tell({"op": "defect", "trace": str(error)})
        self._let_starter_go()

    def stopping(self) -> None:
        self.write("notice", "stopping")

    def starter_went(self) -> None:
        """The starter was ended before the instance was ready: nobody wants it any more."""
        self._let_starter_go()
        if self.server is not None:
            self.server.stop(0)

    def _let_starter_go(self) -> None:
        if self._starter is not None:
            if self.server is not None:
                self.server.loop.unwatch(self._starter.fileno())
            self._starter.close()
            self._starter = None

    def _tell(self, record: dict[str, Value]) -> None:
        if self._starter is not None:
            try:
                self._starter.send(record)
            except OSError:
                pass  # its end is heard by the loop


def main(fd: int, _path: list[str]) -> None:
    """Be the service whose starter is at the other end of ``fd``."""
    os.closerange(fd + 1, 65536)
    os.chdir("/")
    os.set_inheritable(fd, False)
    hide_memory()
    default_signals()
    starter = Channel(_socket.socket(fileno=fd))
    message = starter.receive()
    if message is None:
        os._exit(1)
    record, fds = message
    request = StartRequest.parse(record)
    os.umask(request.umask)
    try:
        file = LogFile(Place.of(request.instance).log)
    except Error as exc:
        starter.send({"op": "failed", **exc.as_dict()})
        os._exit(1)
    # Before any process is started: they all inherit it, and nobody keeps what was there.
    os.dup2(file.fileno(), 2)
    out = _Background(starter, file)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    key_fd = fds[0] if request.has_key else -1
    server = out.server = Server(request, (null, writer, os.dup(writer)), out, key_fd=key_fd)
    server.loop.watch(starter.fileno(), out.starter_went)
    _thread.start_new_thread(_read_output, (reader, server, out))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        is_fine = server.run()
    except BaseException:
        import traceback

        out.write("error", traceback.format_exc())
        raise
    out.write("notice", "ended")
    file.discard()
    os._exit(0 if is_fine else 1)


def _read_output(reader: int, server: Server, out: _Background) -> None:
    """Read what init writes, until the last process that holds the other end has ended."""
    while piece := os.read(reader, _CHUNK):
        server.loop.call_from_thread(partial(out.output, piece))
    os.close(reader)
