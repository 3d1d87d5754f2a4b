# SPDX-License-Identifier: Apache-2.0
"""The keys and places that mounts of programs may use, as the measured configuration names them.

Above: ``boot``. Below: ``mountrules``, ``volumekey``. A named key is used by programs as
``key=@name``; they never see it. It is derived from the platform's key, or from the key that init
gave for the root FS, or read from a file of the host.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from serdab.config.boot import BootConfig, UpperLayer
from serdab.config.mounts import AUTOMATIC, IMAGE, NamedKey
from serdab.errors import Error
from serdab.keys import Key
from serdab.libos import hostdirs
from serdab.libos.mountrules import Rules, derive_named
from serdab.libos.volumekey import volume_key
from serdab.trust.chain import BootChain
from serdab.trust.platform import Platform


def make_rules(
    chain: BootChain,
    platform: Platform,
    *,
    instance: str,
    private: tuple[str, ...],
    one_owner: bool,
    accept_rollback: bool,
    log: Callable[[str, str], None],
) -> Rules:
    """Return what holds while init runs.

    Raises:
        Error: as ``Platform.seal_key`` says.
    """
    config = chain.config
    key = volume_key(
        _without_policy(config),
        None,
        platform=platform,
        mrsigner=chain.signer,
        mrenclave=chain.descriptor.mrenclave(),
    )
    policy = config.runtime_mounts
    real = os.path.realpath(instance)
    layers = policy.layers if policy.layers is not None else config.host_directories
    named: dict[str, bytes] = {}
    for entry in policy.keys:
        raw = _early_key(entry, key.key, log)
        if raw is not None:
            named[entry.name] = raw
    return Rules(
        policy,
        real,
        tuple(hostdirs.resolve(real, path) for path in config.host_directories),
        tuple(hostdirs.resolve(real, path) for path in layers),
        private,
        one_owner,
        config.freshness,
        accept_rollback,
        chain.descriptor.conf_mac.value,
        chain.descriptor.security_version,
        key.key,
        key.source,
        named,
    )


def with_image_key(rules: Rules, image_key: bytes | None) -> Rules:
    """Return what holds once the root FS is mounted with a key."""
    if image_key is None:
        return rules
    named = {
        entry.name: derive_named(image_key, entry.name)
        for entry in rules.policy.keys
        if entry.source == IMAGE
    }
    return replace(rules, named_keys={**rules.named_keys, **named})


def _without_policy(config: BootConfig) -> BootConfig:
    # autokey_policy is a property of the root's writable layer: what programs mount outlives builds
    return replace(config, upper=UpperLayer(), builtin_image_key=False)


def _early_key(entry: NamedKey, automatic: bytes, log: Callable[[str, str], None]) -> bytes | None:
    if entry.source == AUTOMATIC:
        return derive_named(automatic, entry.name)
    if entry.source == IMAGE:
        return None
    try:
        with open(entry.source, "rb") as file:
            return Key.parse(file.read(256).decode("ascii", "replace")).raw()
    except (OSError, Error) as exc:
        log("error", f"mount: the key named {entry.name} cannot be read: {exc}")
        return None
