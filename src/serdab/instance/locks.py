# SPDX-License-Identifier: Apache-2.0
"""Locks of an instance: who holds one is a property of a process, never a word in a file.

Two locks, both flock(2) on a directory, gone with the last holder of the descriptor, however it
ended:

* ``run/``: exclusive for whoever uses the writable layer (run, start, mount, fsck, reset);
* the instance directory: exclusive for whoever replaces ``build/``.

Lock order: instance directory before ``run/``.
"""

from __future__ import annotations

import fcntl
import os
from types import TracebackType
from typing import Self

from serdab.errors import BusyError, UsageError
from serdab.instance.layout import RUN, Instance


class DirectoryLock:
    """An exclusive flock on a directory; ``fd`` may be handed to the process that needs it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Give the lock up, unless another process shares the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def lock_run(instance: Instance) -> DirectoryLock:
    """Lock the writable side of an instance; makes ``run/`` if it is missing.

    Raises:
        BusyError: another process holds it; the message names it.
    """
    path = instance.at(RUN)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as exc:
        raise UsageError(
            "the directory of the writable layer cannot be made",
            subject=path,
            expected="a directory that can be written",
            found=os.strerror(exc.errno or 0),
            hint="an instance must be writable by whoever runs it",
        ) from exc
    return _lock(path, "the instance is in use")


def lock_build(instance: Instance) -> DirectoryLock:
    """Lock the sealed side of an instance against other builds."""
    return _lock(instance.path, "another build is at work")


def _lock(path: str, message: str) -> DirectoryLock:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        status = os.fstat(fd)
        os.close(fd)
        raise BusyError(
            message,
            subject=path,
            expected="no other user",
            found=_holder(status),
            hint="wait for it, or end it; a killed holder leaves no lock behind",
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return DirectoryLock(fd)


def _holder(status: os.stat_result) -> str:
    """Return the process that holds a flock on the inode, as /proc/locks tells (proc(5))."""
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            lines = file.readlines()
    except OSError:
        lines = []
    for line in lines:
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == wanted:
            return _describe(fields[4])
    # Some file systems (btrfs, overlayfs) show another device number there than stat(2) does.
    return "another process"


def _describe(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).split(b"\0")
    except OSError:
        return f"process {pid}"
    command = " ".join(word.decode("utf-8", "replace") for word in words if word)
    return f"process {pid}: {command[:120]}" if command else f"process {pid}"
