# SPDX-License-Identifier: Apache-2.0
"""What a build warns of, and a check of one too: what will be refused, public, or out of reach.

Above: ``build``. Below: ``keychange``, ``outer``, ``signedrecord``. Nothing here changes anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from serdab.config.boot import ENCRYPTED, INTEGRITY_ONLY, BootConfig, parse_boot_config
from serdab.config.occlum import InstanceConfig, parse
from serdab.errors import Error, UsageError
from serdab.instance import keychange, outer
from serdab.instance.layout import PROTECTED_CONFIG, Instance
from serdab.instance.signedrecord import Signed
from serdab.keys import Key
from serdab.libos import hostdirs
from serdab.trust.measurement import Digest
from serdab.trust.signers import recorded_signer


def of_configuration(
    instance: Instance, config: InstanceConfig, *, builtin_key: bool, is_encrypted: bool
) -> Iterator[str]:
    """Yield what is to be said before anything is sealed."""
    yield from config.notes
    yield from _unusable_sources(instance, config)
    if config.image_form.padding_bytes and not is_encrypted:
        yield (
            "serdab.image.padding: accepted, changes nothing here: an image that is not encrypted "
            "has nothing to hide"
        )
    if builtin_key:
        yield (
            "warning: --buildin-image-key puts the image key in clear into the init FS: "
            "whoever can read build/ can read the image; the writable layer stays secret"
        )


def of_change(
    instance: Instance,
    boot: BootConfig,
    image_key: Key | None,
    before: Signed | None,
    *,
    mrsigner: Digest | None,
    mrenclave: Digest,
) -> Iterator[str]:
    """Yield what the step from the published build to ``boot`` costs, before anything is replaced.

    ``mrsigner`` is None where nobody has a key to sign with yet.
    """
    if boot.image_type == INTEGRITY_ONLY and _published_type(instance) == ENCRYPTED:
        yield (
            "warning: the image was encrypted, and this one is not: without --image-key everybody "
            "can read it"
        )
    last = _version_of(before)
    if boot.security_version < last:
        yield (
            f"warning: metadata.version_number is lowered from {last} to {boot.security_version}: "
            f"a writable layer that was used with {last} refuses this build; "
            "`run --accept-rollback` accepts it, once"
        )
    if mrsigner is None:
        return
    line = keychange.warning_of(instance, boot, image_key, mrsigner=mrsigner, mrenclave=mrenclave)
    if line is not None:
        yield line
    known = recorded_signer(instance.path)
    if known is not None and not known.matches(mrsigner):
        yield (
            f"warning: the instance had another signer: before {known}, now {mrsigner}; automatic "
            "keys change with it, and others who pinned the first one will refuse it"
        )


def _unusable_sources(instance: Instance, config: InstanceConfig) -> Iterator[str]:
    """Yield a warning for each host directory that a boot here would refuse.

    No more than that: the instance may be meant for another machine.
    """
    with outer.ground_of(instance, outer.shown_by(config)) as ground:
        for entry in config.mounts:
            if entry.type != "hostfs":
                continue
            try:
                hostdirs.find(entry.source or ".", ground=ground, private=())[1].close()
            except UsageError as exc:
                yield f"warning: `run` will refuse the mount at {entry.target}: {exc}"


def _published_type(instance: Instance) -> str:
    """Return how the image in ``build/`` is said to be sealed: untrusted words, for a warning."""
    try:
        return parse_boot_config(instance.read(PROTECTED_CONFIG)).image_type
    except (OSError, Error):
        return ""


def _version_of(signed: Signed | None) -> int:
    """Return the version number that this user signed last, 0 if that is not known."""
    if signed is None:
        return 0
    try:
        return parse(json.dumps(signed.config).encode()).security_version
    except Error:
        return 0
