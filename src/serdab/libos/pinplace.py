# SPDX-License-Identifier: Apache-2.0
"""Where pins may lie: out of the reach of the instance's storage, and of programs.

Above: ``request`` (the instance), ``boot`` (what programs are shown). Below: ``ground``,
``linux.outside``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection

from serdab.errors import UsageError
from serdab.libos.ground import Ground
from serdab.linux.outside import MAX_LINKS, Identity, Walk
from serdab.linux.whereabouts import leads_nowhere


def placed_outside(path: str | None, option: str, instance: str) -> str | None:
    """Return the real path of a pin that lies outside an instance.

    Raises:
        UsageError: it lies within, there is no directory for it, or the way to it is led by others.
    """
    if path is None:
        return None
    try:
        ground = Ground.at(instance)
    except OSError as exc:
        if not leads_nowhere(exc):
            raise
        return path  # it cannot be opened: whoever uses it says so
    with ground:
        return require_outside(path, option, ground, what="in the instance")


def require_outside(path: str, option: str, ground: Ground, *, what: str) -> str:
    """Return the real path of a pin that lies in no closed directory, nor is led by a link there.

    Raises:
        UsageError: as :func:`placed_outside`.
    """
    fds, name = _way(path, ground.closed)
    try:
        if ground.leads_inside(fds):
            raise UsageError(
                f"a pin {what} protects nothing",
                subject=option,
                expected="a path that the storage of the instance cannot reach",
                found=path,
                hint="whoever rolls the instance back would roll the pin back with it",
            )
        return os.path.join(os.readlink(f"/proc/self/fd/{fds[-1]}"), name).rstrip("/")
    finally:
        _close(fds)


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
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT):
                return fds, name  # no link, or nothing by now
            _close(fds)
            raise UsageError(
                "it cannot be told where a pin lies",
                subject=path,
                expected="a path to a file",
                found=os.strerror(exc.errno or 0),
            ) from exc
        _close(fds)
    raise UsageError("too many links", subject=path, expected="a path to a file")


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
