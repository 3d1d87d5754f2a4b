# SPDX-License-Identifier: Apache-2.0
"""The writable layer in a change of the key: found, admitted, and remembered as what it became.

Above: ``rekey``. Below: ``trust.freshness``, ``trust.records``, ``sefs.volume``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from posixpath import dirname

from serdab.config.mounts import IMAGE as IMAGE_KEY
from serdab.errors import UsageError, WrongKeyError
from serdab.instance import outer
from serdab.instance.layersabove import anchor_at, layers_above
from serdab.instance.layout import PREVIOUS, RUN, Instance
from serdab.instance.sealedroot import LayerKeys
from serdab.instance.switch import find_layer
from serdab.keys import Key
from serdab.libos.ground import Ground
from serdab.libos.keysource import explaining
from serdab.libos.mountrules import derive_named
from serdab.linux.dirfd import DirFd
from serdab.sefs.anchor import ANCHOR_NAME
from serdab.sefs.image import Image, open_image
from serdab.sefs.imageformat import IMAGE_NAME
from serdab.sefs.lowerbinding import bound_lower
from serdab.sefs.volume import Volume, open_volume
from serdab.sefs.volumecopy import close_for_copy
from serdab.structs import frozen
from serdab.trust import records
from serdab.trust.chain import BootChain
from serdab.trust.descriptor import Descriptor
from serdab.trust.freshness import OFF, Guard, OpenedHome, Watch, Watched, open_watched


@frozen
class WritableLayer:
    """A layer that was admitted, open for reading, and the image it belongs to.

    ``path`` is relative to the instance.
    """

    path: str
    volume: Volume
    image: Image

    def live_bytes(self) -> int:
        """Return about how many bytes a copy takes."""
        state = self.volume.state
        return state.live_bytes + state.live_bytes // 16


def find_writable(
    instance: Instance,
    chain: BootChain,
    keys: LayerKeys,
    image: Image,
    stack: ExitStack,
    *,
    say: Callable[[str], None],
) -> WritableLayer | None:
    """Return the writable layer, None if there is none; ``stack`` closes it.

    It is asked for as at boot: a state that is not the newest known one is refused, what a killed
    session left in the log is brought in order, and other sessions are kept out.

    Raises:
        Error: as ``trust.freshness.open_watched`` says.
        UsageError: the layer cannot be replaced where it lies.
    """
    upper = chain.config.upper
    if upper.temporary:
        return None
    path = find_layer(instance, upper.source)
    if path is None:
        raise _misplaced(upper.source, "a symbolic link on the way to it, or outside of it")
    if instance.root.exists(path) and not instance.root.is_directory(path):
        raise instance.root.not_ours(path, "a directory")
    watch = Watch(
        chain.config.freshness,
        conf_mac=chain.descriptor.conf_mac.value,
        version_number=chain.descriptor.security_version,
    )
    if not instance.root.exists(f"{path}/{ANCHOR_NAME}"):
        Guard(instance.root.real(path), watch).check_existence()
        return None
    place = stack.enter_context(instance.root.directory(path))
    _check_place(instance, path, place)
    volume_key = Key(keys.volume.key)
    try:
        with explaining(place, keys.volume.source):
            lower = _lower_image(instance, place, volume_key, keys.image, image, stack)
            watched = open_watched(
                OpenedHome(place),
                watch,
                key=volume_key,
                lower=lower,
                source=keys.volume.source,
            )
    except WrongKeyError as exc:
        if chain.config.builtin_image_key:
            raise  # what differs is the platform or the signer, and was said
        raise WrongKeyError(
            "the key opens the image, but not its writable layer",
            subject=exc.subject,
            expected=exc.expected,
            found=exc.found,
            hint="`serdab build` with the key of the layer makes both one again; `serdab reset` "
            "gives the layer up",
        ) from exc
    stack.callback(watched.guard.close)
    _close(watched, say)
    volume = open_volume(place, key=volume_key, lower=lower, read_only=True)
    stack.callback(volume.close)
    return WritableLayer(path, volume, lower)


def _close(watched: Watched, say: Callable[[str], None]) -> None:
    for line in watched.notices:
        say(line)
    try:
        close_for_copy(watched.volume)
    except BaseException:
        watched.volume.abandon()
        raise


def _check_place(instance: Instance, path: str, place: DirFd) -> None:
    """Refuse a layer that no rename can replace."""
    with instance.root.directory(RUN) as run, instance.root.directory(dirname(path)) as above:
        if os.fstat(place.fd).st_dev != os.fstat(above.fd).st_dev:
            raise _misplaced(path, "a mount point")
        if os.fstat(above.fd).st_dev != os.fstat(run.fd).st_dev:
            raise _misplaced(path, f"a place on another file system than {RUN}/")


def _misplaced(path: str, found: str) -> UsageError:
    return UsageError(
        "the writable layer cannot be replaced where it lies",
        subject=path,
        expected=f"a directory on the file system of {RUN}/",
        found=found,
        hint=f"mount what lies elsewhere at {RUN}/ itself",
    )


def refuse_others(
    instance: Instance,
    chain: BootChain,
    keys: LayerKeys,
    *,
    say: Callable[[str], None],
) -> None:
    """Refuse if something else would be left behind, under the old key.

    That is a layer that an init put above the same image, and a volume of programs whose named key
    comes from the image key. Only what this user's records know is found.

    Raises:
        UsageError: there is one.
    """
    with outer.ground_of(instance, outer.shown_by(chain.config)) as ground:
        _refuse_others(ground, chain, keys, say)


def _refuse_others(
    ground: Ground, chain: BootChain, keys: LayerKeys, say: Callable[[str], None]
) -> None:
    ours = ground.real(chain.config.upper.source)
    layer_key = Key(keys.volume.key)
    for path, anchor in layers_above(ground, layer_key, but=ours):
        if chain.config.root_mac in anchor.state.lower:
            raise _left_behind("another writable layer belongs to the image", path)
    named = [entry.name for entry in chain.config.runtime_mounts.keys if entry.source == IMAGE_KEY]
    if not named or keys.image is None:
        return
    for name in named:
        key = Key(derive_named(keys.image.raw(), name))
        for path in records.known_below("/"):
            if anchor_at(ground, path, key) is not None:
                raise _left_behind(
                    f"a volume has the key {name}, which comes from the old one", path
                )
    say(
        f"the keys {', '.join(named)} come from the image key and change with it: volumes made "
        "under them elsewhere will not open"
    )


def _left_behind(message: str, path: str) -> UsageError:
    return UsageError(
        message,
        subject=path,
        expected="nothing else under the old key",
        found="a volume that opens with it",
        hint="copy out what is to be kept, and remove it",
    )


def _lower_image(
    instance: Instance,
    place: DirFd,
    volume_key: Key,
    image_key: Key | None,
    image: Image,
    stack: ExitStack,
) -> Image:
    """Return the image that the layer belongs to: the present one, or one that `build` kept."""
    bound = bound_lower(place, volume_key)
    if bound == image.root_mac:
        return image
    kept = f"{PREVIOUS}/{bound.hex()}"
    if not instance.root.exists(f"{kept}/{IMAGE_NAME}"):
        return image  # a layer that holds nothing is taken over; any other one is refused
    with instance.root.directory(kept) as sealed:
        previous = open_image(sealed, key=image_key, expected_mac=bound)
    stack.callback(previous.close)
    return previous


def remember(
    instance: Instance, path: str, lower: Image, key: Key, *, policy: str, descriptor: Descriptor
) -> None:
    """Open what the layer became, and remember its state: the one before is refused from now on.

    Raises:
        Error: it does not open, which nothing explains but the storage.
    """
    with instance.root.directory(path) as place:
        volume = open_volume(place, key=key, lower=lower, read_only=True)
        here = place.real()
    position, root_mac = volume.position, volume.durable_mac
    volume.close()
    if policy == OFF or position is None:
        return
    records.store_record(
        records.Record(
            position,
            root_mac=root_mac,
            conf_mac=descriptor.conf_mac.value,
            path=records.shown(here),
            version_number=descriptor.security_version,
        )
    )
    if records.volume_at(here) != position.uuid:
        records.remember_path(here, position.uuid)
