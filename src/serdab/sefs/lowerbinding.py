# SPDX-License-Identifier: Apache-2.0
"""Which lower layer a volume belongs to: its anchor names the root MAC, and it opens over no other.

Above: ``volume``, ``rebind``. Below: ``anchor``.
"""

from __future__ import annotations

from msgspec import structs

from serdab.errors import LayerMismatch, UsageError
from serdab.keys import Key
from serdab.sefs.anchor import ANCHOR_NAME, Anchor, load_anchor
from serdab.sefs.hostdir import Dir
from serdab.sefs.hostplace import Place, open_place
from serdab.structs import replace
from serdab.vfs.api import ROOT_INO
from serdab.vfs.layer import Layer


def bind(anchor: Anchor, lower: Layer | None, label: str) -> Anchor:
    """Return the anchor if it belongs to the lower layer; one that holds nothing is taken over."""
    state = anchor.state
    found = (lower.root_mac,) if lower is not None else ()
    if state.lower == found:
        return anchor
    if not state.root and not state.log:
        next_ino = lower.max_ino + 1 if lower is not None else ROOT_INO
        return replace(
            anchor,
            state=structs.replace(state, lower=found, next_ino=max(state.next_ino, next_ino)),
        )
    raise LayerMismatch(
        "the writable layer belongs to another image",
        stage="rootfs",
        subject=label,
        expected=", ".join(mac.hex() for mac in state.lower) or "no lower layer",
        found=", ".join(mac.hex() for mac in found) or "no lower layer",
        hint="`serdab rebind` binds it to this image if both hold the same, as after an upgrade of "
        "Serdab; `run --previous` opens it over its own image; `serdab reset` throws it away",
    )


def bound_lower(path: Place, key: Key) -> bytes:
    """Return the root MAC of the lower layer that the volume in a host directory belongs to.

    Raises:
        UsageError: there is no volume, or it has no lower layer.
        FormatError, WrongKeyError, AuthenticationError.
    """
    directory = open_place(path)
    try:
        return bound_lower_in(directory, key)
    finally:
        directory.close()


def bound_lower_in(directory: Dir, key: Key) -> bytes:
    """Return what :func:`bound_lower` does for an open directory, which stays the caller's."""
    try:
        file = directory.open(ANCHOR_NAME)
    except FileNotFoundError:
        raise UsageError("no writable layer yet", subject=directory.label) from None
    try:
        lower = load_anchor(file, key, directory.label)[0].state.lower
    finally:
        file.close()
    if not lower:
        raise UsageError("the volume belongs to no image", subject=directory.label)
    return lower[0]
