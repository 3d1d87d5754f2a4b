# SPDX-License-Identifier: Apache-2.0
"""The union of a read-only lower layer and a writable upper one, as one POSIX file system.

Above: ``fuse``. Below: ``filecontent`` (what is in a file), ``liveinodes`` (which inodes are in
memory, and for how long), ``merged`` (the two layers seen as one), ``layer``.

The upper layer is a delta on inodes: a name or an inode record in it wins over the lower layer's,
a whiteout hides a lower name. Copying up is putting the lower inode's record into the upper layer
under the same number, with its content still referred to; numbers, hard links and renames of
directories need nothing more. Without a lower layer this is a plain file system.

Threads: one. No call leaves a half-done change when it raises: all checks come first.
"""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, final

from serdab.errors import FsError
from serdab.vfs.acl import ACL_NAMES
from serdab.vfs.acls import Acls
from serdab.vfs.api import ROOT_INO, DirEntry, Inode, SetAttr, StatFs
from serdab.vfs.attributes import drop_suidgid, one_name_less, stored_time
from serdab.vfs.filecontent import MAX_SIZE, NAME_GROWTH, FileContent
from serdab.vfs.layer import Layer, WritableLayer
from serdab.vfs.merged import FLAG_SPARSE
from serdab.vfs.steps import Steps, Unfinished, after, finish

NAME_MAX: Final = 255
XATTR_NAME_MAX: Final = 255
XATTR_SIZE_MAX: Final = 65536
LINK_MAX: Final = 65000

_NOREPLACE: Final = 1
_EXCHANGE: Final = 2
_POSITIONS: Final = 1 << 63
"""Above the position of every name."""
_DONE: Final = object()
_SLASH: Final = ord("/")
_DIRECTORY: Final = stat.S_IFDIR >> 12


def _growth(acls: dict[bytes, bytes]) -> int:
    """Return how many bytes ACLs add, names and all."""
    return sum(NAME_GROWTH + len(value) for value in acls.values())


