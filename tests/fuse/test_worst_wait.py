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
from pathlib import Path

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
def copy(offset):
    source = os.open(sys.argv[1], os.O_RDONLY)
    into = os.open(sys.argv[1] + ".copy", os.O_RDWR | os.O_CREAT)
    os.lseek(source, offset, os.SEEK_SET)
    while os.copy_file_range(source, into, 1 << 40):
        pass
def small_files(count):
    folder = sys.argv[1] + ".files"
    os.mkdir(folder)
    for number in range(count):
        with open(os.path.join(folder, str(number * 7919 % count)), "wb") as file:
            file.write(b"x" * 500)
    return folder
def synced(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
def dirty():
    with open(sys.argv[1], "r+b") as file:
        for number in range(6000):
            os.pwrite(file.fileno(), b"dirty", number * 40_000)
{}
"""
CALLS = {
    "copy": "copy(0)",
    "copy where nothing can be shared": "copy(1)",
    "seek": "os.lseek(os.open(sys.argv[1], os.O_RDONLY), 0, os.SEEK_HOLE)",
    "zero": "fallocate(16, 0, 1 << 40)",
    "punch": "fallocate(3, 0, 1 << 40)",
    "truncate": "os.truncate(sys.argv[1], 1000)",
    "unlink": "os.unlink(sys.argv[1])",
    "unlink while it is open": "fd = os.open(sys.argv[1], 0); os.unlink(sys.argv[1]); os.close(fd)",
    "rename over it": "new = sys.argv[1] + '.new'; open(new, 'w'); os.rename(new, sys.argv[1])",
    "fsync of much that is dirty": "dirty(); synced(sys.argv[1])",
    "stat of what is dirty": "dirty(); os.stat(sys.argv[1])",
    "read of all": "print(len(open(sys.argv[1], 'rb').read(1 << 30)))",
}
FILES = {
    "creates, and their checkpoints": "small_files(50_000)",
    "fsync of many files": "synced(small_files(50_000))",
    "readdir": "print(len(list(os.scandir(small_files(50_000)))))",
    "removes": "folder = small_files(30_000); [os.unlink(each) for each in os.scandir(folder)]",
    "attributes": "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
    "for number in range(2000):\n"
    "    os.setxattr(fd, f'user.{number}', b'x' * 4000)\n"
    "os.listxattr(fd); os.fsync(fd)\n"
    "os.close(fd); os.unlink(sys.argv[1])",
}
"""What is asked where there is no large file yet."""


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


def _nothing(_path: str) -> None:
    pass


def host(tmp_path: Path) -> Path:
    """Return where a volume lies: on a disk, since its flushes count."""
    place = tmp_path / "host"
    place.mkdir()
    return place


ASKED = [
    *((call, make) for call in CALLS for make in (_dense, _scattered)),
    *((call, _nothing) for call in FILES),
]


@pytest.mark.parametrize(("call", "make"), ASKED)
def test_nobody_waits_long_for_what_another_asks(
    serve: Callable[..., Served],
    make: Callable[[str], None],
    call: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served = serve("sealed", "--source", os.fspath(host(tmp_path)))
    path = os.fspath(served.path / "large")
    make(path)
    code = _CALLER.format((CALLS | FILES)[call])
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.DEVNULL) as process:
        worst = _worst_wait(served, process, call)
    assert process.returncode == 0
    with capsys.disabled():
        print(f"\n| {call} | {make.__name__.strip('_')} | {worst * 1000:.0f} ms |")
    assert worst < MOST_S


@pytest.mark.parametrize("call", CALLS)
def test_whoever_is_killed_is_gone(serve: Callable[..., Served], call: str, tmp_path: Path) -> None:
    served = serve("sealed", "--source", os.fspath(host(tmp_path)))
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
    assert time.monotonic() - begin < MOST_S
