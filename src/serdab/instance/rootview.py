# SPDX-License-Identifier: Apache-2.0
"""Opens the sealed root FS, or one of its layers, for whoever proved to own it.

The layers are opened by the code that opens them for a boot, with the same checks: the image's root
MAC against the measured configuration, the writable layer's freshness against what is remembered.
Above: ``cli.mount``. Below: ``sealedroot`` (keys), ``libos.layers``, ``vfs``.
"""

from __future__ import annotations

import os
from enum import Enum
from typing import Final

from serdab.config.boot import BootConfig
from serdab.errors import Error, LayerMismatch, UsageError, WrongKeyError
from serdab.instance import outer
from serdab.instance.layout import IMAGE, PREVIOUS, Instance
from serdab.instance.sealedroot import layer_keys
from serdab.keys import Key
from serdab.libos import keysource, layers
from serdab.libos.ground import Ground
from serdab.libos.orders import SEALED, UNION, Opened, Orders
from serdab.libos.owners import OneOwner
from serdab.libos.request import Freshness, parse_mac
from serdab.libos.volumekey import VolumeKey, check_key_fits
from serdab.sefs.anchor import ANCHOR_NAME
from serdab.structs import field, frozen, replace
from serdab.trust import platform
from serdab.trust.chain import BootChain

COMMIT_MS: Final = 5000
"""How long a change made through the mount waits for a commit, if nothing asks for one earlier."""


class Layer(Enum):
    """What is shown."""

    IMAGE = "image"
    UPPER = "upper"
    UNION = "union"


@frozen
class View:
    """What is wanted. ``previous``: over the image that the writable layer belongs to."""

    layer: Layer = Layer.UNION
    read_only: bool = False
    previous: bool = False
    freshness: Freshness = field(default_factory=Freshness)


def open_view(instance: Instance, chain: BootChain, image_key: Key | None, view: View) -> Opened:
    """Open what ``view`` asks for. The caller holds the lock of ``run/``.

    A refusal leaves everything as it was found.

    Raises:
        WrongKeyError: of the image, of the writable layer, or the automatic key cannot be had.
        Error: as ``layers`` says.
    """
    try:
        with outer.ground_of(instance, outer.shown_by(chain.config)) as ground:
            opened = _open(instance, ground, chain, image_key, view)
    except Error as exc:
        exc.stage = exc.stage or "rootfs"
        raise
    if os.geteuid() != 0:
        # The kernel lets an ordinary user change what is theirs, so what they see is theirs.
        return replace(opened, fs=OneOwner(opened.fs, shown=(os.geteuid(), os.getegid())))
    return opened


def _open(
    instance: Instance, ground: Ground, chain: BootChain, image_key: Key | None, view: View
) -> Opened:
    config = chain.config
    raw = None if image_key is None else image_key.raw()
    check_key_fits(config, raw)
    orders = Orders(
        UNION,
        image=IMAGE,
        image_key=raw,
        expected_mac=config.root_mac,
        max_bytes=config.upper.max_bytes or 0,
        commit_ms=COMMIT_MS,
        ground=ground,
    )
    if view.layer is Layer.IMAGE and not view.previous:
        return _open_image(orders)
    _refuse_bound_key(chain, image_key)
    exists = _is_begun(instance, config) and not config.upper.temporary
    if not exists and (view.layer is Layer.UPPER or view.previous):
        raise UsageError(
            "there is no writable layer",
            subject=instance.at(config.upper.source),
            expected="a volume that a run or a mount wrote",
            found="a writable layer in memory" if config.upper.temporary else "none yet",
            hint="--layer image shows what `build` sealed",
        )
    if exists:
        _refuse_new_platform(chain, image_key, instance.at(config.upper.source))
    key = layer_keys(chain, image_key).volume
    orders = replace(
        orders,
        volume=config.upper.source,
        volume_key=key.key,
        source=key.source,
        freshness=config.freshness,
        conf_mac=chain.descriptor.conf_mac.value,
        version_number=chain.descriptor.security_version,
        accept_rollback=view.freshness.accept_rollback,
        pin_file=view.freshness.pin_file or "",
        pin_command=view.freshness.pin_command or "",
        expect_upper=parse_mac(view.freshness.expect_upper, "--expect-upper"),
        read_only=view.read_only or view.layer is Layer.UPPER,
    )
    if view.previous:
        orders = _over_previous(ground, orders, key)
        if view.layer is Layer.IMAGE:
            return _open_image(orders)
    if config.upper.temporary:
        # What is written there would end with the mount; nobody who writes here expects that.
        return _open_layers(replace(orders, volume="", read_only=True), Layer.UNION)
    if orders.read_only and not exists:
        layers.check_existence(orders)
        return _open_layers(replace(orders, volume=""), Layer.UNION)
    try:
        return _open_layers(orders, view.layer)
    except LayerMismatch:
        if view.previous:
            raise
        return _open_over_previous(instance, ground, orders, key, view.layer)


