# SPDX-License-Identifier: Apache-2.0
"""What a program inside takes over from the process that starts it: streams, umask, terminal.
The request to start one.

Above: ``pal``, ``service``. Below: ``channel``. The kernel process checks what is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from serdab.errors import UsageError
from serdab.keys import Key
from serdab.libos.channel import close_all
from serdab.libos.messages import Value
from serdab.libos.streams import check_streams
from serdab.structs import frozen


@frozen
class Descriptors:
    """Three descriptors for a program; ``opened`` are those of them that are ours to close."""

    fds: tuple[int, int, int]
    opened: tuple[int, ...]

    def close(self) -> None:
        """Close what was opened for it."""
        close_all(self.opened)


def open_descriptors(wanted: tuple[int, int, int]) -> Descriptors:
    """Return the three descriptors, with /dev/null in place of what is closed here.

    Raises:
        UsageError: one is no stream, see ``streams.check_streams``.
    """
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
    try:
        check_streams(fds)
    except BaseException:
        close_all(opened)
        raise
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


def require_key(given: object) -> None:
    """Refuse what is neither a key nor None; its value is never named.

    Raises:
        UsageError: it is something else, such as the text of a key.
    """
    if given is not None and not isinstance(given, Key):
        raise UsageError(
            "not a key: image_key",
            expected="a serdab.keys.Key, as Key.parse(text) makes one",
            found=type(given).__name__,
        )


def spawn_record(
    number: int,
    argv: Sequence[str],
    environment: Iterable[bytes],
    *,
    cwd: str,
    umask: int,
    own_session: bool = False,
    terminal: int = -1,
) -> dict[str, Value]:
    """Return the request to start a program; its three descriptors travel beside it.

    ``own_session``: not the caller's. ``terminal``: the place of the one among its descriptors that
    controls a session of the program's own (-1: none, it is in that of pid 1).

    Raises:
        UsageError: there is no program, or no list, or a NUL byte in what it would get.
    """
    if isinstance(argv, str | bytes):
        raise UsageError(
            "not a list of arguments: argv",
            stage="app",
            expected='the path of a program and its arguments, as in ["/bin/ls", "-l"]',
            found=type(argv).__name__,
        )
    if not argv:
        raise UsageError("no program to start", stage="app")
    raw = [os.fsencode(item) for item in argv]
    items = list(environment)
    if any(b"\0" in item for item in (*raw, *items, os.fsencode(cwd))):
        raise UsageError("an argument holds a NUL byte", stage="app", subject=argv[0])
    return {
        "op": "spawn",
        "id": number,
        "path": raw[0],
        "argv": raw,
        "env": items,
        "cwd": os.fsencode(cwd),
        "umask": umask,
        "own_session": own_session,
        "terminal": terminal,
    }
