# SPDX-License-Identifier: Apache-2.0
"""Owners of a tree's entries, where a BOM declares other than 0:0.

An ordinary user cannot chown(2), and what owns a file of the source tree on the host says nothing
about the image. So copy-bom notes declared owners in a file beside the tree, and build seals them.

On-disk format:
    ``<tree>.owners``: JSON with ``format`` 1 and ``owners``, a list of ``path`` (in the tree, with
    a leading slash), ``uid`` and ``gid``, sorted by path.

Above: ``bomsteps``, ``build``. Below: ``config.strict``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from serdab.config.strict import load_object
from serdab.errors import Error, UsageError
from serdab.instance.layout import MAX_FILE_BYTES, OWNERS_SUFFIX
from serdab.linux.dirfd import DirFd

MAX_ID: Final = (1 << 32) - 2
Owner = tuple[int, int]


def load_owners(beside: DirFd, tree: str) -> dict[str, Owner]:
    """Return declared owners by path in the tree, without the leading slash.

    ``beside`` is the directory that the tree is in, under the name ``tree``.

    Raises:
        UsageError: the file beside the tree is malformed.
    """
    name = tree + OWNERS_SUFFIX

    def fail(field: str, expected: str, found: str, hint: str) -> Error:
        return UsageError(
            "the owners beside the tree are malformed",
            stage="build",
            subject=beside.name(name),
            expected=f"{field}: {expected}" if field else expected,
            found=found,
            hint=hint or "remove the file and run copy-bom again",
        )

    try:
        raw = beside.read(name, MAX_FILE_BYTES)
    except FileNotFoundError:
        return {}
    top = load_object(raw, fail)
    top.integer("format", low=1, high=1)
    out = {}
    for entry in top.sections("owners"):
        path = entry.text("path").lstrip("/")
        out[path] = (entry.integer("uid", high=MAX_ID), entry.integer("gid", high=MAX_ID))
        entry.close()
    top.close()
    return out


def store_owners(beside: DirFd, tree: str, changes: Mapping[str, Owner | None]) -> None:
    """Note owners of paths (without the leading slash); None is 0:0 again."""
    before = load_owners(beside, tree)
    after: dict[str, Owner | None] = {**before, **changes}
    kept = {path: owner for path, owner in after.items() if owner is not None and any(owner)}
    if kept == before:
        return
    if not kept:
        beside.remove(tree + OWNERS_SUFFIX)
        return
    value = {
        "format": 1,
        "owners": [
            {"path": f"/{path}", "uid": owner[0], "gid": owner[1]}
            for path, owner in sorted(kept.items())
        ],
    }
    raw = json.dumps(value, indent=1).encode("ascii") + b"\n"
    beside.replace_whole(tree + OWNERS_SUFFIX, raw, mode=0o644)
