# SPDX-License-Identifier: Apache-2.0
"""Gives an encrypted instance a new image key: image and writable layer are sealed once more.

Order: nobody else uses the instance → it verifies as at boot, the caller is its signer, the old key
opens both layers, the host has the room → new image, new configuration, new signature, new layer,
each beside what it replaces → the switch (``switch``) → the new state is remembered → the old data
are removed. Up to the switch a failure leaves everything as it was; from it on the new key counts,
and whoever uses the instance next completes what was cut off.

What is sealed again is what ``build/`` holds, never ``image/``: a source tree that changed since
the last build has no part in it.

Above: ``cli.rekey``. Below: ``sealedroot``, ``rekeylayer``, ``rekeystage``, ``switch``.

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

from collections.abc import Callable
from contextlib import ExitStack

from serdab.config.boot import ENCRYPTED, BootConfig
from serdab.config.occlum import parse
from serdab.errors import Error, UsageError, WrongKeyError
from serdab.instance import switch
from serdab.instance.fingerprint import load_record, store_record
from serdab.instance.layout import CONFIG, IMAGE, PROTECTED_CONFIG, Instance
from serdab.instance.locks import lock_build, lock_run
from serdab.instance.rekeylayer import (
    WritableLayer,
    find_writable,
    refuse_others,
    remember,
)
from serdab.instance.rekeystage import Progress, Staged, Staging, check_room, no_room
from serdab.instance.sealedroot import layer_keys, prove_owner, verified_chain
from serdab.keys import Key
from serdab.sefs.image import Image, open_image
from serdab.sefs.segment import FULL
from serdab.structs import frozen
from serdab.trust.chain import BootChain
from serdab.trust.descriptor import Descriptor
from serdab.trust.measurement import Digest
from serdab.trust.signers import record_signer, recorded_signer
from serdab.trust.signing import Signer

Say = Callable[[str], None]


@frozen
class RekeyRequest:
    """Who signs (None: nobody can), and the two keys."""

    signer: Signer | None
    old: Key
    new: Key


@frozen
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
    with lock_build(instance), ExitStack() as stack:
        stack.enter_context(lock_run(instance, on_wait=say, resume_rekey=True))
        instance.require_built()
        chain = verified_chain(instance)
        signer = prove_owner(chain, request.signer)
        _require_encrypted(chain.config)
        image = _open_image(instance, chain, request, stack)
        if image is None:
            return _done_before(instance, chain, request.new, say)
        keys = layer_keys(chain, request.old)
        refuse_others(instance, chain, keys, say=say)
        layer = find_writable(instance, chain, keys, image, stack, say=say)
        check_room(instance, image, layer)
        staging = Staging(instance, chain, signer, request.new, progress)
        stack.callback(staging.close)
        try:
            staged = _stage(instance, staging, image, layer)
        except OSError as exc:
            if exc.errno in FULL:
                raise no_room("room for a copy of what is sealed", "none left") from exc
            raise
        try:
            path = None if layer is None else layer.path
            switch.decide(instance, staged.raw_config, staged.build, path)
            if layer is not None:
                _remember(instance, layer, staged, request.new)
            if recorded_signer(instance.path) is None:
                record_signer(instance.path, chain.signer)
            switch.remove_staged(instance)
            staging.forget()
        except BaseException:
            if instance.read(PROTECTED_CONFIG) == staged.raw_config:
                say("the new key counts from now on; the next command completes the change")
            raise
        _warn_of_reference(instance, staged.config, say)
        return _result(staged.descriptor, chain.signer, staged.config, layer, was_done=False)


def _stage(
    instance: Instance, staging: Staging, image: Image, layer: WritableLayer | None
) -> Staged:
    """Write all that is new; a failure leaves nothing, but for a kill, which leaves work done."""
    try:
        staged = staging.write(image, layer)
        _forget_image(instance, keep_initfs=not staged.config.builtin_image_key)
    except BaseException:
        switch.remove_staged(instance)
        staging.forget()
        raise
    return staged


def _remember(instance: Instance, layer: WritableLayer, staged: Staged, key: Key) -> None:
    """Open what the layer became, and remember its state."""
    with instance.root.directory(staged.lower) as lower:
        image = open_image(lower, key=key, expected_mac=staged.lower_mac)
    try:
        remember(
            instance, layer.path, image, Key(staged.volume_key.key),
            policy=staged.config.freshness, descriptor=staged.descriptor,
        )  # fmt: skip
    finally:
        image.close()


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
    mac = chain.config.root_mac
    with instance.root.directory(IMAGE) as path:
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
        with instance.root.directory(IMAGE) as sealed:
            image = open_image(sealed, key=key, expected_mac=chain.config.root_mac)
        stack.callback(image.close)
        layer = find_writable(instance, chain, layer_keys(chain, key), image, stack, say=say)
    switch.remove_staged(instance)
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


def _warn_of_reference(instance: Instance, config: BootConfig, say: Say) -> None:
    """Say that the next build will refuse, where the sources name the old root MAC."""
    try:
        required = parse(instance.read(CONFIG)).image_mac
    except Error:
        return  # a package has none, and one that cannot be read is the next build's business
    if required and not config.root_mac.startswith(required):
        say(f"{CONFIG} requires the root MAC {required.hex()}: name the new one before you build")


def _forget_image(instance: Instance, *, keep_initfs: bool) -> None:
    """Let the next build seal the image itself: what is on record was sealed with the old key."""
    record = load_record(instance.path)
    if record:
        store_record(instance.path, {"initfs": record.get("initfs") if keep_initfs else None})
