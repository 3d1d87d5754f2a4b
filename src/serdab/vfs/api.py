# SPDX-License-Identifier: Apache-2.0
"""What any file system here offers to the FUSE session: one Protocol and its value types.

Above: ``fuse`` (turns kernel requests into these calls). Below: ``union`` and ``hostfs`` implement
it. All calls take inode numbers, names as bytes, offsets and sizes in bytes, times in nanoseconds
since the epoch, and raise :class:`serdab.errors.FsError` (an ``OSError`` with an errno). Anything
else that escapes is a defect and becomes EIO at the edge.

Threads: a file system is called by one thread at a time; the session serialises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from serdab.structs import frozen, mutable

ROOT_INO: Final = 1
NOW_NS: Final = 1 << 100
"""Stands for the present in :class:`SetAttr`: later than any time that a kernel can pass."""


class Inode:
    """An inode in memory. ``mode`` includes the file type bits, as in ``struct stat``.

    ``rdev`` is a Linux ``dev_t`` in the kernel's "new" 32-bit encoding. ``size`` is in bytes.
    ``flags`` and ``lower_limit`` belong to the union (see ``vfs.union``). ``parent_ino`` is what
    the record of a directory says of it (0: nothing); of anything else it is 0.
    """

    __slots__ = (
        "ino",
        "mode",
        "nlink",
        "uid",
        "gid",
        "rdev",
        "size",
        "atime_ns",
        "mtime_ns",
        "ctime_ns",
        "btime_ns",
        "flags",
        "lower_limit",
        "parent_ino",
        "blocks",
    )

    def __init__(self, ino: int, mode: int, uid: int = 0, gid: int = 0, rdev: int = 0) -> None:
        self.ino = ino
        self.mode = mode
        self.nlink = 1
        self.uid = uid
        self.gid = gid
        self.rdev = rdev
        self.size = 0
        self.atime_ns = 0
        self.mtime_ns = 0
        self.ctime_ns = 0
        self.btime_ns = 0
        self.flags = 0
        self.lower_limit = 0
        self.parent_ino = 0
        self.blocks = -1  # 512-byte units; -1: not counted, derive it from size


@mutable
class SetAttr:
    """The attributes to change; ``None`` leaves one alone. ``NOW_NS`` as a time means now."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    kill_suidgid: bool = False


@frozen
class StatFs:
    """What statfs(2) reports; block counts in units of ``block_size`` bytes."""

    block_size: int
    blocks: int
    blocks_free: int
    files: int
    files_free: int
    name_max: int = 255


class DirEntry:
    """One entry of a directory listing.

    ``cookie`` is the position after this entry; ``dtype`` is a ``DT_*`` number.
    """

    __slots__ = ("cookie", "name", "ino", "dtype")

    def __init__(self, cookie: int, name: bytes, ino: int, dtype: int) -> None:
        self.cookie = cookie
        self.name = name
        self.ino = ino
        self.dtype = dtype


class HasAcls(Protocol):
    """What a file system has besides when its ``has_acls`` is true."""

    def set_acl(self, ino: int, name: bytes, value: bytes, *, kill_sgid: bool) -> None:
        """Set a POSIX ACL. ``kill_sgid``: the caller may not leave a set-group-id bit."""
        ...

    def has_default_acl(self, ino: int) -> bool:
        """Return whether a directory hands down an ACL, in place of the umask."""
        ...


class FileSystem(Protocol):
    """The operations, analogous to Linux's inode and file operations.

    Permission checks are the kernel's (mount option ``default_permissions``); ``uid`` and ``gid``
    are those of the caller, for the owner of new inodes. An ino that was unlinked stays usable
    until :meth:`forget` brought its lookup count to zero.
    """

    def lookup(self, parent: int, name: bytes) -> Inode:
        """Return the inode; ENOENT if absent. Adds one to its lookup count, as every call below
        that returns an Inode *for a name* does (lookup, mknod, mkdir, symlink, link, tmpfile).

        "." of an inode of any type is that inode, though it was forgotten; ".." what a directory
        is in (ESTALE: not known). Only of a file system without ``cache_timeout_s``.
        """
        ...

    def lookup_ino(self, ino: int, parent: int) -> Inode:
        """Return the inode of an entry of a directory for READDIRPLUS; adds one to its lookup
        count."""
        ...

    def forget(self, ino: int, nlookup: int) -> bool:
        """Take from the lookup count; return whether it is zero, so that the kernel holds nothing
        of the inode."""
        ...

    def getattr(self, ino: int) -> Inode: ...

    def setattr(self, ino: int, changes: SetAttr) -> Inode: ...

    def readlink(self, ino: int) -> bytes: ...

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> Inode:
        """Create a file of any type but directory and symlink (CREATE uses it too)."""
        ...

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Inode: ...

    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Inode: ...

    def tmpfile(self, parent: int, mode: int, uid: int, gid: int) -> Inode: ...

    def link(self, ino: int, parent: int, name: bytes) -> Inode: ...

    def unlink(self, parent: int, name: bytes) -> None: ...

    def rmdir(self, parent: int, name: bytes) -> None: ...

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        """``flags`` as in renameat2(2): NOREPLACE 1, EXCHANGE 2, WHITEOUT 4 (EINVAL)."""
        ...

    def read_into(self, ino: int, offset: int, buf: memoryview) -> int:
        """Fill ``buf`` from ``offset``; return the count of bytes, short only at end of file."""
        ...

    def may_have_holes(self, ino: int) -> bool:
        """Return whether ``lseek`` could find a hole before the end of a file; called often."""
        ...

    def write(self, ino: int, offset: int, data: memoryview, *, kill_suidgid: bool) -> int:
        """Store ``data`` (valid only during the call); return its length."""
        ...

    def fallocate(self, ino: int, mode: int, offset: int, length: int) -> None: ...

    def lseek(self, ino: int, offset: int, whence: int) -> int:
        """SEEK_DATA (3) and SEEK_HOLE (4) only."""
        ...

    def copy_file_range(
        self, ino: int, offset: int, ino_out: int, offset_out: int, length: int
    ) -> int: ...

    def fsync(self, ino: int, *, datasync: bool) -> None: ...

    def syncfs(self) -> None: ...

    def readdir(self, ino: int, cookie: int) -> Iterator[DirEntry]:
        """Yield entries after ``cookie`` (0: from the start), "." and ".." first.

        Cookies are below 2**63 and stable under deletion and insertion of other names.
        """
        ...

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """ENODATA if absent."""
        ...

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int) -> None:
        """``flags``: XATTR_CREATE 1 (EEXIST), XATTR_REPLACE 2 (ENODATA)."""
        ...

    def listxattr(self, ino: int) -> list[bytes]: ...

    def removexattr(self, ino: int, name: bytes) -> None: ...

    def statfs(self) -> StatFs: ...

    def tick(self) -> float | None:
        """Called when the session is idle: do timed work (checkpoints).

        Returns the seconds until it wants to be called again, or None for no need.
        """
        ...

    def close(self) -> None:
        """Make everything durable and release the storage. Idempotent."""
        ...
