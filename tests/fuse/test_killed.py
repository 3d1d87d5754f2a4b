# SPDX-License-Identifier: Apache-2.0
"""A caller whose request takes long can be killed, and others are served meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.conftest import Served
from tests.fuse.server import children_of

_CALLER = """
import mmap, os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8192)
"""
_CALLS = {
    "fallocate": "os.posix_fallocate(fd, 0, 100)",
    "lseek": "os.lseek(fd, 0, os.SEEK_HOLE)",
    "lseek where the kernel may hold more": """
area = mmap.mmap(fd, 8192)
area[0]
os.lseek(fd, 0, os.SEEK_HOLE)
""",
}


def _began(root: Path) -> bool:
    return "user.began" in os.listxattr(root)


@pytest.mark.parametrize("call", _CALLS.values(), ids=_CALLS)
def test_whoever_asks_for_what_never_ends_is_gone_when_killed(
    serve: Callable[..., Served], call: str
) -> None:
    """Also after a signal that did not end it: the kernel tells the server of the first one only
    (request_wait_answer() in Linux 6.18), and no program expects EINTR here."""
    served = serve("endless")
    caller = subprocess.Popen(
        [sys.executable, "-c", _CALLER + call, os.fspath(served.path / "file")]
    )
    try:
        while not _began(served.path):
            assert caller.poll() is None
        caller.send_signal(signal.SIGUSR1)
        for number in range(100):
            (served.path / f"of another {number}").touch()
        assert caller.poll() is None, "it lives, and waits"
        caller.kill()
        assert caller.wait(60) == -signal.SIGKILL
    finally:
        caller.kill()
        caller.wait(60)
    assert served.unmount() == ""


def test_a_caller_in_the_pid_namespace_of_who_mounted_is_known(
    serve: Callable[..., Served],
) -> None:
    """Its number there is nobody's here, or somebody else's."""
    served = serve("endless", "--inner")
    path = os.fspath(served.path / "file")
    first = os.getxattr(served.path, "user.first").decode()
    enter = ["nsenter", "--target", first, "--pid", sys.executable, "-c"]
    caller = subprocess.Popen([*enter, _CALLER + _CALLS["fallocate"], path])
    try:
        while not _began(served.path):
            assert caller.poll() is None
        (inside,) = children_of(caller.pid)
        os.kill(inside, signal.SIGUSR1)
        (served.path / "of another").touch()
        assert caller.poll() is None, "it lives, and waits"
        os.kill(inside, signal.SIGKILL)
        assert caller.wait(60) != 0
    finally:
        caller.kill()
        caller.wait(60)
    assert served.unmount() == ""
