# SPDX-License-Identifier: Apache-2.0
"""Which host directories may be shown inside, and what of them is hidden.

Above: ``boot``, ``fence``. Below: ``ground``. Never reachable through a host directory: the
instance's build/ and run/, the user's state, cache and runtime directories (keys, records,
sockets), our own code, and the file of the image key that was given.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from serdab.errors import UsageError
from serdab.libos.ground import Ground, Way
from serdab.linux.dirfd import DirFd
from serdab.linux.outside import identity, is_instance

#: Below the instance directory; shown empty.
HIDDEN_IN_INSTANCE = ("build", "run")


@dataclass(frozen=True, slots=True)
class Shown:
    """A host directory to show: its real path, and relative paths to hide.

    ``files`` are those of ``hidden`` that are no directories: a mount covers like with like.
    """

    path: str
    hidden: tuple[str, ...]
    files: frozenset[str] = frozenset()


def is_below(path: str, directory: str) -> bool:
    """Return whether a path is a directory or lies below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def find(source: str, *, ground: Ground, private: tuple[str, ...]) -> tuple[Shown, DirFd]:
    """Open the host directory that a configuration means; return what is decided about it too.

    Raises:
        UsageError: there is none, something else is in the way, or it is never shown.
    """
    try:
        way = ground.way(source)
    except UsageError as exc:
        cause = exc.__cause__
        if not isinstance(cause, OSError) or cause.errno in (errno.ELOOP, errno.ENOTDIR):
            exc.stage = "config"
            raise
        raise UsageError(
            "a host directory of the configuration is missing",
            stage="config",
            subject=ground.name(source),
            expected="a directory",
            found="nothing" if cause.errno == errno.ENOENT else exc.found,
            hint="make it, or take its mount out of Occlum.json and build",
        ) from exc
    with way:
        path = way.real()
        refuse_private(way, path, ground=ground, private=private)
        shown = show(path, instance=ground.real("."), private=private)
        return shown, way.open(ground.name(source))


def refuse_private(way: Way, path: str, *, ground: Ground, private: tuple[str, ...]) -> None:
    """Refuse a directory whose way leads through one that is never shown, whatever its path.

    Raises:
        UsageError: it does.
    """
    own = identity(ground.instance.fd)
    never = set()
    for item in private:
        try:
            status = os.stat(item)
        except OSError:
            continue  # not there: nothing lies in it
        never.add((status.st_dev, status.st_ino))
    for fd in way.fds:
        here = identity(fd)
        if here in never:
            raise _never(path, "what is private")
        if here == own or is_instance(fd):
            never |= _hidden_in(fd)


def _hidden_in(fd: int) -> set[tuple[int, int]]:
    found = set()
    for name in HIDDEN_IN_INSTANCE:
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError:
            continue
        found.add((status.st_dev, status.st_ino))
    return found


def _never(path: str, what: str) -> UsageError:
    return UsageError(
        "this host directory is never shown to programs",
        stage="config",
        subject=path,
        expected="a directory outside " + what,
        found=path,
        hint="keys, records, images and our own code stay outside the sandbox",
    )


def show(path: str, *, instance: str, private: tuple[str, ...]) -> Shown:
    """Decide about a host directory; all paths are real paths.

    Raises:
        UsageError: it lies inside something that is never shown.
    """
    protected = (*(os.path.join(instance, name) for name in HIDDEN_IN_INSTANCE), *private)
    hidden: list[str] = []
    files: set[str] = set()
    for item in protected:
        if is_below(path, item):
            raise _never(path, item)
        if is_below(item, path):
            relative = os.path.relpath(item, path)
            hidden.append(relative)
            if os.path.exists(item) and not os.path.isdir(item):
                files.add(relative)
    return Shown(path, tuple(hidden), frozenset(files))
