# SPDX-License-Identifier: Apache-2.0
"""What a program inside takes over from the process that starts it: streams, umask, terminal.

Above: ``pal``. Below: ``channel``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from serdab.libos.channel import close_all


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Three descriptors for a program; ``opened`` are those of them that are ours to close."""

    fds: tuple[int, int, int]
    opened: tuple[int, ...]

    def close(self) -> None:
        """Close what was opened for it."""
        close_all(self.opened)


def open_descriptors(wanted: tuple[int, int, int]) -> Descriptors:
    """Return the three descriptors, with /dev/null in place of what is closed here."""
    fds: list[int] = []
    opened: list[int] = []
    for fd in wanted:
        try:
            os.fstat(fd)
        except OSError:
            opened.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            fds.append(opened[-1])
        else:
            fds.append(fd)
    return Descriptors((fds[0], fds[1], fds[2]), tuple(opened))


def current_umask() -> int:
    """Return the umask of this process."""
    # umask(2) can only be read by setting it; /proc says it without that race.
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def terminal() -> str | None:
    """Return the path of the terminal that one of the standard streams is, if any."""
    for fd in (0, 1, 2):
        try:
            return os.ttyname(fd)
        except OSError:
            continue
    return None
