# SPDX-License-Identifier: Apache-2.0
"""A file system in memory: dictionaries behind the interface of :mod:`serdab.vfs.api`.

It serves ramfs mounts, and the tests of the FUSE session as the simplest thing that is complete.
Semantics follow tmpfs, which the tests compare it with, but for times of access: reading through
the kernel's cache does not reach a FUSE server, so they never move by themselves.

Above: ``fuse.session``. Below: ``vfs.api``.

Content is kept in chunks of 128 KiB that exist once something was written into them, so a file
that was extended to a terabyte costs nothing, and holes are found at that grain.
"""

from __future__ import annotations

import errno
import stat
import time
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from serdab.errors import FsError
from serdab.vfs.api import NOW_NS, ROOT_INO, DirEntry, Inode, SetAttr, StatFs

CHUNK_BYTES: Final = 128 * 1024
#: More is not allocated at once: posix_fallocate(3) writes every block where that is refused.
ALLOCATED_MAX: Final = 64 << 20
#: What Linux allows on 64-bit machines (MAX_LFS_FILESIZE).
SIZE_MAX: Final = (1 << 63) - 1
XATTR_VALUE_MAX: Final = 65536
CAPABILITY: Final = b"security.capability"

_FALLOC_KEEP_SIZE = 1
_FALLOC_PUNCH_HOLE = 2
_FALLOC_ZERO_RANGE = 16
_SEEK_DATA = 3
_SEEK_HOLE = 4
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2


class _Node(Inode):
    """An inode with everything that hangs on it."""

    __slots__ = (
        "nlookup",
        "chunks",
        "entries",
        "parent",
        "target",
        "xattrs",
        "next_cookie",
        "listing",
        "listing_cookies",
    )

    def __init__(self, ino: int, mode: int, uid: int, gid: int, rdev: int = 0) -> None:
        super().__init__(ino, mode, uid, gid, rdev)
        now = time.time_ns()
        self.atime_ns = self.mtime_ns = self.ctime_ns = self.btime_ns = now
        self.blocks = 0
        self.nlookup = 0
        self.chunks: dict[int, bytearray] = {}
        #: name → (inode, cookie); only of a directory
        self.entries: dict[bytes, tuple[_Node, int]] = {}
        self.parent: _Node = self
        self.target = b""
        self.xattrs: dict[bytes, bytes] = {}
        self.next_cookie = 3  # 1 and 2 are "." and ".."
        #: entries in the order of their cookies, None after a change
        self.listing: list[DirEntry] | None = None
        self.listing_cookies: list[int] = []

    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


