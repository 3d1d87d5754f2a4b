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
import os
from collections.abc import Mapping
from typing import Final

from serdab.config.dirs import write_durably
from serdab.config.strict import load_object
from serdab.errors import Error, UsageError
from serdab.instance.layout import OWNERS_SUFFIX

MAX_ID: Final = (1 << 32) - 2
_MAX_FILE_BYTES: Final = 1 << 20
Owner = tuple[int, int]


def load_owners(tree: str) -> dict[str, Owner]:
    """Return declared owners by path in the tree, without the leading slash.

    Raises:
        UsageError: the file beside the tree is malformed.
    """
    path = tree + OWNERS_SUFFIX

    def fail(field: str, expected: str, found: str, hint: str) -> Error:
        return UsageError(
            "the owners beside the tree are malformed",
            stage="build",
            subject=path,
            expected=f"{field}: {expected}" if field else expected,
            found=found,
            hint=hint or "remove the file and run copy-bom again",
        )

    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return {}
    top = load_object(raw, fail)
    top.integer("format", low=1, high=1)
    out = {}
    for entry in top.sections("owners"):
        name = entry.text("path").lstrip("/")
        out[name] = (entry.integer("uid", high=MAX_ID), entry.integer("gid", high=MAX_ID))
        entry.close()
    top.close()
    return out


def store_owners(tree: str, changes: Mapping[str, Owner | None]) -> None:
    """Note owners of paths (without the leading slash); None is 0:0 again."""
    before = load_owners(tree)
    after: dict[str, Owner | None] = {**before, **changes}
    kept = {path: owner for path, owner in after.items() if owner is not None and any(owner)}
    if kept == before:
        return
    path = tree + OWNERS_SUFFIX
    if not kept:
        os.unlink(path)
        return
    value = {
        "format": 1,
        "owners": [
            {"path": f"/{name}", "uid": owner[0], "gid": owner[1]}
            for name, owner in sorted(kept.items())
        ],
    }
    write_durably(path, json.dumps(value, indent=1).encode("ascii") + b"\n", mode=0o644)
