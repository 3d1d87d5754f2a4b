# SPDX-License-Identifier: Apache-2.0
"""The measured configuration: what a boot does, fixed at build time.

``build`` derives it from ``Occlum.json`` and the two sealed file systems and writes it to
``build/.Occlum_sys.json.protected``; its SHA-256 is the conf MAC in the signed descriptor. A boot
parses the bytes only after that MAC matched, and still refuses everything it does not know.

On-disk format:
    One JSON object in canonical form: keys sorted, no spaces, ASCII, one newline at the end.
    ``format`` is 1. Other spellings of the same values are refused, so that one configuration has
    one MAC. Fields and their meaning: the classes below.
"""

from __future__ import annotations

import json
from typing import Final

from serdab.config.checks import (
    check_entry_points,
    check_environment,
    check_names,
    check_target,
)
from serdab.config.mounts import EVERYTHING, MountPolicy, dump_policy, parse_policy
from serdab.config.strict import Section, load_object
from serdab.errors import Error, FormatError
from serdab.structs import field, frozen

FORMAT: Final = 1
ENCRYPTED: Final = "encrypted"
INTEGRITY_ONLY: Final = "integrity-only"
IMAGE_TYPES: Final = (ENCRYPTED, INTEGRITY_ONLY)
# What a build accepts beside the root line. The root line itself is ``upper`` and ``root_mac``.
MOUNT_TYPES: Final = ("hostfs", "procfs", "devfs", "ramfs")
#: A smaller limit of the writable layer would not hold its own bookkeeping.
MIN_UPPER_BYTES: Final = 1 << 20
NETWORKS: Final = ("host", "none")
#: What becomes of the writable layer's position: see ``trust.freshness``.
FRESHNESS: Final = ("record", "enforce", "off")


@frozen
class Limits:
    """Limits on everything that runs inside; None leaves the host's own."""

    max_processes: int | None = None
    memory_bytes: int | None = None
    stack_bytes: int | None = None


@frozen
class MountEntry:
    """One mount of the application stage.

    ``source`` is a host path for hostfs, relative to the instance directory or absolute, else None.
    """

    target: str
    type: str
    source: str | None = None


@frozen
class UpperLayer:
    """The writable layer of the root FS.

    ``source`` is relative to the instance directory. ``autokey_policy`` other than 0 binds its
    automatic key to MRENCLAVE too. ``temporary`` keeps it in memory. ``max_bytes`` is the most that
    its live data may take on the host; None leaves the host's own limit.
    """

    source: str = "run/mount/__ROOT"
    autokey_policy: int = 0
    temporary: bool = False
    max_bytes: int | None = None


@frozen
class BootConfig:
    """The content of the protected configuration.

    ``host_directories`` lists the host paths under which programs may mount (relative ones are
    below the instance). With ``builtin_image_key`` the image key is public, so the writable layer
    mixes the automatic key into its own.
    """

    image_type: str
    init_mac: bytes
    root_mac: bytes
    entry_points: tuple[str, ...] = ("/bin",)
    env_default: tuple[str, ...] = ()
    env_untrusted: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    mounts: tuple[MountEntry, ...] = ()
    upper: UpperLayer = field(default_factory=UpperLayer)
    builtin_image_key: bool = False
    product_id: int = 0
    security_version: int = 0
    debuggable: bool = True
    disable_log: bool = False
    host_directories: tuple[str, ...] = (".",)
    network: str = "host"
    freshness: str = "record"
    runtime_mounts: MountPolicy = EVERYTHING


def dump_boot_config(config: BootConfig) -> bytes:
    """Return the canonical bytes."""
    value: dict[str, object] = {
        "format": FORMAT,
        "image_type": config.image_type,
        "init_mac": config.init_mac.hex(),
        "root_mac": config.root_mac.hex(),
        "entry_points": list(config.entry_points),
        "env": {"default": list(config.env_default), "untrusted": list(config.env_untrusted)},
        "limits": {
            "max_processes": config.limits.max_processes,
            "memory_bytes": config.limits.memory_bytes,
            "stack_bytes": config.limits.stack_bytes,
        },
        "mounts": [
            {"target": entry.target, "type": entry.type, "source": entry.source}
            for entry in config.mounts
        ],
        "upper": {
            "source": config.upper.source,
            "autokey_policy": config.upper.autokey_policy,
            "temporary": config.upper.temporary,
            "max_bytes": config.upper.max_bytes,
        },
        "builtin_image_key": config.builtin_image_key,
        "product_id": config.product_id,
        "security_version": config.security_version,
        "debuggable": config.debuggable,
        "disable_log": config.disable_log,
        "host_directories": list(config.host_directories),
        "network": config.network,
        "freshness": config.freshness,
    }
    if config.runtime_mounts != EVERYTHING:
        value["runtime_mounts"] = dump_policy(config.runtime_mounts)
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"


def _fail(path: str, expected: str, found: str, hint: str) -> Error:
    return FormatError(
        f"protected configuration: {path}" if path else "protected configuration",
        stage="config",
        subject=path,
        expected=expected,
        found=found,
        hint=hint or "`serdab build` writes it anew",
    )


def _parse_mounts(entries: list[Section]) -> tuple[MountEntry, ...]:
    out = []
    for entry in entries:
        kind = entry.text("type", choices=MOUNT_TYPES)
        target = check_target(entry, "target", entry.text("target"))
        source = entry.optional_text("source")
        if (source is None) == (kind == "hostfs"):
            raise entry.refuse("source", "a source for hostfs and for nothing else", repr(source))
        entry.close()
        out.append(MountEntry(target, kind, source))
    return tuple(out)


def parse_boot_config(raw: bytes) -> BootConfig:
    """Return the configuration in ``raw``.

    Raises:
        FormatError: anything unknown, missing, ill-typed, out of range or not canonical.
    """
    top = load_object(raw, _fail)
    top.integer("format", low=FORMAT, high=FORMAT)
    env = top.section("env")
    limits = top.section("limits")
    upper = top.section("upper")
    config = BootConfig(
        image_type=top.text("image_type", choices=IMAGE_TYPES),
        init_mac=top.hex_bytes("init_mac", 32),
        root_mac=top.hex_bytes("root_mac", 32),
        entry_points=check_entry_points(top, "entry_points", top.texts("entry_points")),
        env_default=check_environment(env, "default", env.texts("default")),
        env_untrusted=check_names(env, "untrusted", env.texts("untrusted")),
        limits=Limits(
            limits.optional_integer("max_processes", low=1),
            limits.optional_integer("memory_bytes", low=1),
            limits.optional_integer("stack_bytes", low=1),
        ),
        mounts=_parse_mounts(top.sections("mounts")),
        upper=UpperLayer(
            upper.text("source"),
            upper.integer("autokey_policy"),
            upper.flag("temporary"),
            upper.optional_integer("max_bytes", low=MIN_UPPER_BYTES),
        ),
        builtin_image_key=top.flag("builtin_image_key"),
        product_id=top.integer("product_id", high=(1 << 32) - 1),
        security_version=top.integer("security_version", high=(1 << 32) - 1),
        debuggable=top.flag("debuggable"),
        disable_log=top.flag("disable_log"),
        host_directories=top.texts("host_directories"),
        network=top.text("network", choices=NETWORKS),
        freshness=top.text("freshness", choices=FRESHNESS),
        runtime_mounts=parse_policy(top.section("runtime_mounts")),
    )
    for section in (env, limits, upper, top):
        section.close()
    if dump_boot_config(config) != raw:
        raise _fail("", "the canonical spelling", "another spelling of the same values", "")
    return config
