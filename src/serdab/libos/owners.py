# SPDX-License-Identifier: Apache-2.0
"""A file system seen through a sandbox that has one user only.

Above: ``storage``. Where only the caller's own id is mapped, the kernel could neither show nor
remove a file of another owner (its inode would have no valid uid). So every file is shown as the
inner root's; the true owner stays in the volume, where a sandbox with more ids finds it.
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Iterator
from typing import Any

from serdab.errors import FsError
from serdab.vfs.api import DirEntry, FileSystem, Inode, SetAttr, StatFs


def _shown(inode: Inode) -> Inode:
    if inode.uid == 0 and inode.gid == 0:
        return inode
    out = copy.copy(inode)  # the original is the file system's own
    out.uid = out.gid = 0
    return out


class OneOwner:
    """Wraps a file system; implements :class:`serdab.vfs.api.FileSystem`."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
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

    def lookup(self, parent: int, name: bytes) -> Inode:
        return _shown(self._fs.lookup(parent, name))

    def lookup_ino(self, ino: int) -> Inode:
        return _shown(self._fs.lookup_ino(ino))

    def getattr(self, ino: int) -> Inode:
        return _shown(self._fs.getattr(ino))

    def setattr(self, ino: int, changes: SetAttr) -> Inode:
        for owner in (changes.uid, changes.gid):
            if owner not in (None, 0):
                raise FsError(errno.EINVAL)
        # chown to what is shown already must not lose the true owner.
        changes.uid = changes.gid = None
        return _shown(self._fs.setattr(ino, changes))

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> Inode:
        return _shown(self._fs.mknod(parent, name, mode, rdev, uid, gid))

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Inode:
        return _shown(self._fs.mkdir(parent, name, mode, uid, gid))

    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Inode:
        return _shown(self._fs.symlink(parent, name, target, uid, gid))

    def tmpfile(self, parent: int, mode: int, uid: int, gid: int) -> Inode:
        return _shown(self._fs.tmpfile(parent, mode, uid, gid))

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        return _shown(self._fs.link(ino, parent, name))

    def readdir(self, ino: int, cookie: int) -> Iterator[DirEntry]:
        return self._fs.readdir(ino, cookie)

    def statfs(self) -> StatFs:
        return self._fs.statfs()
