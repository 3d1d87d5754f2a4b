# SPDX-License-Identifier: Apache-2.0
"""Which part of root's subordinate ids an instance has while it runs.

Above: ``idmaps``. Root's ids are cut into ranges of 65536. An instance takes the first that no
other holds, by flock(2) on a file per range, which the kernel lets go when the holder ends.
Nothing on disk depends on the range: volumes keep inner ids, and so do host directories, which are
served to root's instances by us.
"""

from __future__ import annotations

import fcntl
import os
from typing import Final

from serdab.config.dirs import make_private
from serdab.errors import EnvironmentRefused

#: Of the machine and not of a session: whatever XDG_RUNTIME_DIR says, the ids are the same.
DIRECTORY: Final = "/run/serdab/ids"
#: Beyond so many instances at a time nobody looks for a range of its own.
_MOST: Final = 1024


def take(count: int, directory: str = DIRECTORY) -> tuple[int, int]:
    """Return the number of a range, below ``count``, and the descriptor that holds it.

    Where all are taken, or none can be: the last one, and -1.
    """
    count = min(count, _MOST)
    try:
        make_private(directory)
    except EnvironmentRefused:
        return count - 1, -1
    for slot in range(count):
        try:
            fd = os.open(
                os.path.join(directory, str(slot)),
                os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
            )
        except OSError:
            continue  # something else lies there
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        return slot, fd
    return count - 1, -1
