# SPDX-License-Identifier: Apache-2.0
"""Which host directories may be shown inside, and what of them is hidden. It only looks, at paths.

Above: ``boot``, ``rootfs``. Below: ``config.names``. Never reachable through a host directory: what
verbs on the host read or write in an instance directory, this one or another; the user's state,
cache, configuration and runtime directories (keys, records, signers, sockets), our own code, and
the files that were named to the command. How it is hidden while programs run: ``vfs.hiding``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from serdab.config.names import CONFIG, DESCRIPTOR, SHOWN_ON_REQUEST, fold, is_reserved
from serdab.errors import UsageError


@dataclass(frozen=True, slots=True)
class Shown:
    """A host directory to show: its real path, and relative paths to hide.

    ``instance`` is the relative path of this instance, ``.`` for the directory itself; empty: it
    does not lie there. ``read_only``: a source tree, shown because the configuration names it.
    """

    path: str
    hidden: tuple[str, ...]
    instance: str = ""
    read_only: bool = False


def is_below(path: str, directory: str) -> bool:
    """Return whether a path is a directory or lies below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def resolve(instance: str, source: str) -> str:
    """Return the real path of a source; relative ones are the instance's."""
    return os.path.realpath(os.path.join(instance, source))


def find(source: str, *, instance: str, private: tuple[str, ...]) -> Shown:
    """Return the host directory that a configuration means; ``instance`` is a real path.

    Raises:
        UsageError: there is none, or it is never shown.
    """
    path = resolve(instance, source)
    if not os.path.isdir(path):
        raise UsageError(
            "a host directory of the configuration is missing",
            stage="config",
            subject=path,
            expected="a directory",
            found="something else" if os.path.lexists(path) else "nothing",
            hint="make it, or take its mount out of Occlum.json and build",
        )
    named = (path, os.path.normpath(os.path.join(instance, source)))
    read_only = any(os.path.join(instance, name) in named for name in SHOWN_ON_REQUEST)
    return show(path, instance=instance, private=private, read_only=read_only)


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
            raise UsageError(
                "this host directory is never shown to programs",
                stage="config",
                subject=path,
                expected="a directory outside " + item,
                found=path,
                hint="keys, records, images, sources and our own code stay outside the sandbox",
            )
    hidden = tuple(
        os.path.relpath(item, path)
        for item in private
        if is_below(item, path) and not _is_reserved(item, instance)
    )
    below = os.path.relpath(instance, path) if is_below(instance, path) else ""
    return Shown(path, hidden, below, read_only)


def reserved_part(path: str, instance: str) -> str | None:
    """Return the first part of a path that is one of an instance's own names, or None.

    An instance may lie below another's image: what is below ``instance`` is judged by it alone.
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


def _is_reserved(path: str, instance: str) -> bool:
    """Return whether a path is hidden with one of this instance's own names."""
    inside = path.removeprefix(os.path.join(instance, "")) if is_below(path, instance) else ""
    return is_reserved(fold(os.fsencode(inside.partition("/")[0])))


def _is_instance(directory: str) -> bool:
    return any(os.path.lexists(os.path.join(directory, name)) for name in (CONFIG, DESCRIPTOR))
