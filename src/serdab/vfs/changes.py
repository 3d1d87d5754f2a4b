# SPDX-License-Identifier: Apache-2.0
"""What the upper layer of a union changed, as a tree of its own that can only be read.

Above: ``instance.rootview``. Below: ``union``, ``layer``. An upper layer is a delta on inodes, so
it has no paths of its own; here they are found by one walk through the names of both layers. Shown
are, under the paths that the union gives them:

* whatever was made, renamed or changed in any way; a file of which one byte was written is there
  with all its content, the rest of which lies in the lower layer;
* the directories on the way to it, a directory that was renamed with what changed in it;
* a name of the lower layer that is gone, as overlayfs shows whiteouts: a character device 0/0
  (Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import copy
import errno
import stat
from collections.abc import Iterator
from typing import Any, Final, final

from serdab.errors import FsError
from serdab.vfs.api import ROOT_INO, DirEntry, Inode, StatFs
from serdab.vfs.layer import Dirent, Layer, WritableLayer
from serdab.vfs.merged import Merged
from serdab.vfs.union import Union

_CHARACTER: Final = stat.S_IFCHR >> 12
_DIRECTORY: Final = stat.S_IFDIR >> 12
#: Whiteouts have no inode of their own: here each gets a number far above all others.
_WHITEOUTS: Final = 1 << 62


@final
class Changes:
    """Implements :class:`serdab.vfs.api.FileSystem`; every change is EROFS."""

    def __init__(self, upper: WritableLayer, lower: Layer) -> None:
        self._union = Union(upper, lower)
        self.has_acls = self._union.has_acls
        self._merged = Merged(upper, lower)
        self._shown: dict[int, dict[bytes, Dirent]] = {ROOT_INO: {}}
        self._parents: dict[int, int] = {}
        self._whiteouts: dict[int, Inode] = {}
        self._walk()

    def _walk(self) -> None:
        """Find what is shown: what changed, then the way to it."""
        names: dict[int, tuple[int, bytes]] = {ROOT_INO: (ROOT_INO, b"")}
        pending = [ROOT_INO]
        changed: list[int] = []
        while pending:
            ino = pending.pop()
            found = dict(self._changed_names(ino))
            for _, name, entry in self._merged.entries(ino, 0):
                # A directory with two names is damage: following it could go round for ever.
                if entry.dtype == _DIRECTORY and entry.ino not in names:
                    names[entry.ino] = (ino, name)
                    pending.append(entry.ino)
                if name not in found and self._merged.upper.inode(entry.ino) is not None:
                    found[name] = entry
            if found:
                self._shown[ino] = found
                changed.append(ino)
        for ino in changed:
            while ino != ROOT_INO:
                parent, name = names[ino]
                self._parents[ino] = parent
                above = self._shown.setdefault(parent, {})
                above.setdefault(name, Dirent(ino, _DIRECTORY))
                ino = parent

    def _changed_names(self, ino: int) -> Iterator[tuple[bytes, Dirent]]:
        for _, name, entry in self._merged.upper.dirents(ino, 0):
            if entry.ino:
                yield name, entry
                continue
            inode = Inode(_WHITEOUTS + len(self._whiteouts), stat.S_IFCHR)
            self._whiteouts[inode.ino] = inode
            yield name, Dirent(inode.ino, _CHARACTER)

    def lookup(self, parent: int, name: bytes) -> Inode:
        if name == b".":
            return self._found(parent)
        if name == b"..":
            return self._found(self._parents.get(parent, ROOT_INO))
        entry = self._shown.get(parent, {}).get(name)
        if entry is None:
            raise FsError(errno.ENOENT)
        return self._found(entry.ino)

    def lookup_ino(self, ino: int, parent: int) -> Inode:
        return self._found(ino)

    def _found(self, ino: int) -> Inode:
        parent = self._parents.get(ino, ROOT_INO)
        return self._whiteouts.get(ino) or self._counted(self._union.lookup_ino(ino, parent))

    def _counted(self, inode: Inode) -> Inode:
        """Return a directory with the links that it has here: find(1) goes by them."""
        if not stat.S_ISDIR(inode.mode):
            return inode
        out = copy.copy(inode)
        names = self._shown.get(inode.ino, {}).values()
        out.nlink = 2 + sum(entry.dtype == _DIRECTORY for entry in names)
        return out

    def forget(self, ino: int, nlookup: int) -> bool:
        return ino in self._whiteouts or self._union.forget(ino, nlookup)

    def getattr(self, ino: int) -> Inode:
        return self._whiteouts.get(ino) or self._counted(self._union.getattr(ino))

    def readlink(self, ino: int) -> bytes:
        return self._union.readlink(ino)

    def read_into(self, ino: int, offset: int, buf: memoryview) -> int:
        return self._union.read_into(ino, offset, buf)

    def may_have_holes(self, ino: int) -> bool:
        return self._union.may_have_holes(ino)

    def lseek(self, ino: int, offset: int, whence: int) -> int:
        return self._union.lseek(ino, offset, whence)

    def readdir(self, ino: int, cookie: int) -> Iterator[DirEntry]:
        if cookie < 1:
            yield DirEntry(1, b".", ino, _DIRECTORY)
        if cookie < 2:
            yield DirEntry(2, b"..", self._parents.get(ino, ROOT_INO), _DIRECTORY)
        entries = sorted(self._shown.get(ino, {}).items())
        for position, (name, entry) in enumerate(entries[max(cookie - 2, 0) :], max(cookie, 2)):
            yield DirEntry(position + 1, name, entry.ino, entry.dtype)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        if ino in self._whiteouts:
            raise FsError(errno.ENODATA)
        return self._union.getxattr(ino, name)

    def listxattr(self, ino: int) -> list[bytes]:
        return [] if ino in self._whiteouts else self._union.listxattr(ino)

    def statfs(self) -> StatFs:
        return self._union.statfs()

    def fsync(self, ino: int, *, datasync: bool) -> None:
        pass  # nothing changes

    def syncfs(self) -> None:
        pass

    def tick(self) -> float | None:
        return None

    def close(self) -> None:
        self._union.close()

    def _refuse(self, *_: Any, **__: Any) -> Any:  # noqa: ANN401 - stands for every change
        raise FsError(errno.EROFS)

    setattr = mknod = mkdir = symlink = tmpfile = link = unlink = rmdir = rename = _refuse
    write = fallocate = copy_file_range = setxattr = set_acl = removexattr = _refuse
