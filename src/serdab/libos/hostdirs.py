# SPDX-License-Identifier: Apache-2.0
"""Which host directories may be shown inside, and what of them is hidden. It only looks, at paths.

Above: ``boot``, ``rootfs``. Never reachable through a host directory: the instance's build/ and
run/, the user's state, cache and runtime directories (keys, records, sockets), our own code, and
the file of the image key that was given.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from serdab.errors import UsageError

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
    return show(path, instance=instance, private=private)


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
            raise UsageError(
                "this host directory is never shown to programs",
                stage="config",
                subject=path,
                expected="a directory outside " + item,
                found=path,
                hint="keys, records, images and our own code stay outside the sandbox",
            )
        if is_below(item, path):
            relative = os.path.relpath(item, path)
            hidden.append(relative)
            if os.path.exists(item) and not os.path.isdir(item):
                files.add(relative)
    return Shown(path, tuple(hidden), frozenset(files))
