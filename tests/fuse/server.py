# SPDX-License-Identifier: Apache-2.0
"""A process that mounts a file system and serves it: ``python -m tests.fuse.server KIND PATH``.

A process and not a thread of the test: a page fault of the test would hold the interpreter lock
that the server needs to answer it. It says "ready" when mounted and "closed" when unmounted.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from serdab.fuse.mounting import mount_host, mount_options, open_device
from serdab.fuse.session import Session, SessionOptions, spare_collector
from serdab.vfs.api import ROOT_INO, FileSystem
from serdab.vfs.memfs import MemFs
from serdab.vfs.steps import Steps


class _Slow(MemFs):
    """Flushes when it gets SIGUSR1."""

    def __init__(self) -> None:
        super().__init__()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    def fsync(self, ino: int, *, datasync: bool) -> None:
        signal.sigwait({signal.SIGUSR1})


class _Endless(MemFs):
    """fallocate(2) and lseek(2) never end; an attribute of the root says that one began."""

    def fallocate_steps(self, ino: int, mode: int, offset: int, length: int) -> Steps[None]:
        yield from self._never()

    def lseek_steps(self, ino: int, offset: int, whence: int) -> Steps[int]:
        yield from self._never()
        return offset

    def _never(self) -> Steps[None]:
        self.setxattr(ROOT_INO, b"user.began", b"", 0)
        while True:
            yield None


def _make(kind: str, source: str) -> FileSystem:
    if kind == "memory":
        return MemFs(size_limit_bytes=1 << 30, mode=0o777)
    if kind == "slow":
        return _Slow()
    if kind == "endless":
        return _Endless()
    if kind == "sealed":
        from serdab.keys import Key
        from serdab.sefs.volume import memory_volume, open_volume
        from serdab.vfs.union import Union

        key = Key(b"of a test server")
        volume = open_volume(Path(source), key=key, create=True) if source else memory_volume(None)
        return Union(volume, None)
    from serdab.vfs.hostfs import HostFs

    return HostFs(source, hidden=[b"private/key"], instance=b".")


def _serve_inner(fs: FileSystem, path: str) -> None:
    device = open_device()
    code = f'mount -i -t fuse -o "$1" serdab-test "$2" && echo && exec sleep infinity {device}<&-'
    # It has the device, too, and must not outlive us: who waits for an answer would wait on.
    dies = ["setpriv", "--pdeathsig", "KILL"]
    command = [*dies, "unshare", "--pid", "--fork", "--kill-child", "sh", "-c", code, "sh"]
    with subprocess.Popen(
        [*command, mount_options(device), path], pass_fds=(device,), stdout=subprocess.PIPE
    ) as outer:
        assert outer.stdout is not None
        assert outer.stdout.readline() == b"\n"
        (first,) = children_of(outer.pid)
        namespace = os.open(f"/proc/{first}/ns/pid", os.O_RDONLY)
        fs.setxattr(ROOT_INO, b"user.first", b"%d" % first, 0)
        print("ready", flush=True)
        Session(device, fs, options=SessionOptions(pid_namespace=namespace)).run()
        outer.kill()
    for fd in (device, namespace):
        os.close(fd)
    fs.close()
    print("closed", flush=True)


def children_of(pid: int) -> list[int]:
    """Return the children of a process of one thread."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(number) for number in file.read().split()]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("memory", "slow", "endless", "sealed", "host"))
    parser.add_argument("path")
    parser.add_argument("--source", default="")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--inner", action="store_true", help="mount from a PID namespace below")
    arguments = parser.parse_args()
    fs = _make(arguments.kind, arguments.source)
    if arguments.inner:
        _serve_inner(fs, arguments.path)
        return
    device = mount_host(
        arguments.path,
        fsname="serdab-test",
        read_only=arguments.read_only,
        allow_other=not arguments.private,
    )
    spare_collector()
    print("ready", flush=True)
    Session(device, fs, options=SessionOptions()).run()
    os.close(device)
    fs.close()
    print("closed", flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
