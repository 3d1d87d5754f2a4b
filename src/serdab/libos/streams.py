# SPDX-License-Identifier: Apache-2.0
"""Standard streams: what may be one, and opening them again as /dev/stdout and /dev/stderr.

Above: ``kernel``, ``caller``. Opening ``/proc/self/fd/1`` asks for permission on what lies behind
it anew. Run by an ordinary user that is the same user inside and outside. Run by root, what lies
behind is host root's and the inner root is not; so a pipe, which nobody else can name, is given to
the inner root, and a terminal of ours is lent to it until the instance goes down. Files stay whose
they are.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterable

from serdab.errors import UsageError
from serdab.linux.identity import identity_of

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

_NAMES: Final = ("standard input", "standard output", "standard error")
#: How proc_pid_fd(5) shows what lies in no directory but is no pipe, socket or memfd either.
_KERNEL_LINKS: Final = (
    *("anon_inode:", "pidfd:"),
    *(f"{kind}:[" for kind in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")),
)
_FITTING: Final = (stat.S_ISREG, stat.S_ISFIFO, stat.S_ISCHR, stat.S_ISBLK, stat.S_ISSOCK)


def check_streams(fds: Iterable[int]) -> None:
    """Refuse what is more than something to read from or write to.

    A directory is a way out: fchdir(2), and ``..`` from there. So is whatever O_PATH has opened,
    and what has no type may stand for a process of outside (pidfd_open(2)).

    Raises:
        UsageError: one is not a file, pipe, socket, terminal or other device, open for I/O.
    """
    for name, fd in zip(_NAMES, fds, strict=True):
        mode = os.fstat(fd).st_mode
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
            found = "a descriptor that O_PATH has opened"
        elif stat.S_ISDIR(mode):
            found = "a directory"
        elif not any(fits(mode) for fits in _FITTING) or _is_of_kernel(fd):
            found = "an object of the kernel"
        else:
            continue
        raise UsageError(
            "not a standard stream for a program inside",
            stage="app",
            subject=name,
            expected="a file, a pipe, a socket or a device",
            found=found,
            hint="a directory of the host is shown inside by a hostfs entry of Occlum.json",
        )


def _is_of_kernel(fd: int) -> bool:
    """Return whether a process or a namespace is open; both pass for regular files."""
    return os.readlink(f"/proc/self/fd/{fd}").startswith(_KERNEL_LINKS)


class Streams:
    """Remembers the terminals that were lent."""

    def __init__(self, uid: int, gid: int) -> None:
        self._uid = uid
        self._gid = gid
        self._lent: dict[tuple[int, int], tuple[int, os.stat_result]] = {}

    def admit(self, fds: tuple[int, ...], *, lend: bool) -> None:
        """Let the inner root open these again; only host root can. ``lend``: terminals, too."""
        if os.geteuid() != 0:
            return
        for fd in fds:
            status = os.fstat(fd)
            if status.st_uid != 0:
                continue
            try:
                if stat.S_ISFIFO(status.st_mode):
                    if os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:["):
                        os.fchown(fd, self._uid, self._gid)
                elif lend and stat.S_ISCHR(status.st_mode) and os.isatty(fd):
                    self._lend(fd, status)
            except OSError:
                continue  # it stays as it is: only opening it again will be refused

    def _lend(self, fd: int, status: os.stat_result) -> None:
        key = identity_of(status)
        if key not in self._lent:
            self._lent[key] = (os.dup(fd), status)
            os.fchown(fd, self._uid, -1)

    def take_back(self) -> None:
        """Give the terminals back to their owner."""
        for fd, status in self._lent.values():
            try:
                os.fchown(fd, status.st_uid, -1)
            except OSError:
                pass  # hung up: nobody can open it any more
            os.close(fd)
        self._lent.clear()
