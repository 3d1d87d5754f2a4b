# SPDX-License-Identifier: Apache-2.0
"""Writable layers that an init put above the image, beside the one of the configuration.

They have the key of that one. Only what this user's records know is found, below the instance.
Above: ``build``, ``rebind``, ``rekeylayer``. Below: ``trust.records``, ``sefs.anchor``.
"""

from __future__ import annotations

from collections.abc import Iterator

from serdab.errors import Error
from serdab.keys import Key
from serdab.libos.ground import Ground
from serdab.linux.whereabouts import leads_nowhere
from serdab.sefs.anchor import ANCHOR_NAME, Anchor, load_anchor
from serdab.sefs.hostplace import open_place
from serdab.trust import records


def layers_above(ground: Ground, key: Key, *, but: str) -> Iterator[tuple[str, Anchor]]:
    """Yield path and anchor of each volume that lies over an image. ``but``: not this path."""
    for path in records.known_below(ground.real(".")):
        anchor = None if path == but else anchor_at(ground, path, key)
        if anchor is not None and anchor.state.lower:
            yield path, anchor


def anchor_at(ground: Ground, path: str, key: Key) -> Anchor | None:
    """Return the anchor of the volume at a path if the key opens it."""
    try:
        with ground.directory(path) as place:
            directory = open_place(place)
        try:
            file = directory.open(ANCHOR_NAME)
        finally:
            directory.close()
        try:
            return load_anchor(file, key, path)[0]
        finally:
            file.close()
    except (Error, OSError) as exc:
        if not leads_nowhere(exc):
            raise  # whether it opens with the key alone cannot be told
        return None  # gone, or of another key: no matter of ours
