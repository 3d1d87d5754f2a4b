# SPDX-License-Identifier: Apache-2.0
"""Starts the processes of an instance: the kernel process and the nursery of fs servers.

Above: ``pal``. Below: ``interpreter``, ``channel``. Both take their time to import themselves; so
they are started first of all, and get ready while their caller reads files. Neither holds a secret
or acts before it is told to. Nothing here imports what it does not need.
"""

from __future__ import annotations

import os

from serdab.libos.bytecode import byte_code_cache
from serdab.libos.channel import socket_pair
from serdab.libos.interpreter import import_path, start_python


class Begun:
    """The processes of an instance that is about to boot: children of the caller.

    ``end`` is the caller's end of the control channel of the kernel process, whose process id is
    ``kernel``. ``ignored`` are signals that the interpreter ignores anyway, but so does whoever
    started us: programs do, too. The nursery has a session of its own: what kills the caller's
    process group must not keep its servers from writing the last pages and closing their volumes.
    """

    __slots__ = ("_pids", "end", "kernel")

    def __init__(self, ignored: tuple[int, ...] = ()) -> None:
        _fill_standard_streams()
        path, cache = import_path(), byte_code_cache()
        pids: list[int] = []
        ours, theirs = socket_pair()
        kernel_end, nursery_end = socket_pair()
        try:
            # The nursery first: it has the longest way to go.
            pids.append(
                start_python(
                    "serdab.libos.nursery",
                    nursery_end.fileno(),
                    path=path,
                    cache=cache,
                    new_session=True,
                )
            )
            pids.append(
                start_python(
                    "serdab.libos.main",
                    theirs.fileno(),
                    path=path,
                    cache=cache,
                    second=kernel_end.fileno(),
                    ignored=ignored,
                )
            )
        finally:
            for end in (theirs, kernel_end, nursery_end):
                end.close()
            self._pids = pids
        self.kernel = pids[-1]
        self.end = ours

    def wait(self) -> None:
        """Wait until both processes have ended; they do when the channel is closed, or before."""
        for pid in self._pids:
            os.waitpid(pid, 0)
        self._pids = []

    def abandon(self) -> None:
        """End them before anything was booted; harmless afterwards."""
        self.end.close()
        self.wait()


def _fill_standard_streams() -> None:
    """Open /dev/null where a standard stream is closed, or a socket of ours would become one."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)  # takes the lowest number that is free
