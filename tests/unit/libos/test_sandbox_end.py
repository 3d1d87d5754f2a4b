# SPDX-License-Identifier: Apache-2.0
"""A sandbox whose pid 1 is ended before anybody has taken it over: that is told, and no defect."""

from __future__ import annotations

import os
import select
import signal
import socket

import pytest

from serdab.errors import Error
from serdab.libos.early import Started
from serdab.libos.launcher import HEADER
from serdab.libos.loop import Loop
from serdab.libos.sandbox import Listeners, Sandbox
from tests.unit.libos.test_loop import run

pytestmark = pytest.mark.userns


def test_a_pid_1_that_is_gone_already_is_said_to_be() -> None:
    started, loop = Started(), Loop()
    assert select.select([started.end], [], [], 60)[0]
    *_, pid = HEADER.unpack(started.end.recv(HEADER.size, socket.MSG_PEEK))
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    sandbox = Sandbox(
        loop,
        started,
        Listeners(
            on_listener=os.close,
            on_fuse=lambda *_: None,
            on_stop=lambda *_: None,
            on_exit=lambda *_: None,
            on_gone=lambda: None,
        ),
    )

    async def enter() -> None:
        with pytest.raises(Error, match="the sandbox ended"):
            await sandbox.enter()
        await sandbox.gone

    run(loop, enter())
    assert sandbox.namespaces == ()
