# SPDX-License-Identifier: Apache-2.0
"""The keys and places that mounts of programs may use, as the measured configuration names them.

Above: ``boot``. Below: ``mountrules``, ``volumekey``. A named key is used by programs as
``key=@name``; they never see it. It is derived from the platform's key, or from the key that init
gave for the root FS, or read from a file of the host.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from serdab.config.boot import BootConfig, UpperLayer
from serdab.config.mounts import AUTOMATIC, IMAGE, NamedKey
from serdab.errors import Error, UsageError
from serdab.keys import Key
from serdab.libos.ground import Ground, Roots
from serdab.libos.mountrules import Rules, derive_named
from serdab.libos.volumekey import volume_key
from serdab.linux.dirfd import word_for
from serdab.linux.whereabouts import leads_nowhere
from serdab.structs import replace
from serdab.trust.chain import BootChain
from serdab.trust.platform import Platform


def make_rules(
    chain: BootChain,
    platform: Platform,
    *,
    ground: Ground,
    host_roots: Roots,
    layer_roots: Roots,
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
    named: dict[str, bytes] = {}
    for entry in policy.keys:
        raw = _early_key(entry, key.key, ground, log)
        if raw is not None:
            named[entry.name] = raw
    return Rules(
        policy,
        ground,
        host_roots,
        layer_roots,
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


def key_path(source: str, ground: Ground) -> str:
    """Return the real path of a key file, or what the configuration says where there is none.

    Raises:
        UsageError: that cannot be told.
    """
    try:
        way = ground.beside(source)
    except UsageError as exc:
        if not leads_nowhere(exc):
            raise
        return source
    with way:
        return way.real()


def _early_key(
    entry: NamedKey, automatic: bytes, ground: Ground, log: Callable[[str, str], None]
) -> bytes | None:
    if entry.source == AUTOMATIC:
        return derive_named(automatic, entry.name)
    if entry.source == IMAGE:
        return None
    try:
        return Key.parse(_read_key(entry.source, ground).decode("ascii", "replace")).raw()
    except (OSError, Error) as exc:
        log("error", f"mount: the key named {entry.name} cannot be read: {exc}")
        return None


def _read_key(source: str, ground: Ground) -> bytes:
    """Return what a key file holds.

    Raises:
        UsageError: it is no file, lies where programs may write, or the way to it is not to be
            followed.
    """
    with ground.beside(source) as way:
        mode = os.fstat(way.fds[-1]).st_mode
        if not stat.S_ISREG(mode):
            # Not opened: a FIFO would have us wait for whoever writes to it.
            raise UsageError(
                "not a key file", subject=source, expected="a file", found=word_for(mode)
            )
        if ground.leads_inside(way):
            raise UsageError(
                "a key in reach of programs is none",
                subject=source,
                expected="a file outside the instance and of what programs are shown",
                found="one within",
                hint="whoever writes there would choose the key",
            )
        with open(f"/proc/self/fd/{way.fds[-1]}", "rb", buffering=0) as file:
            return file.read(256)
