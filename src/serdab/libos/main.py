# SPDX-License-Identifier: Apache-2.0
"""The kernel process from its first instruction on. Started by ``begin``; goes on in ``kernel``.

Above: nothing (it is executed). Below: ``early``, ``kernel``, which is imported after the launcher
and the nursery were started: they get ready while it is read.
"""

from __future__ import annotations

import _socket
import os

from serdab.errors import EnvironmentRefused, shortage_of
from serdab.libos.channel import Channel
from serdab.libos.early import Early
from serdab.linux.process import hide_memory


def main(fd: int, _path: list[str]) -> None:
    """Run the kernel process, whose control channel is ``fd``."""
    os.closerange(fd + 1, 65536)
    os.chdir("/")  # the caller's directory, and the mount it lies on, are not ours to hold
    os.set_inheritable(fd, False)
    early: Early | EnvironmentRefused
    try:
        early = Early(fd)
    except EnvironmentRefused as exc:
        early = exc
    except OSError as exc:
        refused = shortage_of(exc)
        if refused is None:
            raise
        early = refused
    # After the launcher was started, which must not wait for this; the first message, which may
    # hold a key, is read later.
    hide_memory()

    from serdab.libos.kernel import run

    run(Channel(_socket.socket(fileno=fd)), early)
