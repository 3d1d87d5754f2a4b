# SPDX-License-Identifier: Apache-2.0
"""The arguments of MountRootFS (363): struct user_rootfs_config, read from the caller's memory.

Above: ``boot``. Below: ``linux.seccomp``. Pure but for the memory it is given.

Layout, native words of 8 bytes: len, upper_layer_path, lower_layer_path, entry_point,
hostfs_source, hostfs_target, envp; from len 64 on also a pointer to the 32-byte root MAC that the
lower layer must have. Shorter than 56 is EINVAL; longer than we know, with anything but zeros
there, is E2BIG (the way of openat2(2)).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final, Protocol

from serdab.keys import KEY_BYTES
from serdab.structs import frozen

OLD_BYTES: Final = 56
KNOWN_BYTES: Final = 64
_MAX_BYTES: Final = 4096
MAC_BYTES: Final = 32
_MAX_ENV: Final = 4096
_MAX_ENV_BYTES: Final = 1 << 20


class Readable(Protocol):
    """Memory of the caller."""

    def read(self, address: int, length: int) -> bytes: ...

    def text(self, address: int, limit: int = 4096) -> bytes: ...


@frozen
class RootConfig:
    """What init asks for; None leaves what is configured."""

    upper: str | None = None
    lower: str | None = None
    entry_point: str | None = None
    hostfs_source: str | None = None
    hostfs_target: str | None = None
    env: tuple[bytes, ...] | None = None
    root_mac: bytes | None = None


@frozen
class Request:
    """A whole call. ``config`` None: mount what is configured."""

    key: bytes | None
    config: RootConfig | None

    def __repr__(self) -> str:
        return f"Request(key={'None' if self.key is None else 'redacted'}, config={self.config!r})"


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _optional_text(memory: Readable, address: int) -> str | None:
    return os.fsdecode(memory.text(address)) if address else None


def read_request(memory: Readable, key_address: int, config_address: int) -> Request:
    """Return the call's arguments.

    Raises:
        OSError: EFAULT, EINVAL, E2BIG, ENAMETOOLONG.
    """
    key = memory.read(key_address, KEY_BYTES) if key_address else None
    if not config_address:
        return Request(key, None)
    (length,) = struct.unpack("<Q", memory.read(config_address, 8))
    if length < OLD_BYTES or length > _MAX_BYTES:
        raise _error(errno.EINVAL if length < OLD_BYTES else errno.E2BIG)
    raw = memory.read(config_address, length)
    if any(raw[KNOWN_BYTES:]):
        raise _error(errno.E2BIG)
    # A length between two members ends inside one we know: treat what is missing as zero.
    words = struct.unpack("<8Q", raw[:KNOWN_BYTES].ljust(KNOWN_BYTES, b"\0"))
    _, upper, lower, entry_point, source, target, env, mac = words
    return Request(
        key,
        RootConfig(
            upper=_optional_text(memory, upper),
            lower=_optional_text(memory, lower),
            entry_point=_optional_text(memory, entry_point),
            hostfs_source=_optional_text(memory, source),
            hostfs_target=_optional_text(memory, target),
            env=_read_env(memory, env) if env else None,
            root_mac=memory.read(mac, MAC_BYTES) if mac else None,
        ),
    )


def _read_env(memory: Readable, address: int) -> tuple[bytes, ...]:
    out: list[bytes] = []
    total = 0
    while True:
        (pointer,) = struct.unpack("<Q", memory.read(address + 8 * len(out), 8))
        if not pointer:
            return tuple(out)
        item = memory.text(pointer, 128 << 10)
        total += len(item)
        if len(out) == _MAX_ENV or total > _MAX_ENV_BYTES:
            raise _error(errno.E2BIG)
        out.append(item)
