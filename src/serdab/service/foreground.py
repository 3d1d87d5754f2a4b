# SPDX-License-Identifier: Apache-2.0
"""A service in the foreground, for systemd and its like.

Above: ``cli.foreground``. Below: ``server``, ``notify``. The caller is the service: standard error
is its log, and the manager that ``NOTIFY_SOCKET`` names hears when the instance is ready and when
it goes down (sd_notify(3)).
"""

from __future__ import annotations

import os
from collections.abc import Callable

from serdab.errors import Error, InternalError
from serdab.libos.interpreter import KEYBOARD
from serdab.libos.signals import die_of
from serdab.service import notify
from serdab.service.protocol import StartRequest
from serdab.service.server import Reporter, Server, default_signals


class _Foreground(Reporter):
    def __init__(self, say: Callable[[str, str], None], address: str | None) -> None:
        self._say = say
        self._address = address
        self.failure: Error | InternalError | None = None

    def log(self, level: str, line: str) -> None:
        self._say(level, line)

    def ready(self) -> None:
        self._say("notice", "the instance is ready")
        notify.notify(self._address, f"READY=1\nMAINPID={os.getpid()}\nSTATUS=running\n")

    def failed(self, error: Error | InternalError) -> None:
        self.failure = error

    def stopping(self) -> None:
        notify.notify(self._address, "STOPPING=1\nSTATUS=stopping\n")


def serve(request: StartRequest, say: Callable[[str, str], None], *, key_fd: int) -> int:
    """Boot, serve until stopped, go down; return the exit code, 128+n if a signal ended the boot.

    Of Ctrl-C during the boot this process dies, as any other would.

    Raises:
        Error: the instance did not boot.
    """
    default_signals()
    out = _Foreground(say, notify.take_address())
    server = Server(request, (0, 1, 2), out, key_fd=key_fd)
    is_fine = server.run()
    if out.failure is not None:
        if server.ended_by and not isinstance(out.failure, InternalError):
            if server.ended_by in KEYBOARD:
                die_of(server.ended_by)
            return 128 + server.ended_by
        raise out.failure
    return 0 if is_fine else 1
