# SPDX-License-Identifier: Apache-2.0
"""Calls about the calling process that Python does not offer, and sealed files in memory."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15
_F_ADD_SEALS: Final = 1033
_SEAL_ALL: Final = 0x1 | 0x2 | 0x4 | 0x8  # SEAL, SHRINK, GROW, WRITE
_MFD_ALLOW_SEALING: Final = 0x2
_MFD_CLOEXEC: Final = 0x1
_MFD_EXEC: Final = 0x10
_MFD_NOEXEC_SEAL: Final = 0x8
_NS_GET_PID_FROM_PIDNS: Final = 0x8004B706


def hide_memory() -> None:
    """Make this process non-dumpable: no core file, no ptrace, no /proc/PID/mem by its own user.

    A process does this before it receives a key. It holds until the next execve(2).
    """
    import ctypes

    from serdab.linux.libc import check, libc

    zero = ctypes.c_ulong(0)
    check(libc.prctl(_PR_SET_DUMPABLE, zero, zero, zero, zero), "prctl(PR_SET_DUMPABLE)")


@contextmanager
def file_access_as(uid: int, gid: int) -> Iterator[None]:
    """Let the calling thread alone reach files as another user (setfsuid(2)); only root can.

    Where it may not, nothing changes. A process that was non-dumpable is so afterwards.
    """
    from serdab.linux.libc import libc

    previous_gid = libc.setfsgid(gid)
    previous_uid = libc.setfsuid(uid)
    # Both reset the flag to what fs.suid_dumpable says (proc_sys_fs(5)).
    hide_memory()
    try:
        yield
    finally:
        libc.setfsuid(previous_uid)
        libc.setfsgid(previous_gid)
        hide_memory()


def is_being_killed(tid: int) -> bool:
    """Return whether SIGKILL is on its way to a thread, by its number in this PID namespace.

    So it is for every thread of a process that any signal ends (complete_signal() in Linux 6.18).
    False if there is no such thread, or its state is hidden from us.
    """
    try:
        with open(f"/proc/{tid}/status", "rb") as file:
            status = file.read()
    except OSError:
        return False
    pending = 0
    for line in status.splitlines():
        if line.startswith((b"SigPnd:", b"ShdPnd:")):
            pending |= int(line.split()[1], 16)
    return bool(pending & 1 << (signal.SIGKILL - 1))


def number_here(number: int, namespace: int) -> int:
    """Return our number of a thread that has ``number`` in a PID namespace (a descriptor of it).

    0 if there is none, or the kernel does not tell: before Linux 6.11 it cannot (ioctl_nsfs(2)).
    """
    try:
        return fcntl.ioctl(namespace, _NS_GET_PID_FROM_PIDNS, number)
    except OSError:
        return 0


def forbid_core() -> None:
    """Write no core file, whatever the handler; for a process that starts no programs of others."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def name_process(name: str) -> None:
    """Set the name that ps(1) shows, at most 15 bytes."""
    import ctypes

    from serdab.linux.libc import check, libc

    raw = ctypes.create_string_buffer(name.encode("ascii"))
    zero = ctypes.c_ulong(0)
    check(libc.prctl(_PR_SET_NAME, raw, zero, zero, zero), "prctl(PR_SET_NAME)")


def sealed_file(name: str, content: bytes, *, executable: bool = False) -> int:
    """Return a descriptor of a file in memory that nobody can change any more."""
    base = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(name, base | (_MFD_EXEC if executable else _MFD_NOEXEC_SEAL))
    except OSError:
        # Before Linux 6.3 the two flags do not exist, and every memfd may be executed.
        fd = os.memfd_create(name, base)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEAL_ALL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_open_file(thread: int, fd: int) -> bool:
    """Return whether ``fd`` is a descriptor of that thread and stands for an open file.

    One that was opened with O_PATH stands for a place only, and most calls refuse it (open(2)).

    Raises:
        OSError: /proc tells us nothing about that thread.
    """
    try:
        with open(f"/proc/{thread}/fdinfo/{fd}", "rb") as file:
            for line in file:
                name, _, value = line.partition(b":")
                if name == b"flags":
                    return not int(value, 8) & os.O_PATH
    except FileNotFoundError:
        os.stat(f"/proc/{thread}/fdinfo")  # else the whole thread is gone, or hidden (proc(5))
    return False
