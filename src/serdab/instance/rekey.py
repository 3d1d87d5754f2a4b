# SPDX-License-Identifier: Apache-2.0
"""Gives an encrypted instance a new image key: image and writable layer are sealed once more.

Order: nobody else uses the instance → it verifies as at boot, the caller is its signer, the old key
opens both layers, the host has the room → new image, new configuration, new signature, new layer,
each beside what it replaces → the switch (``switch``) → the new state is remembered → the old data
are removed. Up to the switch a failure leaves everything as it was; from it on the new key counts,
and whoever uses the instance next completes what was cut off.

What is sealed again is what ``build/`` holds, never ``image/``: a source tree that changed since
the last build has no part in it.

Above: ``cli.rekey``. Below: ``sealedroot``, ``switch``, ``rekeylayer``, ``sefs`` (sealing).

Security:
    1. Everything that is read is verified, to the last byte, before it is sealed under the new key.
    2. Root MACs that get signed were computed here.
    3. A built-in key is replaced in the init FS; the one it held opens nothing any more.
    4. The layer goes on with its history, so the state before the switch is refused afterwards
       wherever its freshness is remembered, as any older state is. Not covered: who had the old key
       and a copy of the old data still reads that copy, and a host that copies on write may keep
       one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from serdab.config.boot import ENCRYPTED, BootConfig, dump_boot_config
from serdab.errors import EnvironmentRefused, UsageError, WrongKeyError
from serdab.instance import publish, switch
from serdab.instance.build import IMAGE_KEY
from serdab.instance.fingerprint import load_record, store_record
from serdab.instance.layout import (
    BUILD,
    DESCRIPTOR,
    IMAGE,
    INITFS,
    PREVIOUS,
    PROTECTED_CONFIG,
    RUN,
    Instance,
)
from serdab.instance.locks import lock_build, lock_run
from serdab.instance.rekeylayer import WritableLayer, find_writable, remember
from serdab.instance.sealedroot import layer_keys, prove_owner, verified_chain
from serdab.keys import Key
from serdab.libos.volumekey import VolumeKey, volume_key
from serdab.sefs.image import Image, open_image
from serdab.sefs.imagebuild import reseal_image
from serdab.sefs.imageformat import IMAGE_NAME
from serdab.sefs.segment import FULL
from serdab.sefs.volumecopy import copy_volume
from serdab.trust import platform
from serdab.trust.chain import BootChain
from serdab.trust.descriptor import Descriptor, sign
from serdab.trust.measurement import Digest
from serdab.trust.signers import record_signer, recorded_signer
from serdab.trust.signing import Signer

Say = Callable[[str], None]
Progress = Callable[[str, int], None]
_SLACK_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class RekeyRequest:
    """Who signs (None: nobody can), and the two keys."""

    signer: Signer | None
    old: Key
    new: Key


@dataclass(frozen=True, slots=True)
class RekeyResult:
    """The measurements now. ``was_done``: the instance had the new key before."""

    mrenclave: Digest
    mrsigner: Digest
    conf_mac: Digest
    init_mac: bytes
    root_mac: bytes
    has_layer: bool
    was_done: bool


def rekey(
    instance: Instance, request: RekeyRequest, *, say: Say, progress: Progress | None = None
) -> RekeyResult:
    """Change the image key; ``say`` gets one line for each thing the user should know.

    Raises:
        UsageError: there is nothing to rekey, or both keys are one.
        BusyError: the instance is in use.
        VerificationError: the instance does not verify, or the signer is another one.
        WrongKeyError: the old key does not open the image, or the writable layer.
        EnvironmentRefused: the host has no room for the copies.
    """
    if request.old == request.new:
        raise UsageError(
            "the new image key is the old one",
            expected="another key",
            found="the same",
            hint="`serdab gen-image-key FILE` makes one",
        )
    with lock_build(instance), lock_run(instance, on_wait=say), ExitStack() as stack:
        instance = Instance.open_built(instance.path)
        chain = verified_chain(instance)
        prove_owner(chain, request.signer)
        assert request.signer is not None  # noqa: S101 - proved
        _require_encrypted(chain.config)
        image = _open_image(instance, chain, request, stack)
        if image is None:
            return _done_before(instance, chain, request.new, say)
        layer = find_writable(
            instance, chain, layer_keys(chain, request.old), image, stack, say=say
        )
        work = _Rekey(instance, chain, request.signer, request.new, progress)
        try:
            return work.run(image, layer)
        except OSError as exc:
            if exc.errno in FULL:
                raise _no_room("a copy of the sealed data", "none left") from exc
            raise


def _require_encrypted(config: BootConfig) -> None:
    if config.image_type != ENCRYPTED:
        raise UsageError(
            "the image is not encrypted: there is no key to change",
            expected="an encrypted image",
            found=config.image_type,
            hint="`serdab build --image-key FILE` encrypts it; the writable layer, under the "
            "automatic key, belongs to the image before that",
        )


def _open_image(
    instance: Instance, chain: BootChain, request: RekeyRequest, stack: ExitStack
) -> Image | None:
    """Return the image under the old key; None if it has the new one."""
    path, mac = Path(instance.at(IMAGE)), chain.config.root_mac
    try:
        image = open_image(path, key=request.old, expected_mac=mac)
    except WrongKeyError:
        try:
            open_image(path, key=request.new, expected_mac=mac).close()
        except WrongKeyError:
            pass
        else:
            return None
        raise
    stack.callback(image.close)
    return image


def _done_before(instance: Instance, chain: BootChain, key: Key, say: Say) -> RekeyResult:
    """A switch was decided before, and is complete by now but for what is remembered."""
    with ExitStack() as stack:
        image = open_image(Path(instance.at(IMAGE)), key=key, expected_mac=chain.config.root_mac)
        stack.callback(image.close)
        layer = find_writable(instance, chain, layer_keys(chain, key), image, stack, say=say)
    return _result(chain.descriptor, chain.signer, chain.config, layer, was_done=True)


def _result(
    descriptor: Descriptor,
    mrsigner: Digest,
    config: BootConfig,
    layer: WritableLayer | None,
    *,
    was_done: bool,
) -> RekeyResult:
    return RekeyResult(
        mrenclave=descriptor.mrenclave(),
        mrsigner=mrsigner,
        conf_mac=descriptor.conf_mac,
        init_mac=config.init_mac,
        root_mac=config.root_mac,
        has_layer=layer is not None,
        was_done=was_done,
    )


@dataclass(frozen=True, slots=True)
class _Staged:
    """What was written anew. ``lower``: where the image lies that the layer belongs to."""

    config: BootConfig
    raw: bytes
    descriptor: Descriptor
    lower: str
    lower_mac: bytes


class _Rekey:
    """The work itself, after all that could refuse it."""

    def __init__(
        self,
        instance: Instance,
        chain: BootChain,
        signer: Signer,
        key: Key,
        progress: Progress | None,
    ) -> None:
        self._instance = instance
        self._chain = chain
        self._signer = signer
        self._key = key
        self._progress = progress

    def run(self, image: Image, layer: WritableLayer | None) -> RekeyResult:
        instance = self._instance
        _check_room(instance, image, layer)
        switch.remove_staged(instance)
        try:
            staged = self._stage(image, layer)
            _forget_image(instance, keep_initfs=not staged.config.builtin_image_key)
            if layer is not None:
                switch.stage_layer(instance, staged.raw)
        except BaseException:
            switch.remove_staged(instance)
            raise
        switch.decide(instance, staged.raw, None if layer is None else layer.path)
        if layer is not None:
            self._remember(layer, staged)
        if recorded_signer(instance.path) is None:
            record_signer(instance.path, self._chain.signer)
        switch.remove_staged(instance)
        return _result(staged.descriptor, self._chain.signer, staged.config, layer, was_done=False)

    def _stage(self, image: Image, layer: WritableLayer | None) -> _Staged:
        """Write all that is new."""
        build, volume = switch.begin(self._instance, with_layer=layer is not None)
        old = self._chain.config
        root_mac = self._reseal("image", image, os.path.join(build, _within(IMAGE)))
        lower, lower_mac = IMAGE, root_mac
        if layer is not None and layer.image is not image:
            lower, lower_mac = self._reseal_previous(layer.image, build)
        init_mac = self._init_fs(old, os.path.join(build, _within(INITFS)))
        config = replace(old, root_mac=root_mac, init_mac=init_mac)
        raw = dump_boot_config(config)
        descriptor = replace(self._chain.descriptor, conf_mac=Digest.of(raw))
        publish.write_file(os.path.join(build, _within(PROTECTED_CONFIG)), raw)
        signed = sign(descriptor, self._signer)
        publish.write_file(os.path.join(build, _within(DESCRIPTOR)), signed)
        staged = _Staged(config, raw, descriptor, lower, lower_mac)
        if layer is not None:
            self._copy_layer(layer, staged, os.path.join(build, _within(lower)), volume)
        return staged

    def _reseal(self, label: str, image: Image, out: str) -> bytes:
        info = reseal_image(image, Path(out), key=self._key, progress=self._labelled(label))
        return info.root_mac

    def _reseal_previous(self, image: Image, build: str) -> tuple[str, bytes]:
        """Seal the image that the layer belongs to, which is not the present one."""
        folder = os.path.join(build, _within(PREVIOUS))
        mac = self._reseal("previous image", image, os.path.join(folder, "new"))
        os.rename(os.path.join(folder, "new"), os.path.join(folder, mac.hex()))
        return os.path.join(PREVIOUS, mac.hex()), mac

    def _init_fs(self, config: BootConfig, out: str) -> bytes:
        """Take the init FS over; one that holds the image key gets the new one instead."""
        source = self._instance.at(INITFS)
        if not config.builtin_image_key:
            publish.copy_sealed(source, out)
            return config.init_mac
        init_fs = open_image(Path(source), key=None, expected_mac=config.init_mac)
        try:
            content = self._key.dump().encode("ascii") + b"\n"
            info = reseal_image(init_fs, Path(out), key=None, replaced={IMAGE_KEY: content})
        finally:
            init_fs.close()
        return info.root_mac

    def _copy_layer(self, layer: WritableLayer, staged: _Staged, lower: str, out: str) -> None:
        chosen = self._volume_key(staged)
        image = open_image(Path(lower), key=self._key, expected_mac=staged.lower_mac)
        try:
            copy_volume(
                layer.volume,
                Path(out),
                key=Key(chosen.key),
                lower=image,
                source=chosen.source,
                progress=self._labelled("writable layer"),
            )
        finally:
            image.close()

    def _remember(self, layer: WritableLayer, staged: _Staged) -> None:
        """Open what the layer became, and remember its state."""
        path = Path(self._instance.at(staged.lower))
        image = open_image(path, key=self._key, expected_mac=staged.lower_mac)
        try:
            remember(
                layer.path, image, Key(self._volume_key(staged).key),
                policy=staged.config.freshness, conf_mac=staged.descriptor.conf_mac,
            )  # fmt: skip
        finally:
            image.close()

    def _volume_key(self, staged: _Staged) -> VolumeKey:
        return volume_key(
            staged.config,
            self._key.raw(),
            platform=platform.current(),
            mrsigner=self._chain.signer,
            mrenclave=staged.descriptor.mrenclave(),
        )

    def _labelled(self, label: str) -> Callable[[int], None] | None:
        progress = self._progress
        return None if progress is None else lambda count: progress(label, count)


def _within(path: str) -> str:
    """Return a path below ``build/`` as one relative to it."""
    return os.path.relpath(path, BUILD)


def _forget_image(instance: Instance, *, keep_initfs: bool) -> None:
    """Let the next build seal the image itself: what is on record was sealed with the old key."""
    record = load_record(instance.path)
    if record:
        store_record(instance.path, {"initfs": record.get("initfs") if keep_initfs else None})


def _check_room(instance: Instance, image: Image, layer: WritableLayer | None) -> None:
    """Refuse at once what cannot end well; what is removed first is counted as free."""
    needed: dict[str, int] = {}
    build, run = instance.path, instance.at(RUN)
    init_fs = os.stat(os.path.join(instance.at(INITFS), IMAGE_NAME)).st_size
    needed[build] = image.stored_bytes() + init_fs + _SLACK_BYTES
    if layer is not None:
        if layer.image is not image:
            needed[build] += layer.image.stored_bytes()
        needed[run] = layer.live_bytes() + _SLACK_BYTES
        if os.stat(run).st_dev == os.stat(build).st_dev:
            needed[build] += needed.pop(run)
    for path, size in needed.items():
        status = os.statvfs(path)
        blocks = status.f_bfree if os.geteuid() == 0 else status.f_bavail
        free = blocks * status.f_frsize
        if free < size:
            raise _no_room(f"{size} bytes free at {path}", f"{free}")


def _no_room(expected: str, found: str) -> EnvironmentRefused:
    return EnvironmentRefused(
        "the host has no room for the copies that a new key takes",
        expected=expected,
        found=found,
        hint="nothing was changed; the old data are removed when the new ones are whole",
    )
