# SPDX-License-Identifier: Apache-2.0
"""A file system seen by one user only: a sandbox with one id, or an ordinary user of the host.

Above: ``storage``, ``instance.rootview``. Where only the caller's own id is mapped, the kernel
could neither show nor remove a file of another owner (its inode would have no valid uid); on the
host it would not let them change one. So every file is shown as that user's, and what they make
belongs to the inner root; the true owner stays in the volume, where a sandbox with more ids finds
it.
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Iterator
from typing import Any

from serdab.errors import FsError
from serdab.vfs.api import DirEntry, FileSystem, Inode, SetAttr, StatFs


class OneOwner:
    """Wraps a file system; implements :class:`serdab.vfs.api.FileSystem`.

    ``shown`` is the (uid, gid) that everything is shown to belong to. ACLs are not shown: they name
    others, whom the kernel could not tell either, and bind the owner, whom everything belongs to,
    no more than a mode does. What has one keeps it, and hands it down.
    """

    has_acls = False

    def __init__(self, fs: FileSystem, *, shown: tuple[int, int] = (0, 0)) -> None:
        self._fs = fs
        self._uid, self._gid = shown
        timeout = getattr(fs, "cache_timeout_s", None)
        if timeout is not None:
            self.cache_timeout_s = timeout
        # What neither takes nor returns an owner needs no layer in between.
        self.forget = fs.forget
        self.readlink = fs.readlink
        self.unlink = fs.unlink
        self.rmdir = fs.rmdir
        self.rename = fs.rename
        self.read_into = fs.read_into
        self.may_have_holes = fs.may_have_holes
        self.write = fs.write
        self.fallocate = fs.fallocate
        self.lseek = fs.lseek
        self.copy_file_range = fs.copy_file_range
        self.fsync = fs.fsync
        self.syncfs = fs.syncfs
        self.getxattr = fs.getxattr
        self.setxattr = fs.setxattr
        self.listxattr = fs.listxattr
        self.removexattr = fs.removexattr
        self.tick = fs.tick
        self.close = fs.close

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - optional parts of a file system
        return getattr(self._fs, name)

    def _shown(self, inode: Inode) -> Inode:
        if inode.uid == self._uid and inode.gid == self._gid:
            return inode
        out = copy.copy(inode)  # the original is the file system's own
        out.uid, out.gid = self._uid, self._gid
        return out

    def lookup(self, parent: int, name: bytes) -> Inode:
        return self._shown(self._fs.lookup(parent, name))

    def lookup_ino(self, ino: int, parent: int) -> Inode:
        return self._shown(self._fs.lookup_ino(ino, parent))

    def getattr(self, ino: int) -> Inode:
        return self._shown(self._fs.getattr(ino))

    def setattr(self, ino: int, changes: SetAttr) -> Inode:
        if changes.uid not in (None, self._uid) or changes.gid not in (None, self._gid):
            raise FsError(errno.EINVAL)
        # chown to what is shown already must not lose the true owner.
        changes.uid = changes.gid = None
        return self._shown(self._fs.setattr(ino, changes))

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> Inode:
        return self._shown(self._fs.mknod(parent, name, mode, rdev, 0, 0))

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Inode:
        return self._shown(self._fs.mkdir(parent, name, mode, 0, 0))

    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Inode:
        return self._shown(self._fs.symlink(parent, name, target, 0, 0))

    def tmpfile(self, parent: int, mode: int, uid: int, gid: int) -> Inode:
        return self._shown(self._fs.tmpfile(parent, mode, 0, 0))

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        return self._shown(self._fs.link(ino, parent, name))

    def readdir(self, ino: int, cookie: int) -> Iterator[DirEntry]:
        return self._fs.readdir(ino, cookie)

    def statfs(self) -> StatFs:
        return self._fs.statfs()
