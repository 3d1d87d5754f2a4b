# SPDX-License-Identifier: Apache-2.0
"""The arguments of mount(2) and umount2(2): read once, checked in a fixed order. Pure.

Above: ``mounts``. Below: ``keys``. What a program may observe here is an errno, so the order of the
checks is part of the interface (docs/runtime-mounts.md):

mount: source, target, flags, type, options, then the target ``/``, then flags that are no new
mount. umount2: target, flags, then the target ``/``. Everything that needs a file system (does the
target exist, is it a directory) comes after all of these.

Option strings are lists of ``name=value`` joined by commas. As with overlayfs, ``\\,`` and ``\\\\``
stand for a comma and a backslash within a value.

Security:
    1. Each argument is copied out of the caller's memory once; checks and mount use the copy.
    2. Lengths are bounded, whatever the caller points at.
    3. No message holds a key.
"""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple, Protocol

from serdab.keys import KEY_BYTES, parse_hyphened
from serdab.structs import frozen

PATH_MAX: Final = 4096
#: Two paths and a key, each character quoted, fit.
OPTIONS_MAX: Final = 4 * PATH_MAX

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_NOSYMFOLLOW: Final = 256
MS_NOATIME: Final = 1024
MS_NODIRATIME: Final = 2048
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20

_MAGIC: Final = 0xC0ED0000  # MS_MGC_VAL: what mount(8) once had to add
_MAGIC_MASK: Final = 0xFFFF0000
_UNDEFINED: Final = 1 << 9
_NO_NEW_MOUNT: Final = (
    MS_REMOUNT | MS_BIND | MS_SHARED | MS_PRIVATE | MS_SLAVE | MS_UNBINDABLE | MS_MOVE
)
_DETACH_KNOWN: Final = 1 | 2 | 4 | 8  # MNT_FORCE, MNT_DETACH, MNT_EXPIRE, UMOUNT_NOFOLLOW
_MNT_EXPIRE: Final = 4
_UMOUNT_NOFOLLOW: Final = 8

#: Types, the options each takes, and those it must have.
_OPTIONS: Final = {
    "unionfs": (("lowerdir", "upperdir", "key"), ("lowerdir", "upperdir")),
    "sefs": (("dir", "key", "mac"), ("dir",)),
    "hostfs": (("dir",), ("dir",)),
}
#: Known words that cannot be mounted at run time; ext2 would need a disk size.
_UNSUPPORTED: Final = frozenset({"devfs", "procfs", "ext2"})
MOUNTABLE: Final = ("unionfs", "sefs", "hostfs", "ramfs")
_EXPECTED_TYPES: Final = ", ".join(MOUNTABLE)
MAC_BYTES: Final = 16
_MAX_WORD: Final = 64  # of what is told to the operator


class Readable(Protocol):
    """Memory of the caller."""

    def read(self, address: int, length: int) -> bytes: ...

    def text(self, address: int, limit: int = PATH_MAX) -> bytes: ...


class BadCall(Exception):
    """The call is refused with an errno; ``reason`` is what the operator reads."""

    __slots__ = ("code", "reason")

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class MountCall(NamedTuple):
    """A mount(2) that passed every check without a file system."""

    target: bytes
    type: str
    flags: int
    options: dict[str, str]
    key: bytes | None = None
    key_name: str = ""
    mac: bytes = b""

    def __repr__(self) -> str:
        return f"MountCall({self.type!r} at {self.target!r})"

    @property
    def nofollow(self) -> bool:
        """Whether a symbolic link as the last component is not followed."""
        return bool(self.flags & MS_NOSYMFOLLOW)


@frozen
class UmountCall:
    """A umount2(2) that passed every check without a file system."""

    target: bytes
    nofollow: bool


def read_mount(memory: Readable, arguments: tuple[int, ...]) -> MountCall:
    """Return the call's arguments.

    Raises:
        BadCall: refused.
        OSError: EFAULT, memory that is not the caller's; ENAMETOOLONG.
    """
    source, target_at, type_at, raw_flags, options_at = arguments[:5]
    if not source:
        raise BadCall(errno.EINVAL, "the source is NULL")
    memory.read(source, 1)  # its text is of no use to anybody
    target = _read_target(memory, target_at)
    flags = _parse_flags(raw_flags)
    fstype = _read_type(memory, type_at)
    options: dict[str, str] = {}
    if fstype in _OPTIONS:
        if not options_at:
            raise BadCall(errno.EINVAL, f"{fstype} without options")
        options = parse_options(fstype, _read_options(memory, options_at))
    key, key_name = _parse_key(options.pop("key", None))
    mac = _parse_items("mac", options.pop("mac")) if "mac" in options else b""
    if fstype in _UNSUPPORTED:
        raise BadCall(errno.EINVAL, f"{fstype} cannot be mounted at run time")
    _refuse_root(target)
    if flags & _NO_NEW_MOUNT:
        raise BadCall(
            errno.EINVAL, f"flags {flags:#x}: remount, bind, move and propagation are not supported"
        )
    return MountCall(target, fstype, flags, options, key, key_name, mac)


