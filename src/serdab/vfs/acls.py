# SPDX-License-Identifier: Apache-2.0
"""The POSIX ACLs (acl(5)) of a union: what is stored when one is set or handed down, or on chmod.

Above: ``union``. Below: ``aclrules`` (how ACL and mode follow each other), ``merged``, ``layer``.

The kernel checks permissions (FUSE_POSIX_ACL of fuse.h), and asks for ACLs as attributes of these
names; what it leaves to the file system is done here. Of an ACL that says no more than a mode does
nothing is stored but the mode, as on ext4.

Everything is found out, and refused, before anything is changed: plans come first.
"""

from __future__ import annotations

import errno
import stat
from typing import Final, TypeAlias, final

from serdab.errors import FormatError, FsError
from serdab.vfs.acl import ACCESS, DEFAULT, dump_acl, parse_acl, parse_unordered
from serdab.vfs.aclrules import handed_down, permissions_of, says_more, with_mode
from serdab.vfs.api import Inode
from serdab.vfs.layer import WritableLayer
from serdab.vfs.merged import Merged

#: ACLs to store, by name.
Plan: TypeAlias = dict[bytes, bytes]
_NONE: Final[Plan] = {}


@final
class Acls:
    """The ACLs of one union. One thread."""

    def __init__(self, upper: WritableLayer, merged: Merged) -> None:
        self._upper = upper
        self._merged = merged
        #: The directory in which something was made last, and its default ACL: mostly there is
        #: none, and mostly the next file is made beside the last one.
        self._last: tuple[int, bytes] = (0, b"")

    def default_of(self, directory: int) -> bytes:
        """Return the default ACL of a directory as it is stored; empty: it has none."""
        ino, found = self._last
        if ino != directory:
            found = self._merged.xattr(directory, DEFAULT)[1:]
            self._last = directory, found
        return found

    def inherited(self, directory: int, mode: int) -> tuple[int, Plan]:
        """Return the mode, and the ACLs, of what is made in a directory.

        Raises:
            FsError: EOPNOTSUPP, see :meth:`_check_stored`.
        """
        default = b"" if stat.S_ISLNK(mode) else self.default_of(directory)
        if not default:
            return mode, _NONE
        entries, mode = handed_down(parse_acl(default), mode)
        plan = {ACCESS: dump_acl(entries)} if says_more(entries) else {}
        if stat.S_ISDIR(mode):
            plan[DEFAULT] = default
        return mode, self._check_stored(plan)

    def after_chmod(self, ino: int, mode: int) -> Plan:
        """Return what chmod(2) makes of the ACL of a file.

        Raises:
            FsError: EOPNOTSUPP, see :meth:`_check_stored`.
        """
        old = self._merged.xattr(ino, ACCESS)[1:]
        new = dump_acl(with_mode(parse_acl(old), mode)) if old else old
        return self._check_stored({ACCESS: new}) if new != old else _NONE

    def checked(self, inode: Inode, name: bytes, value: bytes) -> tuple[int, Plan]:
        """Return the mode of a file, and what is to be stored, once an ACL is set.

        Nothing to be stored: an older one of this name goes.

        Raises:
            FsError: EOPNOTSUPP for a symlink, or see :meth:`_check_stored`; EACCES for a default
                ACL of what is no directory; EINVAL if it is no ACL.
        """
        if stat.S_ISLNK(inode.mode):
            raise FsError(errno.EOPNOTSUPP)
        if name == DEFAULT and not stat.S_ISDIR(inode.mode):
            raise FsError(errno.EACCES)
        try:
            # The kernel takes users and groups in any order.
            entries = parse_unordered(value)
            stored = self._check_stored({name: dump_acl(entries)})
        except FormatError:
            raise FsError(errno.EINVAL) from None
        if name == DEFAULT:
            return inode.mode, stored
        mode = inode.mode & ~0o777 | permissions_of(entries)
        return mode, stored if says_more(entries) else _NONE

    def store(self, ino: int, plan: Plan) -> None:
        """Carry out what was planned."""
        for name, value in plan.items():
            self._upper.put_xattr(ino, name, b"\1" + value)
        if plan:
            self.changed()

    def changed(self) -> None:
        """An ACL was set or removed."""
        self._last = (0, b"")

    def _check_stored(self, plan: Plan) -> Plan:
        """Return a plan.

        Raises:
            FsError: EOPNOTSUPP: the volume is of format version 1, which has no ACLs.
        """
        if plan and not self._upper.has_acls:
            raise FsError(errno.EOPNOTSUPP)
        return plan
