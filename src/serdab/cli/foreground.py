# SPDX-License-Identifier: Apache-2.0
"""The process that ``serdab start --foreground`` becomes; no verb of its own.

Above: nothing (``starter.become`` executes it). Below: ``service.foreground``, and ``main`` for
what becomes of errors. It is a process image of its own so that the one that read the key is gone.
"""

from __future__ import annotations

import _socket
import os

from serdab.cli import interrupts
from serdab.cli.main import Call, finish
from serdab.cli.messages import Context
from serdab.libos.channel import Channel
from serdab.libos.fields import text
from serdab.linux.process import hide_memory
from serdab.service.protocol import StartRequest


def main(fd: int, _path: list[str]) -> None:
    """Be the service that the message in the channel ``fd`` asks for."""
    interrupts.let_end_us()
    interrupts.let_through()  # held back by ``become_python``, up to here
    os.set_inheritable(fd, False)
    hide_memory()
    context = Context()

    def serve() -> int:
        from serdab.pal import log_to_stderr
        from serdab.service.foreground import serve

        channel = Channel(_socket.socket(fileno=fd))
        message = channel.receive()
        channel.close()
        if message is None:
            return 1
        record, fds = message
        context.as_json = record.get("json") is True
        context.log_level = text(record, "level")
        request = StartRequest.parse(record)
        key_fd = fds[0] if request.has_key else -1
        return serve(request, log_to_stderr(context.log_level), key_fd=key_fd)

    interrupts.end(finish(serve, context, Call("start")))