def read_umount(memory: Readable, arguments: tuple[int, ...]) -> UmountCall:
    """Return the call's arguments; raises as :func:`read_mount` does."""
    target = _read_target(memory, arguments[0])
    flags = arguments[1] & 0xFFFFFFFF
    if flags & ~_DETACH_KNOWN:
        raise BadCall(errno.EINVAL, f"unknown flags {flags:#x}")
    if flags & _MNT_EXPIRE and flags & 3:
        raise BadCall(errno.EINVAL, "MNT_EXPIRE goes neither with MNT_FORCE nor with MNT_DETACH")
    _refuse_root(target)
    return UmountCall(target, bool(flags & _UMOUNT_NOFOLLOW))


def _read_target(memory: Readable, address: int) -> bytes:
    if not address:
        raise BadCall(errno.EINVAL, "the target is NULL")
    target = memory.text(address, PATH_MAX)
    if not target:
        raise BadCall(errno.ENOENT, "the target is an empty path")
    return target


def _refuse_root(target: bytes) -> None:
    if target == b"/":
        raise BadCall(errno.EPERM, "the root is neither mounted over nor unmounted")


def _parse_flags(raw: int) -> int:
    flags = raw & 0xFFFFFFFF
    if flags & _MAGIC_MASK == _MAGIC:
        flags &= ~_MAGIC_MASK
    if flags & _UNDEFINED:
        raise BadCall(errno.EINVAL, f"flags {flags:#x}: bit 9 means nothing")
    return flags


def _read_type(memory: Readable, address: int) -> str:
    if not address:
        raise BadCall(errno.EINVAL, "the type is NULL")
    try:
        raw = memory.text(address, 64)
    except OSError as exc:
        if exc.errno != errno.ENAMETOOLONG:
            raise
        raw = b"(a long text)"
    fstype = raw.decode("utf-8", "replace")
    if fstype not in MOUNTABLE and fstype not in _UNSUPPORTED:
        raise BadCall(errno.EINVAL, f"unknown type {fstype!r}, expected {_EXPECTED_TYPES}")
    return fstype


def _read_options(memory: Readable, address: int) -> bytes:
    try:
        return memory.text(address, OPTIONS_MAX)
    except OSError as exc:
        if exc.errno != errno.ENAMETOOLONG:
            raise
        raise BadCall(errno.EINVAL, f"options of more than {OPTIONS_MAX} bytes") from None


def split_options(raw: bytes) -> list[str]:
    """Return the items of an option string, with quoting undone.

    Raises:
        BadCall: EINVAL, a backslash before anything but a comma or a backslash.
    """
    items = [bytearray()]
    at = 0
    while at < len(raw):
        byte = raw[at]
        if byte == 0x5C:
            at += 1
            if raw[at : at + 1] not in (b",", b"\\"):
                raise BadCall(errno.EINVAL, "options: a backslash quotes a comma or a backslash")
            items[-1].append(raw[at])
        elif byte == 0x2C:
            items.append(bytearray())
        else:
            items[-1].append(byte)
        at += 1
    # mount(8) joins what it was given by commas; an empty item is none.
    return [os.fsdecode(bytes(item)) for item in items if item]


def parse_options(fstype: str, raw: bytes) -> dict[str, str]:
    """Return the options of a type by name.

    Raises:
        BadCall: EINVAL, an unknown item, one given twice, or a missing one.
    """
    known, needed = _OPTIONS[fstype]
    options: dict[str, str] = {}
    for item in split_options(raw):
        name, equals, value = item.partition("=")
        if not equals or name not in known:
            # The value is not repeated: it may be a key with a misspelt name.
            is_word = bool(equals) and len(name) <= _MAX_WORD and name.isidentifier()
            shown = name if is_word else "an item that is no option"
            raise BadCall(errno.EINVAL, f"{fstype} options: {shown}, expected {', '.join(known)}")
        if name in options:
            raise BadCall(errno.EINVAL, f"{fstype} options: {name} is given twice")
        if not value:
            raise BadCall(errno.EINVAL, f"{fstype} options: {name} is empty")
        options[name] = value
    for name in needed:
        if name not in options:
            raise BadCall(errno.EINVAL, f"{fstype} options: {name} is missing")
    return options


def _parse_key(text: str | None) -> tuple[bytes | None, str]:
    """Return (key, name): one of them, or neither."""
    if text is None:
        return None, ""
    if text.startswith("@"):
        return None, text[1:]
    return _parse_items("key", text), ""


def _parse_items(name: str, text: str) -> bytes:
    try:
        return parse_hyphened(text, KEY_BYTES if name == "key" else MAC_BYTES)
    except ValueError as exc:
        raise BadCall(errno.EINVAL, f"{name}: {exc}") from None
