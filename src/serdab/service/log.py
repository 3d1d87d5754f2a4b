# SPDX-License-Identifier: Apache-2.0
"""The log of a service in the background: a file of the user's state directory, mode 0600.

Above: ``server``. One file per instance, begun anew at each start (the one before is kept as
``.old``), and never longer than a bound: what programs that init left behind write goes there, too.
"""

from __future__ import annotations

import os
import time
from typing import Final

from serdab.config.dirs import make_private
from serdab.errors import printable

_MAX_BYTES: Final = 16 << 20


class LogFile:
    """Appends lines with their time."""

    __slots__ = ("_fd", "_left")

    def __init__(self, path: str) -> None:
        make_private(os.path.dirname(os.path.dirname(path)))
        make_private(os.path.dirname(path))
        try:
            os.rename(path, f"{path}.old")
        except FileNotFoundError:
            pass
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        self._left = _MAX_BYTES

    def fileno(self) -> int:
        """Return the descriptor, for what must be written without us."""
        return self._fd

    def write(self, level: str, line: str) -> None:
        """Append one line; a full disk loses it, no more.

        Of a text of several lines each gets time and level: a program that chooses some of its
        words, such as a path, makes no line that passes for another.
        """
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        raw = "".join(f"{stamp} {level}: {printable(part)}\n" for part in line.split("\n")).encode()
        if len(raw) > self._left:
            return
        self._left -= len(raw)
        try:
            os.write(self._fd, raw)
        except OSError:
            pass
