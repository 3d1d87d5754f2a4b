# SPDX-License-Identifier: Apache-2.0
"""Whether a real path leads through a name that instances keep for themselves.

Above: ``hostdirs``, ``instance.reach``. Below: ``config.names``, ``linux.whereabouts`` only: each
command that names a key asks, before anything else has begun.
"""

from __future__ import annotations

import os

from serdab.config.names import CONFIG, DESCRIPTOR, fold, is_reserved
from serdab.linux.whereabouts import open_if_there


def is_below(path: str, directory: str) -> bool:
    """Return whether a path is a directory or lies below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def reserved_part(path: str, instance: str) -> str | None:
    """Return the first part of a path that is one of an instance's own names, or None.

    An instance may lie below another's image: what is below ``instance`` is judged by it alone.

    Raises:
        Error: that cannot be told.
    """
    at = instance if is_below(path, instance) else "/"
    rest = os.path.relpath(path, at)
    for part in [] if rest == "." else rest.split("/"):
        directory, at = at, os.path.join(at, part)
        if is_reserved(fold(os.fsencode(part))) and (
            directory == instance or _is_instance(directory)
        ):
            return at
    return None


def _is_instance(directory: str) -> bool:
    for name in (CONFIG, DESCRIPTOR):
        fd = open_if_there(os.fsencode(os.path.join(directory, name)), flags=os.O_NOFOLLOW)
        if fd is not None:
            os.close(fd)
            return True
    return False
