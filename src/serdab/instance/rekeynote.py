# SPDX-License-Identifier: Apache-2.0
"""Which images an unfinished change of the key has sealed, for who goes on with it.

Above: ``rekey``. Below: ``config.dirs``.

On-disk format:
    ``rekeys/<SHA-256 of the instance's real path>.json`` in the state directory, 0600: ``format``
    1, ``sealed`` (root MAC of an image to that of what became of it, 64 hex digits each).

Security: the root MAC of what was sealed gets signed, so it must not come from the instance. The
note lies where the storage cannot reach; one that cannot be read costs time, never correctness.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from typing import Final, final

from serdab.config.dirs import make_private, state_dir
from serdab.linux.durable import write_durably

_FORMAT: Final = 1
_MAX_BYTES: Final = 1 << 16
_MAC_BYTES: Final = 32


@final
class RekeyNote:
    """The note of one instance."""

    def __init__(self, instance: str) -> None:
        name = hashlib.sha256(os.fsencode(os.path.realpath(instance))).hexdigest()
        self._path = os.path.join(state_dir(), "rekeys", f"{name}.json")
        self._sealed = _load(self._path)

    def sealed(self, root_mac: bytes) -> bytes | None:
        """Return the root MAC of what was made of an image, None if nothing was."""
        return self._sealed.get(root_mac)

    def add(self, root_mac: bytes, new_mac: bytes) -> None:
        """Note that an image was sealed; durable on return."""
        self._sealed[root_mac] = new_mac
        make_private(os.path.dirname(self._path))
        value = {old.hex(): new.hex() for old, new in self._sealed.items()}
        raw = json.dumps({"format": _FORMAT, "sealed": value}, sort_keys=True)
        write_durably(self._path, raw.encode("ascii") + b"\n")

    def remove(self) -> None:
        """Forget: the change is complete."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


def _load(path: str) -> dict[bytes, bytes]:
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(_MAX_BYTES))
        sealed = {bytes.fromhex(old): bytes.fromhex(new) for old, new in value["sealed"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    is_whole = value.get("format") == _FORMAT and all(
        len(mac) == _MAC_BYTES for pair in sealed.items() for mac in pair
    )
    return sealed if is_whole else {}
