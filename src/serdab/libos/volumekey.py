# SPDX-License-Identifier: Apache-2.0
"""Which keys the two layers of the root FS have. Pure.

Above: ``boot``, ``instance.sealedroot``, ``instance.check``. Below: ``keysource``. A key that was
given serves both layers. Without one the key is the platform's, so that only this signer's builds
on this machine get it again. A built-in image key is public (it lies in clear in the init FS), so
there the platform's key is mixed in: what a program writes stays secret.
"""

from __future__ import annotations

import hmac
from typing import Final

from serdab.config.boot import ENCRYPTED, BootConfig
from serdab.errors import WrongKeyError
from serdab.keys import KEY_BYTES
from serdab.libos.keysource import AUTOMATIC, BUILT_IN, USER, KeySource
from serdab.structs import frozen
from serdab.trust.measurement import Digest
from serdab.trust.platform import KeyPolicy, Platform

_LABEL: Final = b"serdab built-in key 1\n"


@frozen
class VolumeKey:
    """The key, and what the volume remembers in clear about where it comes from."""

    key: bytes
    source: bytes

    def __repr__(self) -> str:
        return f"VolumeKey({self.source!r})"


def check_key_fits(config: BootConfig, key: bytes | None) -> None:
    """Refuse an image key that is missing, or that nothing in the instance is sealed with.

    Raises:
        WrongKeyError: so it is.
    """
    encrypted = config.image_type == ENCRYPTED
    if encrypted and key is None:
        raise WrongKeyError(
            "no key was given for the encrypted root FS",
            stage="rootfs",
            subject="root FS",
            expected="its image key",
            found="none",
            hint="`--image-key FILE`, or, to run, an init that fetches the key",
        )
    if not encrypted and key is not None:
        raise WrongKeyError(
            "a key was given, but the root FS is not encrypted",
            stage="rootfs",
            subject="root FS",
            expected="no key",
            found="one",
            hint="leave --image-key out, or build with it",
        )


def volume_key(
    config: BootConfig,
    image_key: bytes | None,
    *,
    platform: Platform,
    mrsigner: Digest,
    mrenclave: Digest,
) -> VolumeKey:
    """Return the key of the writable layer.

    Raises:
        Error: as ``Platform.seal_key`` says.
    """
    if image_key is not None and not config.builtin_image_key:
        return VolumeKey(image_key, KeySource(USER).dump())
    bound = mrenclave if config.upper.autokey_policy else None
    policy = KeyPolicy(mrsigner, config.product_id, bound)
    sealed = platform.seal_key(policy).raw()
    source = KeySource(
        AUTOMATIC if image_key is None else BUILT_IN,
        platform=platform.name,
        platform_id=platform.identity(),
        mrsigner=str(mrsigner),
        product=str(policy.product_id),
        mrenclave="" if bound is None else str(bound),
    ).dump()
    if image_key is None:
        return VolumeKey(sealed, source)
    mixed = hmac.digest(_LABEL + sealed, image_key, "sha256")[:KEY_BYTES]
    return VolumeKey(mixed, source)
