# SPDX-License-Identifier: Apache-2.0
"""Standard streams that a program can open again as /dev/stdout and /dev/stderr.

Above: ``kernel``. Opening ``/proc/self/fd/1`` asks for permission on what lies behind it anew.
Run by an ordinary user that is the same user inside and outside. Run by root, what lies behind is
host root's and the inner root is not; so a pipe, which nobody else can name, is given to the inner
root, and a terminal of ours is lent to it until the instance goes down. Files stay whose they are.
"""

from __future__ import annotations

import os
import stat


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
        key = (status.st_dev, status.st_ino)
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