@final
class Union(FileContent):
    """Implements :class:`serdab.vfs.api.FileSystem`."""

    def __init__(self, upper: WritableLayer, lower: Layer | None) -> None:
        super().__init__(upper, lower)
        self._closed = False
        self._looked_up = self._next = 0
        self.chores = upper.chores
        self._acls = Acls(upper, self._merged)
        self.has_acls = upper.has_acls or (lower is not None and lower.has_acls)
        """Whether the kernel is to go by ACLs. Those of a lower layer bind over an old volume."""
        #: Directories in which no name was found yet: up to where, and when they changed last.
        self._searched: dict[int, tuple[int, int]] = {}
        if self._find(ROOT_INO) is None:
            self._make_root()

    def _make_root(self) -> None:
        self._upper.admit(NAME_GROWTH)
        ino = self._upper.new_ino()
        if ino != ROOT_INO:
            raise FsError(errno.EIO, "the first inode of a volume is its root")
        root = Inode(ino, stat.S_IFDIR | 0o755)
        root.nlink = 2
        root.parent_ino = ROOT_INO
        self._stamp_all(root)
        self._inodes[ino] = root
        self._upper.put_inode(root)

    # Names --------------------------------------------------------------------------------

    def _check_new(self, parent: int, name: bytes) -> Inode:
        """Return the parent of a name to be made."""
        directory = self._dir(parent)
        if len(name) > NAME_MAX:
            raise FsError(errno.ENAMETOOLONG)
        if not name or name in (b".", b"..") or _SLASH in name or 0 in name:
            raise FsError(errno.EINVAL)
        if directory.nlink == 0:
            raise FsError(errno.ENOENT)
        if self._merged.entry(parent, name) is not None:
            raise FsError(errno.EEXIST)
        return directory

    # Lookup -------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Inode:
        if len(name) > NAME_MAX:
            raise FsError(errno.ENAMETOOLONG)
        if name == b".":
            return self._count(self._inode(parent))
        directory = self._dir(parent)
        if name == b"..":
            return self._count(self._inode(self._parent(directory)))
        entry = self._merged.entry(parent, name)
        if entry is None:
            raise FsError(errno.ENOENT)
        ino, dtype = entry
        if dtype == _DIRECTORY:
            self._parents[ino] = parent
        inode = self._inodes.get(ino) or self._inode(ino)
        if ino == self._looked_up + 1:
            self._next = ino + 1
        self._looked_up = ino
        return self._count(inode)

    def ahead(self) -> None:
        """Nobody waits at this moment: get at hand what is asked for next.

        Files that were made one after the other have successive numbers, and mostly are looked at
        in that order.
        """
        ino = self._next
        if ino:
            self._next = 0
            if ino not in self._inodes:
                with suppress(Exception):  # whoever asks for it meets the same, and is told
                    self._find(ino)

    def getattr(self, ino: int) -> Inode:
        inode = self._inode(ino)
        return self._measured(inode) if inode.flags & FLAG_SPARSE else inode

    def readlink(self, ino: int) -> bytes:
        inode = self._inode(ino)
        if not stat.S_ISLNK(inode.mode):
            raise FsError(errno.EINVAL)
        return self._merged.target(ino)

    # Attributes ---------------------------------------------------------------------------

    def setattr(self, ino: int, changes: SetAttr) -> Inode:
        if changes.size is not None:
            return finish(self.setattr_steps(ino, changes))
        inode = self._inode(ino)
        if inode.flags & FLAG_SPARSE:
            self._measured(inode)
        self._admit_set(inode, changes)
        return self._set(inode, changes, time.time_ns())

    def setattr_steps(self, ino: int, changes: SetAttr) -> Steps[Inode]:
        """Like ``setattr``. A file that becomes shorter does so from its end on."""
        inode = self._inode(ino)
        size = changes.size
        if size is not None:
            if stat.S_ISDIR(inode.mode):
                raise FsError(errno.EISDIR)
            if not stat.S_ISREG(inode.mode):
                raise FsError(errno.EINVAL)
            if not 0 <= size <= MAX_SIZE:
                raise FsError(errno.EFBIG)
        self._admit_set(inode, changes)
        with self._kept(inode):
            now = time.time_ns()
            if size is not None:
                if size < inode.size:
                    yield from self._upper.truncate(inode, size)
                self._resize(inode, size)
                inode.mtime_ns = now
            if self.stepwise and inode.flags & FLAG_SPARSE:
                yield from self._upper.measure(inode)
            return self._set(inode, changes, now)

    def _admit_set(self, inode: Inode, changes: SetAttr) -> None:
        mode = changes.mode
        self._upper.admit(0 if mode is None else _growth(self._acls.after_chmod(inode.ino, mode)))

    def _set(self, inode: Inode, changes: SetAttr, now: int) -> Inode:
        """Set what setattr(2) changes besides the size."""
        if changes.mode is not None:
            self._acls.store(inode.ino, self._acls.after_chmod(inode.ino, changes.mode))
            inode.mode = stat.S_IFMT(inode.mode) | (changes.mode & 0o7777)
        if changes.uid is not None:
            inode.uid = changes.uid
        if changes.gid is not None:
            inode.gid = changes.gid
        if changes.kill_suidgid:
            drop_suidgid(inode)
        if changes.atime_ns is not None:
            inode.atime_ns = stored_time(changes.atime_ns, now)
        if changes.mtime_ns is not None:
            inode.mtime_ns = stored_time(changes.mtime_ns, now)
        inode.ctime_ns = now if changes.ctime_ns is None else stored_time(changes.ctime_ns, now)
        self._upper.put_inode(inode)
        return self._measured(inode) if inode.flags & FLAG_SPARSE else inode

    # Creation -----------------------------------------------------------------------------

    def _new(self, parent: Inode, mode: int, uid: int, gid: int, rdev: int = 0) -> Inode:
        if parent.mode & stat.S_ISGID:
            gid = parent.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        mode, acls = self._acls.inherited(parent.ino, mode)
        if acls:
            self._upper.admit(NAME_GROWTH + _growth(acls))
        inode = Inode(self._upper.new_ino(), mode, uid, gid, rdev)
        self._acls.store(inode.ino, acls)
        self._stamp_all(inode)
        self._inodes[inode.ino] = inode
        self._upper.put_inode(inode)
        return inode

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> Inode:
        directory = self._check_new(parent, name)
        if stat.S_IFMT(mode) == 0:
            mode |= stat.S_IFREG
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            raise FsError(errno.EINVAL)
        self._upper.admit(NAME_GROWTH)
        inode = self._new(directory, mode, uid, gid, rdev)
        self._merged.show(parent, name, inode)
        self._changed(directory, content=True)
        return self._count(inode)

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Inode:
        directory = self._check_new(parent, name)
        if directory.nlink >= LINK_MAX:
            raise FsError(errno.EMLINK)
        self._upper.admit(NAME_GROWTH)
        inode = self._new(directory, stat.S_IFDIR | (mode & 0o7777), uid, gid)
        inode.nlink = 2
        self._moved(inode, parent)
        self._merged.show(parent, name, inode)
        directory.nlink += 1
        self._changed(directory, content=True)
        return self._count(inode)

    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Inode:
        directory = self._check_new(parent, name)
        if not target:
            raise FsError(errno.ENOENT)
        if len(target) > 4095:
            raise FsError(errno.ENAMETOOLONG)
        self._upper.admit(NAME_GROWTH)
        inode = self._new(directory, stat.S_IFLNK | 0o777, uid, gid)
        inode.size = len(target)
        self._upper.put_target(inode.ino, target)
        self._merged.show(parent, name, inode)
        self._changed(directory, content=True)
        return self._count(inode)

    def tmpfile(self, parent: int, mode: int, uid: int, gid: int) -> Inode:
        directory = self._dir(parent)
        self._upper.admit(NAME_GROWTH)
        inode = self._new(directory, stat.S_IFREG | (mode & 0o7777), uid, gid)
        inode.nlink = 0
        self._orphan(inode)
        return self._count(inode)

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        inode = self._inode(ino)
        directory = self._check_new(parent, name)
        if stat.S_ISDIR(inode.mode):
            raise FsError(errno.EPERM)
        if inode.nlink >= LINK_MAX:
            raise FsError(errno.EMLINK)
        self._upper.admit(NAME_GROWTH)
        if inode.nlink == 0:
            # Only an O_TMPFILE inode comes back this way (open(2)).
            self._orphans.pop(ino, None)
            self._upper.clear_orphan(ino)
        inode.nlink += 1
        self._merged.show(parent, name, inode)
        self._changed(inode)
        self._changed(directory, content=True)
        return self._count(inode)

    # Removal ------------------------------------------------------------------------------

    def _existing(self, parent: int, name: bytes) -> tuple[Inode, Inode]:
        directory = self._dir(parent)
        entry = self._merged.entry(parent, name)
        if entry is None:
            raise FsError(errno.ENOENT)
        return directory, self._inode(entry.ino)

    def unlink(self, parent: int, name: bytes) -> None:
        directory, inode = self._existing(parent, name)
        if stat.S_ISDIR(inode.mode):
            raise FsError(errno.EISDIR)
        self._upper.admit()
        self._merged.hide(parent, name)
        self._release(inode)
        self._changed(directory, content=True)

    def rmdir(self, parent: int, name: bytes) -> None:
        directory, inode = self._existing(parent, name)
        if not stat.S_ISDIR(inode.mode):
            raise FsError(errno.ENOTDIR)
        self._check_empty(inode)
        self._upper.admit()
        self._merged.hide(parent, name)
        self._release(inode)
        one_name_less(directory)
        self._changed(directory, content=True)

    def _check_empty(self, directory: Inode) -> None:
        """Refuse a directory that has entries.

        Raises:
            FsError: ENOTEMPTY.
            Unfinished: it has many whiteouts.
        """
        steps = self._look_for_name(directory)
        if self.stepwise and next(steps, _DONE) is not _DONE:
            raise Unfinished(steps)
        finish(after(steps))
        if self._searched.pop(directory.ino, None) is None:
            raise FsError(errno.ENOTEMPTY)

    def _look_for_name(self, directory: Inode) -> Iterator[None]:
        """Note that a directory has no entries, if so; what was searched before is not again."""
        ino = directory.ino
        with self._kept(directory):
            position, changed = self._searched.pop(ino, (0, directory.ctime_ns))
            while position < _POSITIONS:
                if changed != directory.ctime_ns:
                    position, changed = 0, directory.ctime_ns
                found = next(self._merged.entries_or_gaps(ino, position), _POSITIONS)
                if not isinstance(found, int):
                    return
                position = found
                if position < _POSITIONS:
                    self._searched[ino] = position, changed
                    yield None
            self._searched[ino] = position, changed

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        if flags & ~(_NOREPLACE | _EXCHANGE) or flags == _NOREPLACE | _EXCHANGE:
            raise FsError(errno.EINVAL)
        source_dir, inode = self._existing(parent, name)
        target_dir = self._dir(new_parent)
        if len(new_name) > NAME_MAX:
            raise FsError(errno.ENAMETOOLONG)
        if target_dir.nlink == 0:
            raise FsError(errno.ENOENT)
        is_dir = stat.S_ISDIR(inode.mode)
        entry = self._merged.entry(new_parent, new_name)
        target = self._inode(entry.ino) if entry is not None else None
        if flags & _EXCHANGE:
            if target is None:
                raise FsError(errno.ENOENT)
            self._exchange(source_dir, name, inode, target_dir, new_name, target)
            return
        if target is not None:
            if flags & _NOREPLACE:
                raise FsError(errno.EEXIST)
            if target.ino == inode.ino:
                return
            if stat.S_ISDIR(target.mode):
                if not is_dir:
                    raise FsError(errno.EISDIR)
                self._check_empty(target)
            elif is_dir:
                raise FsError(errno.ENOTDIR)
        if is_dir:
            self._check_no_loop(inode.ino, new_parent)
            if parent != new_parent and target is None and target_dir.nlink >= LINK_MAX:
                raise FsError(errno.EMLINK)
        self._upper.admit()
        if target is not None and stat.S_ISDIR(target.mode):
            one_name_less(target_dir)
        self._merged.hide(parent, name)
        self._merged.show(new_parent, new_name, inode)
        if target is not None:
            self._release(target)
        if is_dir:
            one_name_less(source_dir)
            target_dir.nlink += 1
            self._moved(inode, new_parent)
        self._changed(inode)
        self._changed(source_dir, content=True)
        if target_dir is not source_dir:
            self._changed(target_dir, content=True)

    def _moved(self, directory: Inode, parent: int) -> None:
        """A directory is in another one now; the caller saves its record."""
        self._parents[directory.ino] = directory.parent_ino = parent

    def _exchange(
        self,
        source_dir: Inode,
        name: bytes,
        inode: Inode,
        target_dir: Inode,
        new_name: bytes,
        target: Inode,
    ) -> None:
        for moved, into in ((inode, target_dir), (target, source_dir)):
            if stat.S_ISDIR(moved.mode):
                self._check_no_loop(moved.ino, into.ino)
        self._upper.admit()
        self._merged.show(target_dir.ino, new_name, inode)
        self._merged.show(source_dir.ino, name, target)
        for moved, old, new in ((inode, source_dir, target_dir), (target, target_dir, source_dir)):
            if stat.S_ISDIR(moved.mode):
                one_name_less(old)
                new.nlink += 1
                self._moved(moved, new.ino)
            self._changed(moved)
        self._changed(source_dir, content=True)
        if target_dir is not source_dir:
            self._changed(target_dir, content=True)

    def _check_no_loop(self, ino: int, new_parent: int) -> None:
        """Refuse to move a directory into itself. The kernel checks too; this is the backstop."""
        walked = 0
        while new_parent != ROOT_INO:
            if new_parent == ino:
                raise FsError(errno.EINVAL)
            new_parent = self._parent(self._inode(new_parent))
            walked += 1
            if walked > 1 << 16:
                raise FsError(errno.ELOOP)

    # Durability ----------------------------------------------------------------------------

    def fsync(self, ino: int, *, datasync: bool) -> None:
        self._upper.commit()

    def fsync_steps(self, ino: int, *, datasync: bool) -> Steps[None]:
        """Like ``fsync``."""
        return self._upper.commit_steps()

    def syncfs(self) -> None:
        self._upper.commit()

    def syncfs_steps(self) -> Steps[None]:
        """Like ``syncfs``."""
        return self._upper.commit_steps()

    # Listing ------------------------------------------------------------------------------

    def readdir(self, ino: int, cookie: int) -> Iterator[DirEntry]:
        for entry in self.readdir_steps(ino, cookie):
            if not isinstance(entry, int):
                yield entry

    def readdir_steps(self, ino: int, cookie: int) -> Iterator[DirEntry | int]:
        """Like ``readdir``; a number comes after a step that found nothing: the cookie to go on
        from, with another call if anything came in between."""
        directory = self._dir(ino)
        if cookie < 1:
            yield DirEntry(1, b".", ino, stat.S_IFDIR >> 12)
        if cookie < 2:
            above = directory.parent_ino or self._parents.get(ino, ROOT_INO)
            yield DirEntry(2, b"..", above, stat.S_IFDIR >> 12)
        if directory.nlink == 0:
            return  # what is left of it are whiteouts
        for found in self._merged.entries_or_gaps(ino, cookie + 1 if cookie >= 2 else 0):
            if isinstance(found, int):
                yield found - 1
            else:
                position, name, entry = found
                yield DirEntry(position, name, entry.ino, entry.dtype)

    # Extended attributes ------------------------------------------------------------------

    def getxattr(self, ino: int, name: bytes) -> bytes:
        self._inode(ino)
        marked = self._merged.xattr(ino, name)
        if not marked:
            raise FsError(errno.ENODATA)
        return marked[1:]

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int) -> None:
        if name in ACL_NAMES:
            self.set_acl(ino, name, value, kill_sgid=False)
            return
        inode = self._inode(ino)
        if not 1 <= len(name) <= XATTR_NAME_MAX:
            raise FsError(errno.ERANGE)
        if len(value) > XATTR_SIZE_MAX:
            raise FsError(errno.E2BIG)
        present = bool(self._merged.xattr(ino, name))
        if flags & 1 and present:
            raise FsError(errno.EEXIST)
        if flags & 2 and not present:
            raise FsError(errno.ENODATA)
        self._upper.admit(len(value) + NAME_GROWTH)
        self._upper.put_xattr(ino, name, b"\1" + value)
        self._changed(inode)

    def set_acl(self, ino: int, name: bytes, value: bytes, *, kill_sgid: bool) -> None:
        """Set an ACL in place of what there was.

        ``kill_sgid``: the caller may not leave a set-group-id bit behind.
        """
        inode = self._inode(ino)
        if len(value) > XATTR_SIZE_MAX:
            raise FsError(errno.E2BIG)
        mode, plan = self._acls.checked(inode, name, value)
        self._upper.admit(len(value) + NAME_GROWTH)
        if plan:
            self._acls.store(ino, plan)
        elif self._merged.xattr(ino, name):
            self._merged.drop_xattr(ino, name)
        inode.mode = mode & ~stat.S_ISGID if kill_sgid else mode
        self._changed(inode)

    def has_default_acl(self, ino: int) -> bool:
        """Return whether a directory hands down an ACL, in place of the umask."""
        return bool(self._acls.default_of(ino))

    def listxattr(self, ino: int) -> list[bytes]:
        return finish(self.listxattr_steps(ino))

    def listxattr_steps(self, ino: int) -> Steps[list[bytes]]:
        """Like ``listxattr``."""
        self._inode(ino)
        return self._merged.xattr_names(ino)

    def removexattr(self, ino: int, name: bytes) -> None:
        inode = self._inode(ino)
        if not self._merged.xattr(ino, name):
            if name in ACL_NAMES:
                return  # the kernel sets "none" by removing
            raise FsError(errno.ENODATA)
        self._upper.admit()
        self._merged.drop_xattr(ino, name)
        self._acls.changed()
        self._changed(inode)

    # The whole ----------------------------------------------------------------------------

    def statfs(self) -> StatFs:
        return self._upper.statfs()

    def tick(self) -> float | None:
        return self._upper.tick()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            for inode in self._orphans.values():
                self._upper.drop_inode(inode)
            self._orphans.clear()
            self._upper.close()
        finally:
            if self._merged.lower is not None:
                self._merged.lower.close()
