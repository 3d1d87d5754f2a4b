# SPDX-License-Identifier: Apache-2.0
"""Says before a build takes effect that the writable layer will not open after it.

The key of a writable layer follows from what a build fixes: whether an image key is given, the
signer, the product id, and with ``autokey_policy`` the whole measurement. So a build can put a key
out of reach that opened the layer until then. What would be made is tried on the layer as it lies
there; nothing is changed. Above: ``build``. Below: ``libos.volumekey``, ``sefs.anchor``.
"""

from __future__ import annotations

from pathlib import Path

from serdab.config.boot import BootConfig
from serdab.errors import Error, WrongKeyError
from serdab.keys import Key
from serdab.libos.keysource import explaining
from serdab.libos.volumekey import volume_key
from serdab.sefs.anchor import ANCHOR_NAME, load_anchor
from serdab.sefs.hostdir import HostDir
from serdab.trust import platform
from serdab.trust.measurement import Digest


def warning_of(
    upper: Path, config: BootConfig, image_key: Key | None, *, mrsigner: Digest, mrenclave: Digest
) -> str | None:
    """Return what to say about the writable layer at ``upper``, or None: it opens, or is not there.

    A layer that cannot be read at all is the business of whoever opens it, not of a build.
    """
    if config.upper.temporary or not (upper / ANCHOR_NAME).exists():
        return None
    try:
        made = volume_key(
            config,
            None if image_key is None else image_key.raw(),
            platform=platform.current(),
            mrsigner=mrsigner,
            mrenclave=mrenclave,
        )
        with explaining(upper, made.source):
            _try(upper, Key(made.key))
    except WrongKeyError as exc:
        return (
            f"warning: the writable layer {config.upper.source} will not open after this build: "
            f"{exc.message} (expected {exc.expected}, will be {exc.found}); its data stays as it "
            f"is: {exc.hint}"
        )
    except (Error, OSError):
        return None
    return None


def _try(upper: Path, key: Key) -> None:
    directory = HostDir.at(upper)
    try:
        file = directory.open(ANCHOR_NAME)
    finally:
        directory.close()
    try:
        load_anchor(file, key, directory.label)
    finally:
        file.close()
