# SPDX-License-Identifier: Apache-2.0
"""Where pins may lie: out of the reach of the instance's storage, and of programs.

Above: ``request`` (the instance), ``boot`` (what programs are shown). Below: ``linux.outside``.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from serdab.errors import UsageError
from serdab.linux.dirfd import DirFd
from serdab.linux.dirtree import identity
from serdab.linux.outside import MAX_LINKS, Identity, Walk


def placed_outside(path: str | None, option: str, instance: str) -> str | None:
    """Return the real path of a pin that lies outside an instance.

    Raises:
        UsageError: it lies within, there is no directory for it, or the way to it is led by others.
    """
    if path is None:
        return None
    try:
        with DirFd.at(instance) as home:
            closed = {identity(home.fd)}
    except OSError:
        return path  # there is no instance: whoever opens it says so
    return require_outside(path, option, closed, what="in the instance")


def require_outside(path: str, option: str, closed: Collection[Identity], *, what: str) -> str:
    """Return the real path of a pin that lies in none of these directories, nor in a link there.

    Raises:
        UsageError: as :func:`placed_outside`.
    """
    fds, name = _way(path, closed)
    try:
        if any(identity(fd) in closed for fd in fds):
            raise UsageError(
                f"a pin {what} protects nothing",
                subject=option,
                expected="a path that the storage of the instance cannot reach",
                found=path,
                hint="whoever rolls the instance back would roll the pin back with it",
            )
        return os.path.join(os.readlink(f"/proc/self/fd/{fds[-1]}"), name).rstrip("/")
    finally:
        for fd in fds:
            os.close(fd)


def _way(path: str, closed: Collection[Identity]) -> tuple[list[int], str]:
    """Return what is on the way, and the name of what is not there yet."""
    for _ in range(MAX_LINKS):
        try:
            return Walk(closed).way(path), ""
        except UsageError as exc:
            if not isinstance(exc.__cause__, FileNotFoundError):
                raise
        above, name = os.path.split(path)
        fds = Walk(closed).way(above)
        try:
            # A link to what is not there yet: replacing the pin must not replace the link. It was
            # judged by the walk above, which came to its end.
            path = os.path.join(above, os.readlink(name, dir_fd=fds[-1]))
        except OSError:
            return fds, name
        for fd in fds:
            os.close(fd)
    raise UsageError("too many links", subject=path, expected="a path to a file")
