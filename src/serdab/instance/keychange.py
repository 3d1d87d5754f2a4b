# SPDX-License-Identifier: Apache-2.0
"""Says before a build takes effect that the writable layer will not open after it.

The key of a writable layer follows from what a build fixes: whether an image key is given, the
signer, the product id, and with ``autokey_policy`` the whole measurement. So a build can put a key
out of reach that opened the layer until then. What would be made is tried on the layer as it lies
there; nothing is changed. Above: ``build``. Below: ``libos.volumekey``, ``sefs.anchor``.
"""

from __future__ import annotations

from serdab.config.boot import BootConfig
from serdab.errors import Error, WrongKeyError
from serdab.instance import outer
from serdab.instance.layout import Instance
from serdab.keys import Key
from serdab.libos.keysource import explaining
from serdab.libos.volumekey import volume_key
from serdab.linux.dirfd import DirFd
from serdab.sefs.anchor import ANCHOR_NAME, load_anchor
from serdab.sefs.hostplace import open_place
from serdab.trust import platform
from serdab.trust.measurement import Digest


def warning_of(
    instance: Instance,
    config: BootConfig,
    image_key: Key | None,
    *,
    mrsigner: Digest,
    mrenclave: Digest,
) -> str | None:
    """Return what to say about the writable layer, or None: it opens, or is not there.

    A layer that cannot be read at all is the business of whoever opens it, not of a build.
    """
    if config.upper.temporary:
        return None
    try:
        upper = outer.find(instance, config.upper.source, outer.shown_by(config))
    except (Error, OSError):
        return None
    if upper is None:
        return None
    with upper:
        if not upper.exists(ANCHOR_NAME):
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
                f"warning: the writable layer {config.upper.source} will not open after this "
                f"build: {exc.message} (expected {exc.expected}, will be {exc.found}); its data "
                f"stays as it is: {exc.hint}"
            )
        except (Error, OSError):
            return None
    return None


def _try(upper: DirFd, key: Key) -> None:
    directory = open_place(upper)
    try:
        file = directory.open(ANCHOR_NAME)
    finally:
        directory.close()
    try:
        load_anchor(file, key, upper.path)
    finally:
        file.close()
