# SPDX-License-Identifier: Apache-2.0
"""POSIX ACLs (acl(5)) as they are stored: the binary form that the kernel takes and gives. Pure.

Above: ``acls``, ``sefs.keyspace``.

On-disk format, little-endian: ``version u32 = 2``, then entries ``tag u16 | perm u16 | id u32`` in
strictly ascending order of (tag, id)::

    01 USER_OBJ    once
    02 USER        any number, by id
    04 GROUP_OBJ   once
    08 GROUP       any number, by id
    10 MASK        once if there is any USER or GROUP, at most once otherwise
    20 OTHER       once

``perm`` is rwx in three bits. ``id`` is that of the user or group, as owners stand in inode
records; of the other tags it is 0xffffffff.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Final, NamedTuple

from serdab.errors import FormatError

USER_OBJ: Final = 0x01
USER: Final = 0x02
GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
ACL_NAMES: Final = frozenset((ACCESS, DEFAULT))
"""The attributes by which ACLs are set and read."""

NO_ID: Final = 0xFFFFFFFF
_VERSION: Final = 2
_HEAD: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_NAMED: Final = frozenset((USER, GROUP))
_ONCE: Final = (USER_OBJ, GROUP_OBJ, MASK, OTHER)
_NEEDED: Final = frozenset((USER_OBJ, GROUP_OBJ, OTHER))
_RWX: Final = 7


class AclEntry(NamedTuple):
    """Who (``tag`` and ``id``) may do what (``perm``)."""

    tag: int
    perm: int
    id: int = NO_ID


def dump_acl(entries: list[AclEntry]) -> bytes:
    """Return the stored form.

    Raises:
        FormatError: the entries are no ACL.
    """
    ordered = sorted(entries, key=_order)
    _check(ordered)
    return _HEAD.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in ordered)


def parse_acl(raw: bytes) -> list[AclEntry]:
    """Return the entries, checked."""
    entries = parse_unordered(raw)
    _check(entries)
    return entries


def parse_unordered(raw: bytes) -> list[AclEntry]:
    """Return the entries as they stand: only the layout is checked.

    Raises:
        FormatError: the layout is wrong.
    """
    if len(raw) < _HEAD.size or (len(raw) - _HEAD.size) % _ENTRY.size:
        raise FormatError("ACL of an impossible length", found=str(len(raw)))
    (version,) = _HEAD.unpack_from(raw)
    if version != _VERSION:
        raise FormatError("unknown ACL version", expected=str(_VERSION), found=str(version))
    return [AclEntry(*entry) for entry in _ENTRY.iter_unpack(raw[_HEAD.size :])]


def check_acl(raw: bytes) -> None:
    """Check a stored ACL.

    Raises:
        FormatError: it is not one.
    """
    parse_acl(raw)


def _order(entry: AclEntry) -> tuple[int, int]:
    return entry.tag, entry.id


def _check(entries: list[AclEntry]) -> None:
    places = [_order(entry) for entry in entries]
    tags = [entry.tag for entry in entries]
    if any(before >= after for before, after in pairwise(places)):
        raise FormatError("ACL out of order")
    if any(entry.perm > _RWX or not _has_its_id(entry) for entry in entries):
        raise FormatError("ACL entry with an impossible field")
    needed = _NEEDED | {MASK} if _NAMED.intersection(tags) else _NEEDED
    if any(tags.count(tag) > 1 for tag in _ONCE) or not needed <= set(tags):
        raise FormatError("ACL without what every one has, or with it twice")


def _has_its_id(entry: AclEntry) -> bool:
    if entry.tag in _NAMED:
        return entry.id != NO_ID
    return entry.tag in _ONCE and entry.id == NO_ID
