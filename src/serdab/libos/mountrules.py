# SPDX-License-Identifier: Apache-2.0
"""What a mount(2) of a program may do, and what it becomes: orders for an fs server. Pure.

Above: ``mounts``. Below: ``mountcall``, ``orders``, ``fence``. The rules are those of the measured
configuration (``config.mounts``); absent, everything may be mounted that lies below the instance
directory.
"""

from __future__ import annotations

import errno
import hmac
from collections.abc import Mapping
from typing import Final

from serdab.config.mounts import ANY, MountPolicy
from serdab.keys import KEY_BYTES
from serdab.libos.fence import Fence
from serdab.libos.ground import Ground, Roots
from serdab.libos.keysource import NAMED, USER, KeySource
from serdab.libos.mountcall import (
    MS_NOATIME,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_RDONLY,
    BadCall,
    MountCall,
)
from serdab.libos.orders import HOST, SEALED, UNION, Orders
from serdab.libos.reserved import is_below
from serdab.structs import field, frozen

_LABEL: Final = b"serdab named key 1\n"
_ATTRIBUTES: Final = (
    (MS_RDONLY, 0x01),
    (MS_NOEXEC, 0x08),
    (MS_NOATIME, 0x10),
    (MS_NODIRATIME, 0x80),
)
_NOSUID_NODEV: Final = 0x02 | 0x04
READ_ONLY: Final = 0x01


@frozen
class Rules:
    """The measured policy with everything that an order needs.

    ``ground`` and the roots are the boot's, which owns them. ``automatic_key`` is the platform's
    key for this instance; ``named_keys`` holds those of the policy that are there by now.
    """

    policy: MountPolicy
    ground: Ground
    host_roots: Roots
    layer_roots: Roots
    private: tuple[str, ...]
    one_owner: bool
    freshness: str
    accept_rollback: bool
    conf_mac: bytes
    version_number: int
    automatic_key: bytes
    automatic_source: bytes
    named_keys: Mapping[str, bytes] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Rules({self.policy!r})"


def derive_named(key: bytes, name: str) -> bytes:
    """Return the key of a name below another key."""
    return hmac.digest(key, _LABEL + name.encode(), "sha256")[:KEY_BYTES]


def attributes(flags: int) -> int:
    """Return MOUNT_ATTR_* for MS_*; no mount of a program has set-id programs or devices."""
    return sum(attribute for flag, attribute in _ATTRIBUTES if flags & flag) | _NOSUID_NODEV


def check_program(policy: MountPolicy, program: str) -> None:
    """Refuse a program that may not mount.

    Raises:
        BadCall: EPERM.
    """
    if not any(is_below(program, prefix) for prefix in policy.programs):
        raise BadCall(
            errno.EPERM,
            f"{program} may not mount (expected a program below {' or '.join(policy.programs)})",
        )


def check(policy: MountPolicy, call: MountCall) -> None:
    """Refuse what the policy does not admit.

    Raises:
        BadCall: EPERM; EINVAL, a named key that is not configured.
    """
    if call.type not in policy.types:
        allowed = ", ".join(policy.types) or "nothing"
        raise BadCall(errno.EPERM, f"{call.type} may not be mounted (expected {allowed})")
    if call.key is not None and not policy.clear_keys:
        raise BadCall(errno.EPERM, "a key in clear is not admitted (expected key=@name)")
    if call.key_name and call.key_name not in (key.name for key in policy.keys):
        shown = call.key_name[:64]  # of the program's choice
        raise BadCall(errno.EINVAL, f"no key is named {shown!r} in the configuration")


def check_key(rules: Rules, call: MountCall) -> None:
    """Refuse a named key before its time.

    Raises:
        BadCall: EPERM.
    """
    if call.key_name and call.key_name not in rules.named_keys:
        raise BadCall(errno.EPERM, f"the key named {call.key_name!r} is not there yet")


def is_free(policy: MountPolicy, user: int) -> bool:
    """Return whether a user mounts on every directory, and unmounts what others mounted."""
    return user == 0 or policy.targets == ANY


def orders(
    rules: Rules, call: MountCall, user: int, *, patience_ms: int, is_small: bool
) -> Orders | None:
    """Return what an fs server is to serve; None for a file system of the kernel's own.

    Preconditions: ``check`` and ``check_key`` passed.
    """
    if call.type == "ramfs":
        return None
    owner = None if is_free(rules.policy, user) else user
    if call.type == "hostfs":
        return Orders(
            HOST,
            host_path=call.options["dir"],
            one_owner=rules.one_owner,
            ground=rules.ground,
            fence=_fence(rules, rules.host_roots),
            owner=owner,
            is_small=is_small,
        )
    key, source = _key(rules, call)
    is_union = call.type == "unionfs"
    # Without a key but with a MAC an image is integrity-only; a volume is never without a key.
    image_key = None if key is None and call.mac else key or rules.automatic_key
    return Orders(
        UNION if is_union else SEALED,
        image=call.options["lowerdir"] if is_union else "",
        image_key=image_key,
        expected_mac=call.mac or None,
        volume=call.options["upperdir"] if is_union else call.options["dir"],
        volume_key=key or rules.automatic_key,
        source=source,
        one_owner=rules.one_owner,
        freshness=rules.freshness,
        accept_rollback=rules.accept_rollback,
        conf_mac=rules.conf_mac,
        # A key that was given may be shared by products, each with numbers of its own.
        version_number=rules.version_number if key is None else None,
        ground=rules.ground,
        fence=_fence(rules, rules.layer_roots),
        owner=owner,
        patience_ms=patience_ms,
        is_small=is_small,
        max_volumes=rules.policy.max_volumes,
    )


def _fence(rules: Rules, roots: Roots) -> Fence:
    return Fence(roots.identities, roots.names, rules.private)


def _key(rules: Rules, call: MountCall) -> tuple[bytes | None, bytes]:
    """Return the key that was named or given, and what the volume remembers of its source."""
    if call.key is not None:
        return call.key, KeySource(USER).dump()
    if call.key_name:
        return rules.named_keys[call.key_name], KeySource(NAMED, name=call.key_name).dump()
    return None, rules.automatic_source


def refusal_code(kind: str, fstype: str) -> int:
    """Return the errno of an fs server's refusal, by the kind of its error."""
    if kind == "not-allowed":
        return errno.EPERM
    if kind == "no-room":
        return errno.ENOSPC
    if kind == "layer" or (fstype == "hostfs" and kind == "usage"):
        return errno.EINVAL
    return errno.EIO
