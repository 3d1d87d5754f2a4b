# SPDX-License-Identifier: Apache-2.0
"""Starts the kernel process of an instance, from which all others of it come.

Above: ``pal``. Below: ``interpreter``, ``channel``. It takes its time to import itself; so it is
started first of all, and gets ready while its caller reads files. It holds no secret and does not
act before it is told to. Nothing here imports what it does not need.
"""

from __future__ import annotations

import os

from serdab.libos.bytecode import byte_code_cache
from serdab.libos.channel import socket_pair
from serdab.libos.interpreter import import_path, start_python


class Begun:
    """The kernel process of an instance that is about to boot: a child of the caller.

    ``end`` is the caller's end of its control channel, ``kernel`` its process id. ``ignored`` are
    signals that the interpreter ignores anyway, but so does whoever started us: programs do, too.
    """

    __slots__ = ("_is_over", "end", "kernel")

    def __init__(self, ignored: tuple[int, ...] = ()) -> None:
        _fill_standard_streams()
        path, cache = import_path(), byte_code_cache()
        self.end, theirs = socket_pair()
        self._is_over = False
        try:
            self.kernel = start_python(
                "serdab.libos.main", theirs.fileno(), path=path, cache=cache, ignored=ignored
            )
        finally:
            theirs.close()

    def wait(self) -> None:
        """Wait until it has ended; it does when the channel is closed, or before."""
        if not self._is_over:
            os.waitpid(self.kernel, 0)
            self._is_over = True

    def abandon(self) -> None:
        """End it before anything was booted; harmless afterwards."""
        self.end.close()
        self.wait()


def _fill_standard_streams() -> None:
    """Open /dev/null where a standard stream is closed, or a socket of ours would become one."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)  # takes the lowest number that is free
