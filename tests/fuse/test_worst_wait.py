# SPDX-License-Identifier: Apache-2.0
"""The worst request there is, by the clock: how long another client waits for a file it makes.

By the clock, and so in `make soak` only, on a machine with nothing else to do; what is counted
instead, always, is in tests/store/test_bounded_requests.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.fuse.conftest import Served

pytestmark = pytest.mark.soak

MOST_S = 0.2
MIB = 1 << 20
_CALLER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def fallocate(mode, offset, length):
    fd = os.open(sys.argv[1], os.O_RDWR)
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")
def copy():
    source = os.open(sys.argv[1], os.O_RDONLY)
    into = os.open(sys.argv[1] + ".copy", os.O_RDWR | os.O_CREAT)
    while os.copy_file_range(source, into, 1 << 40):
        pass
{}
"""
CALLS = {
    "copy": "copy()",
    "seek": "os.lseek(os.open(sys.argv[1], os.O_RDONLY), 0, os.SEEK_HOLE)",
    "zero": "fallocate(16, 0, 1 << 40)",
    "punch": "fallocate(3, 0, 1 << 40)",
    "truncate": "os.truncate(sys.argv[1], 1000)",
    "unlink": "os.unlink(sys.argv[1])",
}


def _dense(path: str) -> None:
    with open(path, "wb") as file:
        for number in range(512):
            file.write(bytes([number % 255 + 1]) * MIB)


def _scattered(path: str) -> None:
    with open(path, "wb") as file:
        for number in range(20_000):
            os.pwrite(file.fileno(), b"x", number * 64 * MIB)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _worst_wait(served: Served, process: subprocess.Popen[bytes], name: str) -> float:
    """Make files in another directory until a process has ended; return the longest wait."""
    folder = served.path / f"of another {name}"
    folder.mkdir()
    worst, number = 0.0, 0
    while process.poll() is None or number < 100:
        begin = time.monotonic()
        os.close(os.open(folder / str(number), os.O_CREAT | os.O_WRONLY))
        worst = max(worst, time.monotonic() - begin)
        number += 1
    return worst


@pytest.mark.parametrize("make", [_dense, _scattered])
@pytest.mark.parametrize("call", CALLS)
def test_nobody_waits_long_for_what_another_asks(
    serve: Callable[..., Served], make: Callable[[str], None], call: str
) -> None:
    served = serve("sealed")
    path = os.fspath(served.path / "large")
    make(path)
    code = _CALLER.format(CALLS[call])
    with subprocess.Popen([sys.executable, "-c", code, path]) as process:
        worst = _worst_wait(served, process, call)
    assert process.returncode == 0
    print(f"{call} {make.__name__}: {worst * 1000:.0f} ms")
    assert worst < MOST_S


@pytest.mark.parametrize("call", CALLS)
def test_whoever_is_killed_is_gone(serve: Callable[..., Served], call: str) -> None:
    served = serve("sealed")
    path = os.fspath(served.path / "large")
    _scattered(path)
    code = _CALLER.format("print('ready', flush=True)\n" + CALLS[call])
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05)
        process.kill()
        begin = time.monotonic()
        process.wait(60)
    print(f"{call}: {(time.monotonic() - begin) * 1000:.0f} ms")
    assert time.monotonic() - begin < MOST_S