class MemFs:
    """See the module. ``size_limit_bytes`` bounds the content of all files (ENOSPC beyond)."""

    def __init__(
        self, *, size_limit_bytes: int = 1 << 40, mode: int = 0o755, uid: int = 0, gid: int = 0
    ) -> None:
        self._size_limit = size_limit_bytes
        self._used = 0
        self._next_ino = ROOT_INO + 1
        root = _Node(ROOT_INO, stat.S_IFDIR | mode, uid, gid)
        root.nlink = 2
        root.nlookup = 1
        self._nodes: dict[int, _Node] = {ROOT_INO: root}

    # Names.

    def lookup(self, parent: int, name: bytes) -> Inode:
        if name == b".":
            return self.lookup_ino(parent, parent)
        directory = self._dir(parent)
        if name == b"..":
            return self.lookup_ino(directory.parent.ino, parent)
        found = directory.entries.get(name)
        if found is None:
            raise FsError(errno.ENOENT)
        node = found[0]
        node.nlookup += 1
        return node

    def lookup_ino(self, ino: int, parent: int) -> Inode:
        node = self._node(ino)
        node.nlookup += 1
        return node

    def forget(self, ino: int, nlookup: int) -> bool:
        node = self._nodes.get(ino)
        if node is None or ino == ROOT_INO:
            return node is None
        node.nlookup = max(0, node.nlookup - nlookup)
        self._drop_if_dead(node)
        return node.nlookup == 0

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> Inode:
        if stat.S_IFMT(mode) == 0:
            mode |= stat.S_IFREG
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            raise FsError(errno.EINVAL)
        return self._add(parent, name, mode, uid, gid, rdev)

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Inode:
        return self._add(parent, name, stat.S_IFDIR | (mode & 0o7777), uid, gid)

    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Inode:
        node = self._add(parent, name, stat.S_IFLNK | 0o777, uid, gid)
        node.target = target
        node.size = len(target)
        return node

    def tmpfile(self, parent: int, mode: int, uid: int, gid: int) -> Inode:
        node = self._make(self._dir(parent), stat.S_IFREG | (mode & 0o7777), uid, gid)
        node.nlink = 0
        return node

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        node = self._node(ino)
        where = self._dir(parent)
        if node.is_dir():
            raise FsError(errno.EPERM)
        if name in where.entries:
            raise FsError(errno.EEXIST)
        self._attach(where, name, node)
        node.nlink += 1
        node.nlookup += 1
        node.ctime_ns = time.time_ns()
        return node

    def unlink(self, parent: int, name: bytes) -> None:
        where = self._dir(parent)
        node = self._child(where, name)
        if node.is_dir():
            raise FsError(errno.EISDIR)
        self._detach(where, name)
        node.nlink -= 1
        node.ctime_ns = time.time_ns()
        self._drop_if_dead(node)

    def rmdir(self, parent: int, name: bytes) -> None:
        where = self._dir(parent)
        node = self._child(where, name)
        if not node.is_dir():
            raise FsError(errno.ENOTDIR)
        if node.entries:
            raise FsError(errno.ENOTEMPTY)
        self._detach(where, name)
        where.nlink -= 1
        node.nlink = 0
        node.ctime_ns = time.time_ns()
        self._drop_if_dead(node)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        if flags not in (0, _RENAME_NOREPLACE, _RENAME_EXCHANGE):
            raise FsError(errno.EINVAL)
        source, target = self._dir(parent), self._dir(new_parent)
        node = self._child(source, name)
        found = target.entries.get(new_name)
        other = found[0] if found else None
        if flags == _RENAME_EXCHANGE:
            if other is None:
                raise FsError(errno.ENOENT)
            self._refuse_loop(node, target)
            self._refuse_loop(other, source)
        elif other is not None:
            if flags == _RENAME_NOREPLACE:
                raise FsError(errno.EEXIST)
            if other is node:
                return
            self._refuse_loop(node, target)
            self._refuse_replace(node, other)
        else:
            self._refuse_loop(node, target)
        self._detach(source, name)
        if other is not None:
            self._detach(target, new_name)
        self._attach(target, new_name, node)
        self._count_subdirectory(node, source, target)
        if other is not None and flags == _RENAME_EXCHANGE:
            self._attach(source, name, other)
            self._count_subdirectory(other, target, source)
        elif other is not None:
            if other.is_dir():
                target.nlink -= 1
                other.nlink = 0
            else:
                other.nlink -= 1
            other.ctime_ns = time.time_ns()
            self._drop_if_dead(other)
        node.ctime_ns = time.time_ns()

    def readlink(self, ino: int) -> bytes:
        node = self._node(ino)
        if not stat.S_ISLNK(node.mode):
            raise FsError(errno.EINVAL)
        return node.target

    def readdir(self, ino: int, cookie: int) -> Iterator[DirEntry]:
        node = self._dir(ino)
        if cookie < 1:
            yield DirEntry(1, b".", ino, 4)
        if cookie < 2:
            yield DirEntry(2, b"..", node.parent.ino, 4)
        if node.listing is None:
            listing = [
                DirEntry(at, name, child.ino, child.mode >> 12)
                for name, (child, at) in node.entries.items()
            ]
            listing.sort(key=_cookie_of)
            node.listing = listing
            node.listing_cookies = [entry.cookie for entry in listing]
        yield from node.listing[bisect_right(node.listing_cookies, cookie) :]

    # Attributes.

    def getattr(self, ino: int) -> Inode:
        return self._node(ino)

    def setattr(self, ino: int, changes: SetAttr) -> Inode:
        node = self._node(ino)
        now = time.time_ns()
        if changes.size is not None and changes.size != node.size:
            self._resize(node, changes.size)
        if changes.size is not None:
            node.mtime_ns = now
        if changes.kill_suidgid:
            _kill_privileges(node)
        if changes.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | (changes.mode & 0o7777)
        if changes.uid is not None:
            node.uid = changes.uid
        if changes.gid is not None:
            node.gid = changes.gid
        if changes.atime_ns is not None:
            node.atime_ns = now if changes.atime_ns == NOW_NS else changes.atime_ns
        if changes.mtime_ns is not None:
            node.mtime_ns = now if changes.mtime_ns == NOW_NS else changes.mtime_ns
        node.ctime_ns = now if changes.ctime_ns is None else changes.ctime_ns
        return node

    def getxattr(self, ino: int, name: bytes) -> bytes:
        value = self._node(ino).xattrs.get(name)
        if value is None:
            raise FsError(errno.ENODATA)
        return value

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int) -> None:
        node = self._node(ino)
        if name.startswith(b"user.") and stat.S_IFMT(node.mode) not in (
            stat.S_IFREG,
            stat.S_IFDIR,
        ):
            raise FsError(errno.EPERM)
        if len(value) > XATTR_VALUE_MAX:
            raise FsError(errno.E2BIG)
        if flags & 1 and name in node.xattrs:
            raise FsError(errno.EEXIST)
        if flags & 2 and name not in node.xattrs:
            raise FsError(errno.ENODATA)
        node.xattrs[name] = value
        node.ctime_ns = time.time_ns()

    def listxattr(self, ino: int) -> list[bytes]:
        return list(self._node(ino).xattrs)

    def removexattr(self, ino: int, name: bytes) -> None:
        node = self._node(ino)
        if node.xattrs.pop(name, None) is None:
            raise FsError(errno.ENODATA)
        node.ctime_ns = time.time_ns()

    # Content.

    def read_into(self, ino: int, offset: int, buf: memoryview) -> int:
        node = self._file(ino)
        total = min(len(buf), node.size - offset)
        if total <= 0:
            return 0
        done = 0
        while done < total:
            index, start = divmod(offset + done, CHUNK_BYTES)
            count = min(CHUNK_BYTES - start, total - done)
            chunk = node.chunks.get(index, b"")
            part = memoryview(chunk)[start : start + count]
            buf[done : done + len(part)] = part
            if len(part) < count:
                buf[done + len(part) : done + count] = bytes(count - len(part))
            done += count
        return total

    def may_have_holes(self, ino: int) -> bool:
        node = self._node(ino)
        return node.size > CHUNK_BYTES or not node.chunks

    def write(self, ino: int, offset: int, data: memoryview, *, kill_suidgid: bool) -> int:
        node = self._file(ino)
        total = len(data)
        if offset + total > SIZE_MAX:
            raise FsError(errno.EFBIG)
        if kill_suidgid:
            _kill_privileges(node)
        elif node.xattrs:
            node.xattrs.pop(CAPABILITY, None)
        done = 0
        try:
            while done < total:
                index, start = divmod(offset + done, CHUNK_BYTES)
                count = min(CHUNK_BYTES - start, total - done)
                chunk = self._grown(node, index, start + count)
                chunk[start : start + count] = data[done : done + count]
                done += count
        except FsError:
            if not done:
                raise
        node.size = max(node.size, offset + done)
        node.mtime_ns = node.ctime_ns = time.time_ns()
        return done

    def fallocate(self, ino: int, mode: int, offset: int, length: int) -> None:
        node = self._file(ino)
        end = offset + length
        if end > SIZE_MAX:
            raise FsError(errno.EFBIG)
        punches = mode == _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE
        if punches or mode & ~_FALLOC_KEEP_SIZE == _FALLOC_ZERO_RANGE:
            self._punch(node, offset, min(end, node.size))
        elif mode & ~_FALLOC_KEEP_SIZE:
            raise FsError(errno.EOPNOTSUPP)
        else:
            self._allocate(node, offset, end)
        node.xattrs.pop(CAPABILITY, None)
        if not mode & _FALLOC_KEEP_SIZE and end > node.size:
            node.size = end
        node.mtime_ns = node.ctime_ns = time.time_ns()

    def lseek(self, ino: int, offset: int, whence: int) -> int:
        node = self._file(ino)
        if whence not in (_SEEK_DATA, _SEEK_HOLE):
            raise FsError(errno.EINVAL)
        if offset < 0 or offset >= node.size:
            raise FsError(errno.ENXIO)
        index = offset // CHUNK_BYTES
        if whence == _SEEK_HOLE:
            while index in node.chunks:
                index += 1
            return min(max(offset, index * CHUNK_BYTES), node.size)
        if index in node.chunks:
            return offset
        later = [at for at in node.chunks if at > index]
        if not later:
            raise FsError(errno.ENXIO)
        return min(later) * CHUNK_BYTES

    def copy_file_range(
        self, ino: int, offset: int, ino_out: int, offset_out: int, length: int
    ) -> int:
        source = self._file(ino)
        length = min(length, max(0, source.size - offset), 16 << 20)
        buf = memoryview(bytearray(length))
        self.read_into(ino, offset, buf)
        return self.write(ino_out, offset_out, buf, kill_suidgid=False) if length else 0

    def fsync(self, ino: int, *, datasync: bool) -> None:
        self._node(ino)

    def syncfs(self) -> None:
        return

    def statfs(self) -> StatFs:
        blocks = self._size_limit // 4096
        free = max(0, self._size_limit - self._used) // 4096
        return StatFs(4096, blocks, free, 1 << 32, (1 << 32) - len(self._nodes))

    def tick(self) -> float | None:
        return None

    def close(self) -> None:
        return

    # Below here: parts of the operations above.

    def _node(self, ino: int) -> _Node:
        node = self._nodes.get(ino)
        if node is None:
            raise FsError(errno.ESTALE)
        return node

    def _file(self, ino: int) -> _Node:
        node = self._node(ino)
        if not stat.S_ISREG(node.mode):
            raise FsError(errno.EISDIR if node.is_dir() else errno.EINVAL)
        return node

    def _dir(self, ino: int) -> _Node:
        node = self._node(ino)
        if not node.is_dir():
            raise FsError(errno.ENOTDIR)
        return node

    @staticmethod
    def _child(where: _Node, name: bytes) -> _Node:
        found = where.entries.get(name)
        if found is None:
            raise FsError(errno.ENOENT)
        return found[0]

    def _make(self, where: _Node, mode: int, uid: int, gid: int, rdev: int = 0) -> _Node:
        if where.nlink == 0:
            raise FsError(errno.ENOENT)  # the directory was removed while someone is in it
        if where.mode & stat.S_ISGID:
            gid = where.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        node = _Node(self._next_ino, mode, uid, gid, rdev)
        self._next_ino += 1
        self._nodes[node.ino] = node
        node.nlookup = 1
        return node

    def _add(self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> _Node:
        where = self._dir(parent)
        if name in where.entries:
            raise FsError(errno.EEXIST)
        if len(name) > 255:
            raise FsError(errno.ENAMETOOLONG)
        node = self._make(where, mode, uid, gid, rdev)
        self._attach(where, name, node)
        if node.is_dir():
            node.nlink = 2
            where.nlink += 1
        return node

    @staticmethod
    def _attach(where: _Node, name: bytes, node: _Node) -> None:
        if where.nlink == 0:
            raise FsError(errno.ENOENT)
        where.entries[name] = (node, where.next_cookie)
        where.next_cookie += 1
        where.listing = None
        where.mtime_ns = where.ctime_ns = time.time_ns()
        if node.is_dir():
            node.parent = where

    @staticmethod
    def _detach(where: _Node, name: bytes) -> None:
        del where.entries[name]
        where.listing = None
        where.mtime_ns = where.ctime_ns = time.time_ns()

    @staticmethod
    def _count_subdirectory(node: _Node, source: _Node, target: _Node) -> None:
        if node.is_dir():
            source.nlink -= 1
            target.nlink += 1

    @staticmethod
    def _refuse_loop(node: _Node, target: _Node) -> None:
        # The kernel checks this too, under s_vfs_rename_mutex; a file system that relies on its
        # caller for the shape of its tree is one bug away from a cycle.
        if target.nlink == 0:
            raise FsError(errno.ENOENT)
        while node.is_dir():
            if target is node:
                raise FsError(errno.EINVAL)
            if target.parent is target:
                return
            target = target.parent

    @staticmethod
    def _refuse_replace(node: _Node, other: _Node) -> None:
        if other.is_dir():
            if not node.is_dir():
                raise FsError(errno.EISDIR)
            if other.entries:
                raise FsError(errno.ENOTEMPTY)
        elif node.is_dir():
            raise FsError(errno.ENOTDIR)

    def _drop_if_dead(self, node: _Node) -> None:
        if node.nlink == 0 and node.nlookup == 0:
            self._used -= sum(map(len, node.chunks.values()))
            self._nodes.pop(node.ino, None)

    def _grown(self, node: _Node, index: int, length: int) -> bytearray:
        chunk = node.chunks.get(index)
        missing = length - (0 if chunk is None else len(chunk))
        if missing > 0 and self._used + missing > self._size_limit:
            raise FsError(errno.ENOSPC)
        if chunk is None:
            chunk = node.chunks[index] = bytearray(length)
        elif missing > 0:
            chunk.extend(bytes(missing))
        if missing > 0:
            self._used += missing
            node.blocks += (missing + 511) >> 9
        return chunk

    def _allocate(self, node: _Node, offset: int, end: int) -> None:
        """Have memory for a range, all of it or none."""
        if end - offset > ALLOCATED_MAX:
            raise FsError(errno.EOPNOTSUPP)
        lengths = {
            index: min(CHUNK_BYTES, end - index * CHUNK_BYTES)
            for index in range(offset // CHUNK_BYTES, -(-end // CHUNK_BYTES))
        }
        missing = sum(max(0, n - len(node.chunks.get(at, b""))) for at, n in lengths.items())
        if missing > self._size_limit - self._used:
            raise FsError(errno.ENOSPC)
        for index, length in lengths.items():
            self._grown(node, index, length)

    def _resize(self, node: _Node, size: int) -> None:
        if not stat.S_ISREG(node.mode):
            raise FsError(errno.EINVAL)
        if size > SIZE_MAX:
            raise FsError(errno.EFBIG)
        if size < node.size:
            self._punch(node, size, SIZE_MAX)  # with what was allocated beyond the end
        node.size = size

    def _punch(self, node: _Node, start: int, end: int) -> None:
        for index in [
            at for at in node.chunks if start < (at + 1) * CHUNK_BYTES and at * CHUNK_BYTES < end
        ]:
            base = index * CHUNK_BYTES
            chunk = node.chunks[index]
            low, high = max(0, start - base), min(len(chunk), end - base)
            before = len(chunk)
            if low <= 0 and high >= len(chunk):
                del node.chunks[index]
                self._used -= before
            elif high >= len(chunk):
                del chunk[low:]
                self._used -= before - len(chunk)
            elif low < high:
                chunk[low:high] = bytes(high - low)
        node.blocks = sum((len(chunk) + 511) >> 9 for chunk in node.chunks.values())


def _cookie_of(entry: DirEntry) -> int:
    return entry.cookie


def _kill_privileges(node: _Node) -> None:
    """Drop what a change of content or owner takes away, as Linux's file_remove_privs does."""
    node.xattrs.pop(CAPABILITY, None)
    if stat.S_ISDIR(node.mode):
        return
    node.mode &= ~stat.S_ISUID
    if node.mode & stat.S_IXGRP:
        node.mode &= ~stat.S_ISGID
