# SPDX-License-Identifier: Apache-2.0
"""Which host directories may be shown inside, and what of them is hidden.

Above: ``boot``, ``fence``. Below: ``ground``, ``reserved``. Never reachable through a host
directory: what verbs on the host read or write in an instance directory, this one or another; the
user's state, cache, configuration and runtime directories (keys, records, signers, sockets), our
own code, and the files that were named to the command. How it is hidden while programs run:
``vfs.hiding``.
"""

from __future__ import annotations

import errno
import os

from serdab.config.names import DIRECTORIES, SHOWN_ON_REQUEST, fold, is_reserved
from serdab.errors import UsageError
from serdab.libos.ground import Ground, Way
from serdab.libos.reserved import is_below, reserved_part
from serdab.linux.dirfd import DirFd
from serdab.linux.identity import Identity, identity
from serdab.linux.outside import is_instance
from serdab.linux.whereabouts import MountTable, open_if_there
from serdab.structs import frozen


@frozen
class Shown:
    """A host directory to show: its real path, and relative paths to hide.

    ``instance`` is the relative path of this instance, ``.`` for the directory itself; empty: it
    does not lie there. ``read_only``: a source tree, shown because the configuration names it.
    """

    path: str
    hidden: tuple[str, ...]
    instance: str = ""
    read_only: bool = False


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
        path, instance = way.real(), ground.real(".")
        read_only = any(os.path.join(instance, name) == path for name in SHOWN_ON_REQUEST)
        refuse_private(way, path, ground=ground, private=private, is_named=read_only)
        shown = show(path, instance=instance, private=private, read_only=read_only)
        return shown, way.open(ground.name(source))


def refuse_private(
    way: Way, path: str, *, ground: Ground, private: tuple[str, ...], is_named: bool = False
) -> None:
    """Refuse a directory whose way leads through one that is never shown, whatever its path.

    ``is_named``: the configuration names it itself, so only the way to it counts.

    Raises:
        UsageError: it does.
        Error: that cannot be told.
    """
    own = identity(ground.instance.fd)
    never = {each for item in private if (each := _identity_at(item)) is not None}
    for fd in way.fds[:-1] if is_named else way.fds:
        here = identity(fd)
        if here in never:
            raise _never(path, "what is private")
        if here == own or is_instance(fd):
            found = (_identity_at(name, dir_fd=fd) for name in DIRECTORIES)
            never |= {each for each in found if each is not None}
    with MountTable() as table:
        if _is_part(table, way.fds[-1], ground.real("."), private, is_named=is_named):
            raise _never(path, "what is private, by whatever mount")


def _identity_at(path: str, *, dir_fd: int | None = None) -> Identity | None:
    """Return what is there, links followed only where they are the user's; None: nothing is."""
    flags = 0 if dir_fd is None else os.O_NOFOLLOW
    fd = open_if_there(os.fsencode(path), dir_fd=dir_fd, flags=flags)
    if fd is None:
        return None
    try:
        return identity(fd)
    finally:
        os.close(fd)


def _is_part(
    table: MountTable, fd: int, instance: str, private: tuple[str, ...], *, is_named: bool
) -> bool:
    """Return whether a directory is part of what is never shown, by where it lies on its disk."""
    here = table.of(fd)
    never = {where for path in private for where in table.named(os.fsencode(path))}
    for name in DIRECTORIES:
        own = table.named(os.fsencode(os.path.join(instance, name)))
        # A source tree that the configuration names is shown, but nothing else that contains it.
        never |= {each for each in own if not (is_named and each == here)}
    if any(here.is_below(each) for each in never):
        return True
    if any(here.is_below(each) for each in table.named(os.fsencode(instance))):
        return False
    return any(reserved_part(os.fsdecode(name), instance) for name in table.names(here))


def _never(path: str, what: str) -> UsageError:
    return UsageError(
        "this host directory is never shown to programs",
        stage="config",
        subject=path,
        expected="a directory outside " + what,
        found=path,
        hint="keys, records, images, sources and our own code stay outside the sandbox",
    )


def show(path: str, *, instance: str, private: tuple[str, ...], read_only: bool = False) -> Shown:
    """Decide about a host directory; all paths are real paths.

    ``read_only``: the configuration names a source tree, which programs cannot do.

    Raises:
        UsageError: it lies inside something that is never shown.
    """
    inner = reserved_part(path, instance)
    if read_only and inner == path and os.path.basename(path) in SHOWN_ON_REQUEST:
        inner = None
    for item in (*private, *(() if inner is None else (inner,))):
        if is_below(path, item):
            raise _never(path, item)
    hidden = tuple(
        os.path.relpath(item, path)
        for item in private
        if is_below(item, path) and not _is_reserved(item, instance)
    )
    below = os.path.relpath(instance, path) if is_below(instance, path) else ""
    return Shown(path, hidden, below, read_only)


def _is_reserved(path: str, instance: str) -> bool:
    """Return whether a path is hidden with one of this instance's own names."""
    inside = path.removeprefix(os.path.join(instance, "")) if is_below(path, instance) else ""
    return is_reserved(fold(os.fsencode(inside.partition("/")[0])))
