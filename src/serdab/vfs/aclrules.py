# SPDX-License-Identifier: Apache-2.0
"""How a POSIX ACL and the mode of a file follow each other (acl(5)). Pure.

Above: ``acls``. Below: ``acl`` (the stored form). What Linux does for its own file systems in
fs/posix_acl.c: the group's bits of a mode are the mask where there is one, and what a directory
hands down takes the place of the umask.
"""

from __future__ import annotations

from typing import Final

from serdab.vfs.acl import GROUP_OBJ, MASK, OTHER, USER_OBJ, AclEntry

_RWX: Final = 7
_PERMISSIONS: Final = 0o777
_SHIFTS: Final = {USER_OBJ: 6, GROUP_OBJ: 3, MASK: 3, OTHER: 0}


def permissions_of(entries: list[AclEntry]) -> int:
    """Return the nine permission bits that say of an ACL what a mode can."""
    bits = {entry.tag: entry.perm for entry in entries}
    return bits[USER_OBJ] << 6 | bits.get(MASK, bits[GROUP_OBJ]) << 3 | bits[OTHER]


def says_more(entries: list[AclEntry]) -> bool:
    """Return whether an ACL says more than a mode does."""
    return any(entry.tag not in (USER_OBJ, GROUP_OBJ, OTHER) for entry in entries)


def with_mode(entries: list[AclEntry], mode: int) -> list[AclEntry]:
    """Return the ACL after chmod(2): the mask takes the group's bits, if there is one."""
    return [_with(entry, _bits_for(entry, entries, mode, entry.perm)) for entry in entries]


def handed_down(entries: list[AclEntry], mode: int) -> tuple[list[AclEntry], int]:
    """Return the ACL and the mode of what is made with ``mode`` where this is the default ACL.

    Each is cut to what the other allows.
    """
    cut = [_with(entry, entry.perm & _bits_for(entry, entries, mode, _RWX)) for entry in entries]
    return cut, mode & ~_PERMISSIONS | permissions_of(cut)


def _bits_for(entry: AclEntry, entries: list[AclEntry], mode: int, otherwise: int) -> int:
    """Return the bits of a mode that concern an entry; ``otherwise`` if none do."""
    shift = _SHIFTS.get(entry.tag)
    if entry.tag == GROUP_OBJ and any(other.tag == MASK for other in entries):
        shift = None
    return otherwise if shift is None else mode >> shift & _RWX


def _with(entry: AclEntry, perm: int) -> AclEntry:
    return AclEntry(entry.tag, perm, entry.id)
