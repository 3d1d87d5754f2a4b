# SPDX-License-Identifier: Apache-2.0
"""The log of a service in the background: a file of the user's state directory, mode 0600.

Above: ``background``. One file per instance, begun anew at each start (the one before is kept as
``.old``), and never longer than a bound: what programs that init left behind write goes there, too.

It has a name of its own until its service has claimed the instance: one that is refused must not
touch the log of the one that runs.
"""

from __future__ import annotations

import glob
import os
import time
from typing import Final

from serdab.config.dirs import make_private
from serdab.errors import EnvironmentRefused, printable

_MAX_BYTES: Final = 16 << 20


class LogFile:
    """Appends lines with their time. ``path`` is where it is once it was published."""

    __slots__ = ("_draft", "_fd", "_left", "path")

    def __init__(self, path: str) -> None:
        make_private(os.path.dirname(os.path.dirname(path)))
        make_private(os.path.dirname(path))
        self.path = path
        self._draft = f"{path}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(self._draft, flags, 0o600)
        except OSError as exc:
            raise EnvironmentRefused(
                "the log cannot be written",
                stage="start",
                subject=self._draft,
                expected="a directory that can be written",
                found=os.strerror(exc.errno or 0),
                hint="set XDG_STATE_HOME to a directory of yours that can be written",
            ) from exc
        self._left = _MAX_BYTES

    def fileno(self) -> int:
        """Return the descriptor, for what must be written without us."""
        return self._fd

    def publish(self) -> None:
        """Become the log of the instance's service; only for who has claimed it."""
        for old, new in ((self.path, f"{self.path}.old"), (self._draft, self.path)):
            try:
                os.rename(old, new)
            except FileNotFoundError:
                pass
        for draft in glob.glob(f"{glob.escape(self.path)}.[0-9]*"):
            _remove(draft)  # of starts that were killed or refused

    def discard(self) -> None:
        """Leave nothing behind, unless it was published."""
        _remove(self._draft)

    def write(self, level: str, line: str) -> None:
        """Append one line; a full disk loses it, no more.

        Of a text of several lines each gets time and level, and all but the first a mark: a program
        that chooses some of its words, such as a path, makes no line that passes for another.
        """
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        first, *others = (printable(part) for part in line.split("\n"))
        parts = [first, *(f"| {part}" for part in others)]
        raw = "".join(f"{stamp} {level}: {part}\n" for part in parts).encode()
        if len(raw) > self._left:
            return
        self._left -= len(raw)
        try:
            os.write(self._fd, raw)
        except OSError:
            pass


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
