# SPDX-License-Identifier: Apache-2.0
"""The way to the sealed root FS for its owner, outside a boot: ``mount``, ``rekey``.

In this order: the instance verifies as it does at boot, the caller proves to be its signer, the
keys fit. Nothing is written on the way, not even the record of a first use.
Above: ``rootview``, ``cli``. Below: ``trust.appraisal``, ``libos.volumekey``.

Security:
    The proof is a signature over fresh randomness behind a label of its own. A descriptor's
    canonical bytes begin with a brace, so no proof is ever the signature of a descriptor.
"""

from __future__ import annotations

import os
from typing import Final

from serdab.errors import UsageError, VerificationError
from serdab.instance.layout import DESCRIPTOR, PROTECTED_CONFIG, Instance
from serdab.keys import Key
from serdab.libos.volumekey import VolumeKey, check_key_fits, volume_key
from serdab.structs import frozen
from serdab.trust import platform
from serdab.trust.appraisal import Untrusted, appraise
from serdab.trust.chain import BootChain
from serdab.trust.signing import Signer, SignToolError

CHALLENGE_LABEL: Final = b"serdab proof of ownership 1\n"


@frozen
class LayerKeys:
    """``image`` is None if the image is not encrypted."""

    image: Key | None
    volume: VolumeKey


def verified_chain(instance: Instance, *, expect_signer: str | None = None) -> BootChain:
    """Return a chain that accepted the descriptor and the configuration of ``build/``.

    Raises:
        UsageError: a file is missing.
        Error: refused, as a boot refuses it.
    """
    chain = BootChain()
    appraise(
        chain,
        Untrusted(instance.path, instance.read(DESCRIPTOR), instance.read(PROTECTED_CONFIG)),
        expect_signer=expect_signer,
        platform=platform.current().name,
    )
    return chain


def prove_owner(chain: BootChain, signer: Signer | None) -> Signer:
    """Return ``signer`` if it is the one that signed the instance; None: the caller has none.

    Raises:
        VerificationError: it is not; the message says whether the key or the tool differs.
        UsageError: the sign tool cannot be run.
    """
    built_by = chain.signer
    if signer is None:
        raise VerificationError(
            "no sign key was given, and this user has no development key",
            stage="signed",
            subject="sign key",
            expected=f"mrsigner {built_by}",
            found="none",
            hint="give the --sign-key that the instance was built with",
        )
    given = signer.public.mrsigner()
    if not given.matches(built_by):
        raise VerificationError(
            "the sign key is not the one that the instance was built with",
            stage="signed",
            subject=signer.origin,
            expected=f"mrsigner {built_by}",
            found=f"mrsigner {given}",
            hint="give the --sign-key of the last build; without one it is the development key",
        )
    challenge = CHALLENGE_LABEL + os.urandom(32)
    try:
        signer.public.verify(challenge, signer.sign(challenge))
    except (VerificationError, SignToolError) as exc:
        raise VerificationError(
            "the sign tool is not the one that the instance was built with",
            stage="signed",
            subject=signer.origin,
            expected=f"a signature by {built_by}",
            found=f"exit status {exc.found}"
            if isinstance(exc, SignToolError)
            else "one that does not verify",
            hint="the key fits; give the --sign-tool that signs with its private half",
        ) from exc
    except UsageError as exc:
        exc.stage = "signed"
        raise
    return signer


def layer_keys(chain: BootChain, image_key: Key | None) -> LayerKeys:
    """Return the keys of the root FS's two layers.

    Whether the image key is the right one shows when the image is opened.

    Raises:
        WrongKeyError: an image key is missing, or superfluous.
        Error: as ``Platform.seal_key`` says.
    """
    raw = None if image_key is None else image_key.raw()
    check_key_fits(chain.config, raw)
    volume = volume_key(
        chain.config,
        raw,
        platform=platform.current(),
        mrsigner=chain.signer,
        mrenclave=chain.descriptor.mrenclave(),
    )
    return LayerKeys(image_key, volume)
