# SPDX-License-Identifier: Apache-2.0
"""Binds writable layers to the present image, where that holds what their own one holds.

A build of the same ``image/`` by another Serdab, or with another option, makes another root MAC. It
keeps the image before (``publish``), and the layer stays that one's. Here both are compared, to the
last byte, and the layer's next checkpoint names the present one (``sefs.rebind``).

Nothing else changes, and nothing is signed: which image is the right one the signed configuration
says. So a kill at any moment leaves each layer with one of the two, and the same command goes on.
The state is told to the record as that of any checkpoint: the layer as it was before is an older
one from then on, and refused.

Above: ``cli.rebind``. Below: ``sefs.rebind``, ``rekeylayer``, ``trust.freshness``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from serdab.errors import UsageError
from serdab.instance import outer
from serdab.instance.layersabove import layers_above
from serdab.instance.layout import IMAGE, PREVIOUS, Instance
from serdab.instance.locks import lock_build, lock_run
from serdab.instance.sealedroot import LayerKeys, layer_keys, verified_chain
from serdab.keys import Key
from serdab.libos.ground import Ground
from serdab.libos.keysource import explaining
from serdab.libos.request import Freshness, parse_mac
from serdab.linux.dirfd import DirFd
from serdab.sefs.anchor import ANCHOR_NAME
from serdab.sefs.image import Image, open_image
from serdab.sefs.imageformat import IMAGE_NAME
from serdab.sefs.lowerbinding import bound_lower
from serdab.sefs.rebind import prove_same, rebind
from serdab.structs import field, mutable
from serdab.trust.chain import BootChain
from serdab.trust.freshness import OpenedHome, Watch, open_watched

Progress = Callable[[str, int], None]


@mutable
class RebindResult:
    """The root MAC of the image, and the layers by path: bound now, or belonging to it before."""

    root_mac: bytes
    bound: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)


def rebind_layers(
    instance: Instance,
    image_key: Key | None,
    *,
    freshness: Freshness | None = None,
    say: Callable[[str], None],
    progress: Progress | None = None,
) -> RebindResult:
    """Bind the writable layer, and what inits put above the same image, to the present image.

    ``freshness``: of the layer of the configuration, as for a boot. ``say`` gets one line for each
    thing the user should know.

    Raises:
        LayerMismatch: the images do not hold the same, or the layer's own one was not kept.
        BusyError: the instance is in use.
        VerificationError: the instance does not verify, or the layer is not the newest known one.
        WrongKeyError: the key does not open the image, or the layer.
    """
    with lock_build(instance), ExitStack() as stack:
        stack.enter_context(lock_run(instance, on_wait=say))
        instance.require_built()
        chain = verified_chain(instance)
        keys = layer_keys(chain, image_key)
        with instance.root.directory(IMAGE) as sealed:
            image = open_image(sealed, key=keys.image, expected_mac=chain.config.root_mac)
        stack.callback(image.close)
        ground = stack.enter_context(outer.ground_of(instance, outer.shown_by(chain.config)))
        binder = _Binder(instance, chain, keys, image, say, progress)
        stack.callback(binder.close)
        for path, place in _places(instance, chain, keys, ground, image):
            with place:
                is_ours = path == chain.config.upper.source
                binder.bind(path, place, (freshness if is_ours else None) or Freshness())
        binder.remove_kept()
        return binder.result


def _places(
    instance: Instance, chain: BootChain, keys: LayerKeys, ground: Ground, image: Image
) -> Iterator[tuple[str, DirFd]]:
    """Yield the writable layers of the instance; whoever takes one closes it."""
    upper = chain.config.upper
    ours = ""
    if not upper.temporary:
        ours = ground.real(upper.source)
        place = outer.find(instance, upper.source, outer.shown_by(chain.config))
        if place is not None:
            if place.exists(ANCHOR_NAME):
                yield upper.source, place
            else:
                place.close()
    for path, anchor in layers_above(ground, Key(keys.volume.key), but=ours):
        kept = f"{PREVIOUS}/{anchor.state.lower[0].hex()}"
        if image.root_mac in anchor.state.lower or instance.root.exists(f"{kept}/{IMAGE_NAME}"):
            yield path, ground.directory(path)


class _Binder:
    """Binds one layer after the other; each image that was kept is compared once."""

    def __init__(
        self,
        instance: Instance,
        chain: BootChain,
        keys: LayerKeys,
        image: Image,
        say: Callable[[str], None],
        progress: Progress | None,
    ) -> None:
        self._root = instance.root
        self._chain = chain
        self._keys = keys
        self._image = image
        self._say = say
        self._progress = progress
        self._kept: dict[bytes, Image] = {}
        self.result = RebindResult(image.root_mac)

    def bind(self, path: str, place: DirFd, freshness: Freshness) -> None:
        key, source = Key(self._keys.volume.key), self._keys.volume.source
        with explaining(place, source):
            bound = bound_lower(place, key)
            if bound == self._image.root_mac:
                self.result.unchanged.append(path)
                return
            kept = self._proved(bound, path)
            watch = Watch(
                self._chain.config.freshness,
                conf_mac=self._chain.descriptor.conf_mac.value,
                version_number=self._chain.descriptor.security_version,
                accept_rollback=freshness.accept_rollback,
                pin_file=freshness.pin_file or "",
                pin_command=freshness.pin_command or "",
                expected_mac=parse_mac(freshness.expect_upper, "--expect-upper"),
            )
            watched = open_watched(OpenedHome(place), watch, key=key, lower=kept, source=source)
        try:
            for line in watched.notices:
                self._say(line)
            try:
                rebind(watched.volume, self._image)
            except BaseException:
                watched.volume.abandon()
                raise
            watched.volume.close()
        finally:
            watched.guard.close()
        self.result.bound.append(path)

    def _proved(self, bound: bytes, path: str) -> Image:
        """Return the image that a layer belongs to, when it holds what the present one holds."""
        kept = self._kept.get(bound)
        if kept is not None:
            return kept
        where = f"{PREVIOUS}/{bound.hex()}"
        if not self._root.exists(f"{where}/{IMAGE_NAME}"):
            raise UsageError(
                "the image that the writable layer belongs to was not kept",
                subject=path,
                expected=where,
                found="nothing",
                hint="`serdab build` of the tree that it was made of, by the Serdab of then, makes "
                "it again; `serdab reset` throws the layer away",
            )
        with self._root.directory(where) as sealed:
            kept = open_image(sealed, key=self._keys.image, expected_mac=bound)
        self._kept[bound] = kept
        progress = self._progress
        prove_same(
            kept, self._image, None if progress is None else lambda count: progress("image", count)
        )
        return kept

    def remove_kept(self) -> None:
        """Remove the images that no layer belongs to any more."""
        for mac in self._kept:
            self._root.remove(f"{PREVIOUS}/{mac.hex()}")

    def close(self) -> None:
        for kept in self._kept.values():
            kept.close()