def _is_begun(instance: Instance, config: BootConfig) -> bool:
    """Return whether there is a writable layer.

    Raises:
        UsageError: a link stands where it should be, or on the way to it.
    """
    upper = outer.find(instance, config.upper.source, outer.shown_by(config))
    if upper is None:
        return False
    with upper:
        return upper.exists(ANCHOR_NAME)


def _open_image(orders: Orders) -> Opened:
    return layers.open_single(replace(orders, kind=SEALED, volume=orders.image))


def _open_layers(orders: Orders, layer: Layer) -> Opened:
    """Open image and volume; without a volume there is nothing above the image."""
    from serdab.sefs.volume import memory_volume
    from serdab.vfs.changes import Changes
    from serdab.vfs.union import Union

    image = layers.open_lower(orders)
    notices: list[str] = []
    try:
        if orders.volume:
            upper, notices = layers.open_upper(orders, image)
        else:
            upper = memory_volume(image)
        make: type[Changes | Union] = Changes if layer is Layer.UPPER else Union
        return Opened(make(upper, image), image.root_mac, tuple(notices), orders.read_only)
    except BaseException:
        image.close()
        raise


def _over_previous(ground: Ground, orders: Orders, key: VolumeKey) -> Orders:
    from serdab.sefs.lowerbinding import bound_lower

    with ground.directory(orders.volume) as place, keysource.explaining(place, key.source):
        mac = bound_lower(place, Key(key.key))
    if mac == orders.expected_mac:
        return orders
    return replace(orders, image=f"{PREVIOUS}/{mac.hex()}", expected_mac=mac)


def _open_over_previous(
    instance: Instance, ground: Ground, orders: Orders, key: VolumeKey, layer: Layer
) -> Opened:
    """Open a writable layer over the image it belongs to, which is not the newest one.

    The layer's anchor names that image, sealed under the layer's key, and its MAC is checked.

    Raises:
        LayerMismatch: that image was not kept.
    """
    former = _over_previous(ground, orders, key)
    if not instance.root.is_directory(former.image):
        raise LayerMismatch(
            "the writable layer belongs to an image that was not kept",
            subject=instance.at(orders.volume),
            expected=f"image {(former.expected_mac or b'').hex()} below {PREVIOUS}",
            found="none",
            hint="restore that image, or `serdab reset` throws the layer away",
        )
    opened = _open_layers(former, layer)
    line = (
        "the writable layer belongs to the image before the newest one, which is what is "
        f"mounted: {(former.expected_mac or b'').hex()}"
    )
    return replace(opened, notices=(line, *opened.notices))


def _refuse_bound_key(chain: BootChain, image_key: Key | None) -> None:
    """Only the measured supervisor itself gets a key that is bound to its measurement."""
    config = chain.config
    if not config.upper.autokey_policy:
        return
    if image_key is not None and not config.builtin_image_key:
        return
    raise WrongKeyError(
        "the key of the writable layer is bound to the measurement (autokey_policy)",
        stage="rootfs",
        subject=config.upper.source,
        expected="the automatic key, which only a boot of this very build gets",
        found="a mount on the host, which is not what was measured",
        hint="read it through `serdab run`; --layer image shows what `build` sealed",
    )


def _refuse_new_platform(chain: BootChain, image_key: Key | None, volume: str) -> None:
    """Refuse a volume of another platform before asking for a key makes one of this machine."""
    is_automatic = image_key is None or chain.config.builtin_image_key
    if is_automatic and platform.current().is_new():
        raise WrongKeyError(
            "the volume's key is bound to another platform than this one",
            stage="rootfs",
            subject=volume,
            expected="the platform that wrote it",
            found="a machine and user without a platform secret",
            hint="it was written on another machine, by another user, or before the platform's "
            "secret was lost: only there it opens",
        )
