# SPDX-License-Identifier: Apache-2.0
"""A directory of the host, shown as it is, but for what must not be reachable or left behind.

Above: ``fuse.session``. Below: ``hostnodes`` (which file is meant), ``hiding`` (what is not shown),
``linux.files``.

The host may change the tree at any time, so the kernel is told to cache nothing for longer than
``cache_timeout_s``, and to look at size and time before it trusts a page.

Security:
    1. Nothing outside the root is reached (see ``hostnodes``); symbolic links are told, never
       followed, so they lead wherever they point *inside* the caller's own root.
    2. What is hidden is not found and not listed, and nothing can be made at its name (EBUSY);
       ``build`` and ``run`` of an instance are empty directories that cannot be written, moved or
       removed. What the host moves there while a program has it open takes no more changes (EPERM).
       An instance, and what has something hidden below, stays in place and keeps owner and mode.
    3. No set-id file and no device comes into being: modes with set-id bits and device nodes are
       refused (EPERM), bits that come with a creation are dropped, and a set-id file of the host
       loses its bits before its content changes. Of extended attributes only ``user.*`` passes,
       so that no file capability does either.
    4. Regular files alone are ever opened; a FIFO or a device of the host cannot make us wait.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias

from serdab.config.names import fold, is_config
from serdab.errors import FsError
from serdab.linux.files import chown_at, fallocate, list_from, renameat2, set_times, syncfs
from serdab.structs import frozen
from serdab.vfs.api import NOW_NS, ROOT_INO, DirEntry, Inode, SetAttr, StatFs
from serdab.vfs.hiding import NOWHERE, Elsewhere, Kind
from serdab.vfs.hostnodes import PHANTOM_INO, Node, NodeTable

Owner: TypeAlias = tuple[int, int]

_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_DIRECTORY: Final = 4  # DT_DIR
_RENAME_EXCHANGE: Final = 2
_RENAME_KNOWN: Final = 3
_MAX_PATH_FDS: Final = 512
_MAX_DATA_FDS: Final = 64


def _same(uid: int, gid: int) -> Owner:
    return uid, gid


@frozen
class Owners:
    """How owners on the host and inside correspond; both take and return (uid, gid)."""

    show: Callable[[int, int], Owner] = _same
    keep: Callable[[int, int], Owner] = _same


class HostFs:
    """Implements :class:`serdab.vfs.api.FileSystem` over a directory of the host."""

    cache_timeout_s: float = 0.0

    def __init__(
        self,
        root: str | os.PathLike[str] | int,
        *,
        hidden: Iterable[bytes] = (),
        instance: bytes | None = None,
        elsewhere: Elsewhere = NOWHERE,
        read_only: bool = False,
        owners: Owners | None = None,
        max_path_fds: int = _MAX_PATH_FDS,
    ) -> None:
        """``root`` is a path, or a directory's descriptor, which then belongs to this object.

        ``hidden`` are relative paths; ``instance`` is that of the instance, ``.`` for the root;
        ``elsewhere``: what has no other name here either.

        Raises:
            OSError: the root is not a directory, or cannot be opened.
            UsageError: it is an interface of the kernel, such as /proc.
            Error: what is hidden elsewhere cannot be told.
        """
        fd = root if isinstance(root, int) else _open_root(root)
        try:
            self._table = NodeTable(
                fd, hidden, instance=instance, elsewhere=elsewhere, max_fds=max_path_fds
            )
        except BaseException:
            os.close(fd)
            raise
        self._hiding = self._table.hiding
        self._read_only = read_only
        self._owners = owners or Owners()
        #: ino → (descriptor, is_writable) of files whose content was asked for
        self._data: OrderedDict[int, tuple[int, bool]] = OrderedDict()
        #: where the entries of the last listing were seen, for lookup_ino
        self._listed: dict[int, tuple[int, bytes]] = {}
        self._is_open = True

    # Names.

    def lookup(self, parent: int, name: bytes) -> Inode:
        if parent > PHANTOM_INO:
            raise FsError(errno.ENOENT)
        above = self._table.get(parent)
        kind = self._table.kind(above, name)
        if kind is Kind.ABSENT:
            raise FsError(errno.ENOENT)
        if kind is Kind.EMPTY:
            return _phantom(self._table.phantom(above, name))
        node, status = self._table.lookup(above, name)
        return self._inode(node, status)

    def lookup_ino(self, ino: int, parent: int) -> Inode:
        where = self._listed.get(ino)
        if where is None:
            raise FsError(errno.ENOENT)
        inode = self.lookup(*where)
        if inode.ino != ino:
            # A mount point of the host: the entry names what lies under it.
            self.forget(inode.ino, 1)
            raise FsError(errno.ENOENT)
        return inode

    def forget(self, ino: int, nlookup: int) -> bool:
        is_gone = self._table.forget(ino, nlookup)
        if is_gone:
            self._close_data(ino)
        return is_gone

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> Inode:
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        above = self._changeable(parent, name)
        fd = self._table.fd(above)
        if kind == stat.S_IFREG:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            node = self._adopt_made(os.open(name, flags, 0o600, dir_fd=fd), above, name)
            return self._dressed(node, above, mode, uid, gid)
        if kind not in (stat.S_IFIFO, stat.S_IFSOCK):
            raise FsError(errno.EPERM)
        os.mknod(name, kind | 0o600, dir_fd=fd)
        return self._found_made(above, name, mode, uid, gid)

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Inode:
        above = self._changeable(parent, name)
        os.mkdir(name, 0o700, dir_fd=self._table.fd(above))
        return self._found_made(above, name, mode, uid, gid)

    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Inode:
        above = self._changeable(parent, name)
        os.symlink(target, name, dir_fd=self._table.fd(above))
        return self._found_made(above, name, None, uid, gid)

    def tmpfile(self, parent: int, mode: int, uid: int, gid: int) -> Inode:
        above = self._changeable(parent, b"")
        made = os.open(
            f"/proc/self/fd/{self._table.fd(above)}",
            os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC,
            0o600,
        )
        node = self._adopt_made(made, None, b"")
        self._table.pin(node)
        return self._dressed(node, above, mode, uid, gid)

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        above = self._changeable(parent, name)
        fd = self._table.fd(self._node(ino))
        self._require_shown(fd, os.fstat(fd))
        source = self._path(self._node(ino))
        # With a directory descriptor it is linkat(2), which follows this one link and no other.
        os.link(source, name, dst_dir_fd=self._table.fd(above), follow_symlinks=True)
        node, status = self._table.lookup(above, name)
        return self._inode(node, status)

    def unlink(self, parent: int, name: bytes) -> None:
        above = self._changeable(parent, name)
        self._keep_nameless(above, name)
        os.unlink(name, dir_fd=self._table.fd(above))

    def rmdir(self, parent: int, name: bytes) -> None:
        above = self._changeable(parent, name)
        self._keep_nameless(above, name)
        os.rmdir(name, dir_fd=self._table.fd(above))

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        if flags & ~_RENAME_KNOWN:
            raise FsError(errno.EINVAL)
        table = self._table
        source, target = self._changeable(parent, name), self._changeable(new_parent, new_name)
        moved, other = table.peek(source, name), table.peek(target, new_name)
        if other is not None and not flags & _RENAME_EXCHANGE:
            table.pin(other)
        renameat2(table.fd(source), name, table.fd(target), new_name, flags)
        if moved is not None and moved is not other:
            moved.parent, moved.name = target.ino, new_name
        if other is not None and flags & _RENAME_EXCHANGE:
            other.parent, other.name = source.ino, name

    def readlink(self, ino: int) -> bytes:
        return os.readlink(b"", dir_fd=self._table.fd(self._node(ino)))

    def readdir(self, ino: int, cookie: int) -> Iterator[DirEntry]:
        if ino > PHANTOM_INO:
            if cookie < 1:
                yield DirEntry(1, b".", ino, _DIRECTORY)
            if cookie < 2:
                yield DirEntry(2, b"..", self._table.above_phantom(ino), _DIRECTORY)
            return
        node = self._node(ino)
        self._listed = listed = {}
        under = self._hiding.identities()
        fd = self._data_fd(node, is_writable=False)
        for after, name, host_ino, dtype in list_from(fd, cookie):
            if name == b".":
                number = ino
            elif name == b"..":
                number = node.parent
            else:
                kind = self._table.kind(node, name)
                is_alias = (node.identity[0], host_ino) in under
                if kind is Kind.ABSENT or (kind is Kind.SHOWN and is_alias):
                    continue
                if kind is Kind.EMPTY:
                    number, dtype = self._table.phantom(node, name), _DIRECTORY
                else:
                    number = self._table.number_of_entry(node, host_ino)
            listed[number] = (ino, name)
            yield DirEntry(after, name, number, dtype)

    # Attributes.

    def getattr(self, ino: int) -> Inode:
        if ino > PHANTOM_INO:
            return _phantom(ino)
        node = self._node(ino)
        return self._inode(node, os.fstat(self._table.fd(node)))

    def setattr(self, ino: int, changes: SetAttr) -> Inode:
        node = self._written(ino)
        status = os.fstat(self._table.fd(node))
        path = self._path(node)
        self._require_kept(node, status, changes)
        if changes.mode is not None and changes.mode & _SET_ID and not stat.S_ISDIR(status.st_mode):
            raise FsError(errno.EPERM)
        if changes.size is not None:
            os.ftruncate(self._writable_fd(node), changes.size)
        if changes.uid is not None or changes.gid is not None:
            self._chown(node, status, changes)
        if changes.mode is not None:
            os.chmod(path, changes.mode)
        elif changes.kill_suidgid and stat.S_ISREG(status.st_mode) and status.st_mode & _SET_ID:
            os.chmod(path, stat.S_IMODE(status.st_mode) & ~_SET_ID)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            set_times(self._table.fd(node), changes.atime_ns, changes.mtime_ns, now=NOW_NS)
        return self.getattr(ino)

    def _chown(self, node: Node, status: os.stat_result, changes: SetAttr) -> None:
        uid, gid = self._owners.show(status.st_uid, status.st_gid)
        wanted = (
            uid if changes.uid is None else changes.uid,
            gid if changes.gid is None else changes.gid,
        )
        chown_at(self._table.fd(node), *self._owners.keep(*wanted))

    def getxattr(self, ino: int, name: bytes) -> bytes:
        if not name.startswith(b"user.") or ino > PHANTOM_INO:
            raise FsError(errno.ENODATA)
        return os.getxattr(self._path(self._node(ino)), name)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int) -> None:
        if not name.startswith(b"user."):
            raise FsError(errno.EOPNOTSUPP)
        os.setxattr(self._path(self._written(ino)), name, value, flags)

    def listxattr(self, ino: int) -> list[bytes]:
        if ino > PHANTOM_INO:
            return []
        names = map(os.fsencode, os.listxattr(self._path(self._node(ino))))
        return [name for name in names if name.startswith(b"user.")]

    def removexattr(self, ino: int, name: bytes) -> None:
        if not name.startswith(b"user."):
            raise FsError(errno.EOPNOTSUPP)
        os.removexattr(self._path(self._written(ino)), name)

    # Content.

    def read_into(self, ino: int, offset: int, buf: memoryview) -> int:
        fd = self._readable_fd(self._node(ino))
        done = 0
        while done < len(buf):
            count = os.preadv(fd, [buf[done:]], offset + done)
            if count == 0:
                break
            done += count
        return done

    def may_have_holes(self, ino: int) -> bool:
        status = os.fstat(self._data_fd(self._node(ino), is_writable=False))
        return status.st_blocks << 9 < status.st_size

    def write(self, ino: int, offset: int, data: memoryview, *, kill_suidgid: bool) -> int:
        return os.pwrite(self._writable_fd(self._node(ino)), data, offset)

    def fallocate(self, ino: int, mode: int, offset: int, length: int) -> None:
        fallocate(self._writable_fd(self._node(ino)), mode, offset, length)

    def lseek(self, ino: int, offset: int, whence: int) -> int:
        return os.lseek(self._readable_fd(self._node(ino)), offset, whence)

    def copy_file_range(
        self, ino: int, offset: int, ino_out: int, offset_out: int, length: int
    ) -> int:
        target = self._writable_fd(self._node(ino_out))
        source = self._readable_fd(self._node(ino))
        return os.copy_file_range(source, target, length, offset, offset_out)

    def fsync(self, ino: int, *, datasync: bool) -> None:
        if ino > PHANTOM_INO:
            return
        fd = self._data_fd(self._node(ino), is_writable=False)
        (os.fdatasync if datasync else os.fsync)(fd)

    def syncfs(self) -> None:
        fd = os.open(self._path(self._table.get(ROOT_INO)), os.O_RDONLY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        finally:
            os.close(fd)

    def statfs(self) -> StatFs:
        st = os.statvfs(self._path(self._table.get(ROOT_INO)))
        return StatFs(st.f_frsize, st.f_blocks, st.f_bavail, st.f_files, st.f_ffree, st.f_namemax)

    def tick(self) -> float | None:
        return None

    def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        for fd, _ in self._data.values():
            os.close(fd)
        self._data.clear()
        self._table.close()

    # Parts of the operations above.

    def _node(self, ino: int) -> Node:
        if ino > PHANTOM_INO:
            raise FsError(errno.EROFS)
        return self._table.get(ino)

    def _path(self, node: Node) -> str:
        return f"/proc/self/fd/{self._table.fd(node)}"

    def _changeable(self, parent: int, name: bytes) -> Node:
        """Return the directory in which a name may be made or removed."""
        above = self._node(parent)
        if b"/" in name or name in (b".", b".."):
            raise FsError(errno.EINVAL)
        if self._read_only:
            raise FsError(errno.EROFS)
        if name:
            # Like a mount point: what is hidden, or has something hidden below, stays in place. And
            # nothing becomes an instance here, not even what is none yet.
            if self._table.kind(above, name) is not Kind.SHOWN or is_config(fold(name)):
                raise FsError(errno.EBUSY)
            if self._table.must_stay(above, name):
                raise FsError(errno.EBUSY)
        fd = self._table.fd(above)
        self._require_shown(fd, os.fstat(fd))
        return above

    def _written(self, ino: int) -> Node:
        """Return a node whose attributes are about to change."""
        node = self._node(ino)
        if self._read_only:
            raise FsError(errno.EROFS)
        fd = self._table.fd(node)
        self._require_shown(fd, os.fstat(fd))
        return node

    def _require_shown(self, fd: int, status: os.stat_result) -> None:
        """Refuse what the host has moved to a hidden place since it was found."""
        if self._hiding.is_hidden_now(fd, status):
            raise FsError(errno.EPERM)

    def _require_kept(self, node: Node, status: os.stat_result, changes: SetAttr) -> None:
        """Refuse another owner or mode for a directory that others could then put things into."""
        uid, gid = self._owners.show(status.st_uid, status.st_gid)
        is_same = (
            changes.mode in (None, status.st_mode, stat.S_IMODE(status.st_mode))
            and changes.uid in (None, uid)
            and changes.gid in (None, gid)
        )
        if not is_same and stat.S_ISDIR(status.st_mode) and self._table.holds_hidden(node):
            raise FsError(errno.EPERM)

    def _keep_nameless(self, above: Node, name: bytes) -> None:
        node = self._table.peek(above, name)
        if node is not None:
            self._table.pin(node)

    def _adopt_made(self, made: int, above: Node | None, name: bytes) -> Node:
        """Return the node of a file that was just made and is open; closes the descriptor."""
        try:
            fd = os.open(f"/proc/self/fd/{made}", os.O_PATH | os.O_CLOEXEC)
        finally:
            os.close(made)
        return self._table.adopt(fd, os.fstat(fd), above, name)

    def _found_made(self, above: Node, name: bytes, mode: int | None, uid: int, gid: int) -> Inode:
        """Return what was just made, found again by its name."""
        node, status = self._table.lookup(above, name)
        is_ours = status.st_uid == os.geteuid()
        if not is_ours or (status.st_nlink != 1 and not stat.S_ISDIR(status.st_mode)):
            # Someone on the host was quicker and put another file there; it is not ours to dress.
            self.forget(node.ino, 1)
            raise FsError(errno.ESTALE)
        return self._dressed(node, above, mode, uid, gid)

    def _dressed(self, node: Node, above: Node, mode: int | None, uid: int, gid: int) -> Inode:
        """Give a new file its owner and mode, of which creation set neither."""
        fd = self._table.fd(node)
        status = os.fstat(fd)
        owner = self._owners.keep(uid, gid)
        passes_group = os.fstat(self._table.fd(above)).st_mode & stat.S_ISGID
        if passes_group:
            owner = (owner[0], status.st_gid)
        if owner != (status.st_uid, status.st_gid):
            try:
                chown_at(fd, *owner)
            except OSError as exc:
                # EPERM: we are an ordinary user, and what we make is ours. EINVAL: not mapped.
                if exc.errno not in (errno.EPERM, errno.EINVAL):
                    raise
        if mode is not None:
            kept = mode & 0o1777
            if passes_group and stat.S_ISDIR(status.st_mode):
                kept |= stat.S_ISGID
            os.chmod(self._path(node), kept)
        return self._inode(node, os.fstat(fd))

    def _inode(self, node: Node, status: os.stat_result) -> Inode:
        uid, gid = self._owners.show(status.st_uid, status.st_gid)
        inode = Inode(node.ino, status.st_mode, uid, gid, _encode_device(status.st_rdev))
        inode.nlink = status.st_nlink
        inode.size = status.st_size
        inode.blocks = status.st_blocks
        inode.atime_ns = status.st_atime_ns
        inode.mtime_ns = status.st_mtime_ns
        inode.ctime_ns = status.st_ctime_ns
        return inode

    def _data_fd(self, node: Node, *, is_writable: bool) -> int:
        """Return a descriptor to read a file or list a directory, or to write it."""
        known = self._data.get(node.ino)
        if known is not None and known[1] >= is_writable:
            self._data.move_to_end(node.ino)
            return known[0]
        mode = os.fstat(self._table.fd(node)).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise FsError(errno.EINVAL)
        flags = (os.O_RDWR if is_writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(self._path(node), flags)
        self._close_data(node.ino)
        self._data[node.ino] = (fd, is_writable)
        if len(self._data) > _MAX_DATA_FDS:
            _, (oldest, _) = self._data.popitem(last=False)
            os.close(oldest)
        return fd

    def _writable_fd(self, node: Node) -> int:
        """Return a descriptor to write, after set-id bits of the host's file were dropped."""
        if self._read_only:
            raise FsError(errno.EROFS)
        fd = self._data_fd(node, is_writable=True)
        status = os.fstat(fd)
        self._require_shown(fd, status)
        if status.st_mode & _SET_ID:
            os.fchmod(fd, stat.S_IMODE(status.st_mode) & ~_SET_ID)
        return fd

    def _readable_fd(self, node: Node) -> int:
        fd = self._data_fd(node, is_writable=False)
        if self._hiding.has_secrets:
            self._require_shown(fd, os.fstat(fd))
        return fd

    def _close_data(self, ino: int) -> None:
        known = self._data.pop(ino, None)
        if known is not None:
            os.close(known[0])


def _open_root(path: str | os.PathLike[str]) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _phantom(ino: int) -> Inode:
    inode = Inode(ino, stat.S_IFDIR | 0o555)
    inode.nlink = 2
    return inode


def _encode_device(device: int) -> int:
    """Return the 32 bits in which Linux passes a device number (new_encode_dev)."""
    major, minor = os.major(device), os.minor(device)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12) & 0xFFFFFFFF
