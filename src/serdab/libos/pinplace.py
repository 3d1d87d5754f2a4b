# SPDX-License-Identifier: Apache-2.0
"""Where pins may lie: out of the reach of the instance's storage, and of programs.

Above: ``request`` (the instance), ``boot`` (what programs are shown). Below: ``ground``,
``linux.outside``.
"""

from __future__ import annotations

import errno
import os

from serdab.errors import UsageError
from serdab.libos.ground import Ground, Way
from serdab.linux.outside import MAX_LINKS
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
    way, name = _way(path, ground)
    with way:
        if ground.leads_inside(way):
            raise UsageError(
                f"a pin {what} protects nothing",
                subject=option,
                expected="a path that the storage of the instance cannot reach",
                found=path,
                hint="whoever rolls the instance back would roll the pin back with it",
            )
        return os.path.join(way.real(), name).rstrip("/")


def _way(path: str, ground: Ground) -> tuple[Way, str]:
    """Return the way there, and the name of what is not there yet."""
    for _ in range(MAX_LINKS):
        try:
            return ground.beside(path), ""
        except UsageError as exc:
            if not isinstance(exc.__cause__, FileNotFoundError):
                raise
        above, name = os.path.split(path)
        way = ground.beside(above)
        try:
            # A link to what is not there yet: replacing the pin must not replace the link. It was
            # judged by the walk above, which came to its end.
            path = os.path.join(above, os.readlink(name, dir_fd=way.fds[-1]))
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT):
                return way, name  # no link, or nothing by now
            way.close()
            raise UsageError(
                "it cannot be told where a pin lies",
                subject=path,
                expected="a path to a file",
                found=os.strerror(exc.errno or 0),
            ) from exc
        way.close()
    raise UsageError("too many links", subject=path, expected="a path to a file")
