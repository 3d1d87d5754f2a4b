# SPDX-License-Identifier: Apache-2.0
"""Paths inside a tree that will become a root: links mean what they will mean inside.

Filling ``image/`` must never write through ``image/lib -> /usr/lib`` into the host. Every path is
resolved component by component with the tree as its root, as openat2(2) does with RESOLVE_IN_ROOT.
That call resolves one path at a time and cannot name what does not exist yet; nobody else writes to
the tree meanwhile, so resolving here is enough.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from serdab.errors import UsageError

_MAX_LINKS: Final = 40


def resolve(root: str, path: str, *, follow_last: bool = True) -> str | None:
    """Return the host's name of ``path`` inside ``root``; None if it is not there."""
    found = _walk(root, path, follow_last=follow_last, create=False)
    return found if found is not None and os.path.lexists(found) else None


def place(root: str, path: str) -> str:
    """Return the host's name for ``path`` inside ``root``, its parents made as directories.

    The last component is not followed, so that a link there can be replaced.
    """
    found = _walk(root, path, follow_last=False, create=True)
    if found is None:
        raise UsageError(
            "a path in the tree goes in circles",
            subject=path,
            expected="links that end somewhere",
            found="links that point to each other",
            hint="remove one of them from the tree",
        )
    return found


def _walk(root: str, path: str, *, follow_last: bool, create: bool) -> str | None:
    pending = [part for part in path.split("/") if part]
    current: list[str] = []
    links = 0
    while pending:
        part = pending.pop(0)
        if part == ".":
            continue
        if part == "..":
            del current[-1:]
            continue
        host = os.path.join(root, *current, part)
        last = not pending
        try:
            mode = os.lstat(host).st_mode
        except FileNotFoundError:
            if not last and create:
                os.mkdir(host)
                os.chmod(host, 0o755)  # noqa: S103 - whatever the umask: modes are measured
            elif not last:
                return None
            current.append(part)
            continue
        except NotADirectoryError:
            return None
        if stat.S_ISLNK(mode) and (follow_last or not last):
            links += 1
            if links > _MAX_LINKS:
                return None
            target = os.readlink(host)
            if target.startswith("/"):
                current = []
            pending = [name for name in target.split("/") if name] + pending
            continue
        if create and not last and not stat.S_ISDIR(mode):
            raise UsageError(
                "a file stands where a directory is needed",
                subject=host,
                expected="a directory",
                found="a file",
                hint="remove it from the tree, or name another target",
            )
        current.append(part)
    return os.path.join(root, *current) if current else root
