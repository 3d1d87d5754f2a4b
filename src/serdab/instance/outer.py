# SPDX-License-Identifier: Apache-2.0
"""Host directories that a configuration or the command line names for an instance.

Relative ones lie below the instance and are opened there (``linux.dirfd``). Absolute ones, and
those that begin with ``..``, are walked to (``linux.outside``): no link counts in a directory that
others write, in an instance, or in what programs are shown.

Above: the verbs. Below: ``layout``, ``libos.ground``, ``linux``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from typing import Final

from serdab.config.boot import BootConfig
from serdab.config.occlum import InstanceConfig
from serdab.errors import UsageError
from serdab.instance.layout import Instance
from serdab.libos.ground import Ground
from serdab.linux.dirfd import DirFd
from serdab.linux.identity import Identity
from serdab.linux.outside import Walk

HOSTFS: Final = "hostfs"


def is_inside(source: str) -> bool:
    """Return whether a path is one below the instance."""
    return not source.startswith("/") and posixpath.normpath(source).split("/")[0] != ".."


def shown_by(config: InstanceConfig | BootConfig) -> tuple[str, ...]:
    """Return the host directories that a configuration lets programs see."""
    sources = (entry.source or "." for entry in config.mounts if entry.type == HOSTFS)
    return (*config.host_directories, *sources)


def ground_of(instance: Instance, shown: Iterable[str]) -> Ground:
    """Return the ground as a boot has it; no link is followed in what programs are ``shown``."""
    ground = Ground(instance.root.again())
    try:
        ground.close_off(dict.fromkeys(shown))
    except BaseException:
        ground.close()
        raise
    return ground


def walk_from(instance: Instance, shown: Iterable[str]) -> Walk:
    """Return a walk that follows no link in the directories that programs are ``shown``."""
    return Walk(_identities(instance, shown))


def open_directory(instance: Instance, source: str, shown: Iterable[str]) -> DirFd:
    """Open a host directory; a relative path begins in the instance.

    Raises:
        OSError: there is none, below the instance.
        UsageError: something else is there, or on the way, or a link that is not followed.
    """
    if is_inside(source):
        path = posixpath.normpath(source)
        instance.root.require_plain(path, "a directory")
        return instance.root.directory(path)
    return walk_from(instance, shown).directory(source, base=instance.root)


def find(instance: Instance, source: str, shown: Iterable[str]) -> DirFd | None:
    """Open a host directory as :func:`open_directory` does; None if nothing is there."""
    try:
        return open_directory(instance, source, shown)
    except FileNotFoundError:
        return None
    except UsageError as exc:
        if isinstance(exc.__cause__, FileNotFoundError):
            return None
        raise


def parent(instance: Instance, source: str, shown: Iterable[str]) -> tuple[DirFd, str] | None:
    """Open the directory that a path names something in; return it and the name.

    None if there is no such directory.

    Raises:
        UsageError: as :func:`open_directory`, or it is the instance itself.
    """
    path = posixpath.normpath(source) if is_inside(source) else source.rstrip("/")
    above, name = posixpath.split(path)
    if name in ("", ".", ".."):
        raise UsageError(
            "not a directory that may be removed",
            subject=source,
            expected="a path that ends in a name",
            found="one that does not",
        )
    if is_inside(source):
        instance.root.require_plain(path, "a directory")
    directory = find(instance, above or ".", shown)
    return None if directory is None else (directory, name)


def _identities(instance: Instance, shown: Iterable[str]) -> frozenset[Identity]:
    with ground_of(instance, shown) as ground:
        return frozenset(ground.closed)
