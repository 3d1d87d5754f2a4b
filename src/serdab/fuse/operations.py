# SPDX-License-Identifier: Apache-2.0
"""One method per opcode: a request in the receive buffer becomes a call and a reply.

Decides what the kernel may cache and which requests it need not send again. Above: ``session``
(reads, writes, turns exceptions into errno). Below: ``wire`` (bytes), a
:class:`~serdab.vfs.api.FileSystem`.

A method gets ``(unique, nodeid, uid, gid, size)`` and returns the reply, or None where the
protocol knows none (FORGET). It may raise whatever the file system raises.

Fewer requests are the whole gain here:
    * OPEN, OPENDIR, RELEASE and FLUSH are answered ENOSYS, upon which the kernel stops sending
      them and keeps its pages and directory listings across opens. CREATE too: the kernel then
      sends MKNOD, and never a RELEASE.
    * An absent name is an entry with node 0 and an endless timeout, instead of ENOENT.
It may forget an inode and still be asked for it by its number, which name_to_handle_at(2) gave
away: FUSE_EXPORT_SUPPORT, then it looks up "." of that number, and ".." as far as the root.
INTERRUPT is the session's: it concerns requests that are parked (``parked``).

A file system that others change behind our back sets ``cache_timeout_s``: then the kernel asks
again after that time and drops pages whose file has changed, and no number lasts.

FUSE_WRITEBACK_CACHE is never asked for: under it a rename and an fsync reach the server before the
data written earlier. FUSE_ATOMIC_O_TRUNC is not either: O_TRUNC travels in OPEN, which is not sent.
"""

from __future__ import annotations

import copy
import errno
import stat
from collections.abc import Callable
from itertools import islice
from typing import Final, TypeAlias, TypeVar, cast

from serdab.errors import EnvironmentRefused, FsError, InternalError
from serdab.fuse import abi, wire
from serdab.fuse.abi import InitFlag, Opcode
from serdab.fuse.insteps import InSteps
from serdab.fuse.parked import Parked, Reply
from serdab.fuse.unwritten import Question, Unwritten
from serdab.structs import frozen
from serdab.vfs.acl import ACL_NAMES
from serdab.vfs.api import ROOT_INO, DirEntry, FileSystem, HasAcls, Inode, SetAttr
from serdab.vfs.steps import Steps, Unfinished

T = TypeVar("T")
Handler: TypeAlias = Callable[[int, int, int, int, int], Reply]

_pack_header_into = abi.OUT_HEADER.pack_into
#: Ten years: the kernel clamps it to what its clock can hold.
ENDLESS_S: Final = 315_360_000
MAX_WRITE_BYTES: Final = 1 << 20
#: max_write, the header and what precedes the data; the kernel asks for max_write + 80 at least,
#: and requests with two names are larger than a page.
RECEIVE_BYTES: Final = MAX_WRITE_BYTES + 8192

#: Extended attributes that no file system here has. "Not supported" and not "absent": ls(1) asks
#: for both on every file, until it is told that this device has none.
_FOREIGN_XATTRS: Final = (b"system.", b"security.selinux")

#: The kinds of names that there are, xattr(7). The kernel resolves them for all file systems but
#: FUSE, whose server gets every name.
_XATTR_KINDS: Final = (b"user.", b"trusted.", b"security.", b"system.")

_WANTED: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.EXPORT_SUPPORT
    | InitFlag.BIG_WRITES
    | InitFlag.DONT_MASK
    | InitFlag.DO_READDIRPLUS
    | InitFlag.READDIRPLUS_AUTO
    | InitFlag.ASYNC_DIO
    | InitFlag.NO_OPEN_SUPPORT
    | InitFlag.NO_OPENDIR_SUPPORT
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.ABORT_ERROR
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.HANDLE_KILLPRIV_V2
    | InitFlag.SETXATTR_EXT
    | InitFlag.INIT_EXT
)


@frozen
class ServeOptions:
    """What the kernel is told about the file system.

    ``block_size`` becomes st_blksize, after which stdio and Python size their buffers: 64 KiB
    makes a program that writes line by line send a sixteenth of the requests that 4 KiB would.
    """

    block_size: int = 65536
    max_readahead_bytes: int = 1 << 20
    max_background: int = 64
    shows_trusted: bool = True
    """Whether uid 0 is shown that there are ``trusted.*`` attributes; nobody else is.

    Of the caller's capabilities the request says nothing. To be shown (listxattr(2)) and to read
    them takes CAP_SYS_ADMIN in the initial user namespace, and in a sandbox nobody has that.
    """
    is_root: bool = False
    """Whether the root is to be mounted by its second inode: see :data:`abi.ROOT_ALIAS`."""


def _first_step(steps: Steps[T], answer: Callable[[T], Reply]) -> Reply:
    """Do the first step: most requests have no more.

    Raises:
        Parked: this one has.
    """
    try:
        waits_for = next(steps)
    except StopIteration as end:
        return answer(end.value)
    raise Parked(steps, cast("Callable[[object], Reply]", answer), waits_for)


def _as_it_is(reply: Reply) -> Reply:
    return reply


class Operations:
    """The dispatch table over one file system, and the buffers that requests and replies use."""

    def __init__(
        self, fs: FileSystem, options: ServeOptions, notify: Callable[[bytes], object]
    ) -> None:
        """``notify`` sends what answers no request."""
        self._fs = fs
        self._notify = notify
        #: What asks the kernel what it holds of a file, by the request to answer.
        self._questions: dict[int, Question] = {}
        self._options = options
        self._in_steps = InSteps(fs)
        self._unwritten = Unwritten(fs, self._in_steps.lseek)
        self._block_size = options.block_size
        timeout = getattr(fs, "cache_timeout_s", None)
        self._endless = timeout is None
        self._has_acls = bool(getattr(fs, "has_acls", False))
        self._has_default_acl: Callable[[int], bool] = getattr(fs, "has_default_acl", _never)
        self._is_setxattr_long = False
        self._valid_s = ENDLESS_S if timeout is None else int(timeout)
        self.request = bytearray(RECEIVE_BYTES)
        self.view = memoryview(self.request)
        self._reply = bytearray(16 + MAX_WRITE_BYTES)
        self._reply_view = memoryview(self._reply)
        self.is_initialised = False
        self._says_kill = True
        table: dict[Opcode, Handler] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.FORGET: self._forget,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.READLINK: self._readlink,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.LINK: self._link,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.STATFS: self._statfs,
            Opcode.FSYNC: self._fsync,
            Opcode.FSYNCDIR: self._fsync,
            Opcode.SETXATTR: self._setxattr,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.REMOVEXATTR: self._removexattr,
            Opcode.INIT: self._init,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.BATCH_FORGET: self._batch_forget,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.RENAME2: self._rename2,
            Opcode.LSEEK: self._lseek,
            Opcode.COPY_FILE_RANGE: self._copy_file_range,
            Opcode.COPY_FILE_RANGE_64: self._copy_file_range_64,
            Opcode.SYNCFS: self._syncfs,
            Opcode.TMPFILE: self._tmpfile,
            Opcode.STATX: self._statx,
            Opcode.IOCTL: self._ioctl,
            Opcode.RELEASE: self._ok,
            Opcode.RELEASEDIR: self._ok,
            Opcode.DESTROY: self._ok,
            Opcode.NOTIFY_REPLY: self._retrieved,
        }
        if options.is_root:
            table[Opcode.LOOKUP] = self._lookup_root
        if not self._endless:
            table[Opcode.OPEN] = self._open
            table[Opcode.OPENDIR] = self._open
        # Plain integers: an enumeration's members are found by comparing, these by being the same.
        self.table: dict[int, Handler] = {int(opcode): call for opcode, call in table.items()}

    def _init(self, unique: int, _nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        major, minor, readahead, offered = wire.parse_init(self.view, size)
        if major > abi.MAJOR:
            # The kernel sends INIT again with the version it finds in this answer (fuse.h).
            return self._init_reply(unique, flags=InitFlag(0), readahead=0)
        if (major, minor) < (abi.MAJOR, abi.MINOR_MIN):
            raise EnvironmentRefused(
                "the kernel's FUSE protocol is too old",
                expected=f"{abi.MAJOR}.{abi.MINOR_MIN} or newer",
                found=f"{major}.{minor}",
                hint="Linux 5.2 or newer is needed",
            )
        wanted = _WANTED
        if not self._endless:
            wanted |= InitFlag.AUTO_INVAL_DATA
            wanted &= ~(InitFlag.CACHE_SYMLINKS | InitFlag.EXPORT_SUPPORT)
        if self._has_acls:
            wanted |= InitFlag.POSIX_ACL
        self._is_setxattr_long = bool(offered & InitFlag.SETXATTR_EXT)
        self.is_initialised = True
        self._says_kill = minor >= abi.MINOR_SAYS_KILL
        return self._init_reply(
            unique,
            flags=wanted & InitFlag(offered & 0x7FFFFFFF & _ALL_FLAGS),
            readahead=min(readahead, self._options.max_readahead_bytes)
            if readahead
            else self._options.max_readahead_bytes,
        )

    def _init_reply(self, unique: int, *, flags: InitFlag, readahead: int) -> bytes:
        return wire.dump_init(
            unique,
            flags=int(flags),
            max_readahead=max(readahead, self._options.max_readahead_bytes),
            max_write=MAX_WRITE_BYTES,
            max_background=self._options.max_background,
        )

    def _lookup(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        try:
            inode = self._fs.lookup(nodeid, wire.parse_name(self.view, size))
        except OSError as exc:
            if exc.errno == errno.ENOENT and self._valid_s:
                return wire.dump_no_entry(unique, self._valid_s)
            raise
        return wire.dump_entry(unique, inode, self._valid_s, self._block_size)

    def _lookup_root(self, unique: int, nodeid: int, uid: int, gid: int, size: int) -> Reply:
        """The first name that is looked up is that of the root's second inode."""
        self.table[int(Opcode.LOOKUP)] = self._lookup
        if nodeid != ROOT_INO or wire.parse_name(self.view, size) != abi.ROOT_ALIAS:
            return self._lookup(unique, nodeid, uid, gid, size)
        inode = self._fs.getattr(ROOT_INO)
        return wire.dump_root_entry(unique, inode, self._valid_s, self._block_size)

    def _entry(self, unique: int, inode: Inode) -> bytes:
        return wire.dump_entry(unique, inode, self._valid_s, self._block_size)

    def _forget(self, _unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        if self._fs.forget(nodeid, wire.parse_forget(self.view, size)):
            self._unwritten.forget(nodeid)
        return None

    def _batch_forget(self, _unique: int, _nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        forgotten = wire.parse_batch_forget(self.view, size)
        steps = self._in_steps.forget(forgotten, self._unwritten.forget)
        return _first_step(steps, lambda _: None)

    def _getattr(self, unique: int, nodeid: int, _uid: int, _gid: int, _size: int) -> Reply:
        inode = self._held(self._fs.getattr(nodeid))
        return wire.dump_attr(unique, inode, self._valid_s, self._block_size)

    def _statx(self, unique: int, nodeid: int, _uid: int, _gid: int, _size: int) -> Reply:
        inode = self._held(self._fs.getattr(nodeid))
        return wire.dump_statx(unique, inode, self._valid_s, self._block_size)

    def _held(self, inode: Inode) -> Inode:
        """Return a file as it is with what the kernel may hold of it, and has not written.

        tar(1) takes one without any block for one hole, and does not even look for data.
        """
        if inode.blocks == 0 and self._unwritten.may_hold(inode.ino):
            inode = copy.copy(inode)  # the original is the file system's own
            inode.blocks = 8
        return inode

    def _setattr(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        changes = wire.parse_setattr(self.view, size)
        if changes.size is not None:
            return self._resize(unique, nodeid, changes)
        inode = self._fs.setattr(nodeid, changes)
        return wire.dump_attr(unique, inode, self._valid_s, self._block_size)

    def _resize(self, unique: int, nodeid: int, changes: SetAttr) -> Reply:
        return _first_step(
            self._in_steps.setattr(nodeid, changes),
            lambda inode: wire.dump_attr(unique, inode, self._valid_s, self._block_size),
        )

    def _readlink(self, unique: int, nodeid: int, _uid: int, _gid: int, _size: int) -> Reply:
        return wire.dump_data(unique, self._fs.readlink(nodeid))

    def _symlink(self, unique: int, nodeid: int, uid: int, gid: int, size: int) -> Reply:
        name, target = wire.parse_symlink(self.view, size)
        return self._entry(unique, self._fs.symlink(nodeid, name, target, uid, gid))

    def _mknod(self, unique: int, nodeid: int, uid: int, gid: int, size: int) -> Reply:
        mode, umask, rdev, name = wire.parse_mknod(self.view, size)
        mode = self._masked(nodeid, mode, umask)
        inode = self._fs.mknod(nodeid, name, mode, rdev, uid, gid)
        return wire.dump_entry(unique, inode, self._valid_s, self._block_size)

    def _mkdir(self, unique: int, nodeid: int, uid: int, gid: int, size: int) -> Reply:
        mode, umask, name = wire.parse_mkdir(self.view, size)
        mode = self._masked(nodeid, mode, umask)
        return self._entry(unique, self._fs.mkdir(nodeid, name, mode, uid, gid))

    def _masked(self, parent: int, mode: int, umask: int) -> int:
        """Return the mode of what is made: the umask counts where no ACL is handed down."""
        return mode if self._has_default_acl(parent) else mode & ~umask

    def _tmpfile(self, unique: int, nodeid: int, uid: int, gid: int, size: int) -> Reply:
        mode = self._masked(nodeid, *wire.parse_tmpfile(self.view, size))
        inode = self._fs.tmpfile(nodeid, stat.S_IFREG | mode, uid, gid)
        return wire.dump_created(unique, inode, self._valid_s, self._block_size)

    def _unlink(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        self._fs.unlink(nodeid, wire.parse_name(self.view, size))
        return wire.dump_ok(unique)

    def _rmdir(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        self._fs.rmdir(nodeid, wire.parse_name(self.view, size))
        return wire.dump_ok(unique)

    def _rename(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        new_parent, old, new = wire.parse_rename(self.view, size)
        self._fs.rename(nodeid, old, new_parent, new, 0)
        return wire.dump_ok(unique)

    def _rename2(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        new_parent, flags, old, new = wire.parse_rename2(self.view, size)
        self._fs.rename(nodeid, old, new_parent, new, flags)
        return wire.dump_ok(unique)

    def _link(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        ino, name = wire.parse_link(self.view, size)
        return self._entry(unique, self._fs.link(ino, nodeid, name))

    def _open(self, unique: int, _nodeid: int, _uid: int, _gid: int, _size: int) -> Reply:
        # No FOPEN_KEEP_CACHE, no FOPEN_CACHE_DIR: what others changed shows at the next open.
        return wire.dump_open(unique, 0)

    def _read(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        offset, count = wire.parse_read(self.view, size)
        if count > MAX_WRITE_BYTES:
            count = MAX_WRITE_BYTES
        found = self._fs.read_into(nodeid, offset, self._reply_view[16 : 16 + count])
        if not 0 <= found <= count:
            raise InternalError(f"read_into returned {found} for {count} bytes")
        if found and self._fs.may_have_holes(nodeid):
            self._unwritten.note(nodeid, offset, found)
        _pack_header_into(self._reply, 0, 16 + found, 0, unique)
        return self._reply_view[: 16 + found]

    def _write(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        offset, flags, data = wire.parse_write(self.view, size)
        kill = bool(flags & abi.WRITE_KILL_SUIDGID)
        return wire.dump_write(unique, self._fs.write(nodeid, offset, data, kill_suidgid=kill))

    def _statfs(self, unique: int, _nodeid: int, _uid: int, _gid: int, _size: int) -> Reply:
        return wire.dump_statfs(unique, self._fs.statfs())

    def _fsync(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        steps = self._in_steps.fsync(nodeid, datasync=wire.parse_fsync(self.view, size))
        return _first_step(steps, lambda _: wire.dump_ok(unique))

    def _syncfs(self, unique: int, _nodeid: int, _uid: int, _gid: int, _size: int) -> Reply:
        return _first_step(self._in_steps.syncfs(), lambda _: wire.dump_ok(unique))

    def _setxattr(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        name, value, flags, more = wire.parse_setxattr(
            self.view, size, is_long=self._is_setxattr_long
        )
        if refusal := self._refused_xattr(name):
            return wire.dump_error(unique, refusal)
        if name in ACL_NAMES:
            kill = bool(more & abi.SETXATTR_ACL_KILL_SGID)
            cast("HasAcls", self._fs).set_acl(nodeid, name, value, kill_sgid=kill)
            return wire.dump_ok(unique)
        self._fs.setxattr(nodeid, name, value, flags)
        return wire.dump_ok(unique)

    def _getxattr(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        room, name = wire.parse_getxattr(self.view, size)
        if refusal := self._refused_xattr(name):
            return wire.dump_error(unique, refusal)
        return self._sized(unique, room, self._fs.getxattr(nodeid, name))

    def _refused_xattr(self, name: bytes) -> int:
        return 0 if self._has_acls and name in ACL_NAMES else _refused_xattr(name)

    def _listxattr(self, unique: int, nodeid: int, uid: int, _gid: int, size: int) -> Reply:
        room = wire.parse_listxattr(self.view, size)
        shows_trusted = not uid and self._options.shows_trusted

        def answer(found: list[bytes]) -> bytes:
            names = [name for name in found if not self._refused_xattr(name)]
            if not shows_trusted:
                names = [name for name in names if not name.startswith(b"trusted.")]
            return self._sized(unique, room, b"".join(name + b"\0" for name in names))

        return _first_step(self._in_steps.listxattr(nodeid), answer)

    @staticmethod
    def _sized(unique: int, room: int, value: bytes) -> bytes:
        if room == 0:
            return wire.dump_size(unique, len(value))
        if len(value) > room:
            raise FsError(errno.ERANGE)
        return wire.dump_data(unique, value)

    def _removexattr(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        name = wire.parse_xattr_name(self.view, size)
        if refusal := self._refused_xattr(name):
            return wire.dump_error(unique, refusal)
        self._fs.removexattr(nodeid, name)
        return wire.dump_ok(unique)

    def _fallocate(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        mode, offset, length = wire.parse_fallocate(self.view, size)
        self._kill_unsaid(nodeid)
        steps = self._in_steps.fallocate(nodeid, mode, offset, length)
        return _first_step(steps, lambda _: wire.dump_ok(unique))

    def _kill_unsaid(self, nodeid: int) -> None:
        """Take set-id bits away before a change of content for which the kernel does not say so."""
        if not self._says_kill:
            self._fs.setattr(nodeid, SetAttr(kill_suidgid=True))

    def _lseek(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        offset, whence = wire.parse_lseek(self.view, size)
        if not self._unwritten.may_hold(nodeid):
            steps = self._in_steps.lseek(nodeid, offset, whence)
            return _first_step(steps, lambda found: wire.dump_u64(unique, found))
        asking = self._unwritten.seek(nodeid, offset, whence)
        self._questions[unique] = Question(asking, wire.parse_pid(self.view))
        return _first_step(self._ask(unique, nodeid, None), _as_it_is)

    def _retrieved(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        if unique not in self._questions:
            return None
        held = bytes(wire.parse_retrieved(self.view, size))
        return _first_step(self._ask(unique, nodeid, held), _as_it_is)

    def interrupt(self, unique: int, namespace: int) -> None:
        """The caller of a request got a signal, while the kernel is asked for its answer."""
        question = self._questions.get(unique)
        if question is not None:
            question.interrupt(namespace)

    def _ask(self, unique: int, nodeid: int, held: bytes | None) -> Steps[Reply]:
        """Go on with a question to the kernel; the request that it answers waits meanwhile.

        What the kernel tells comes with the number of that request, and so does what is raised.
        Without a reply the kernel was asked for more.
        """
        question = self._questions[unique]
        is_asked = False
        try:
            while True:
                try:
                    wanted = question.go_on(held)
                except StopIteration as end:
                    return wire.dump_u64(unique, end.value)
                held = None
                if not isinstance(wanted, tuple):
                    yield wanted
                    continue
                try:
                    self._notify(wire.dump_retrieve(unique, nodeid, *wanted))
                except OSError as exc:
                    if exc.errno != errno.ENOENT:
                        raise
                    held = b""  # it has no such inode, hence nothing of it
                else:
                    is_asked = True
                    return None
        finally:
            if not is_asked:
                del self._questions[unique]

    def _copy_file_range(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        offset, target, offset_out, length = wire.parse_copy_file_range(self.view, size)
        self._kill_unsaid(target)
        count = self._fs.copy_file_range(
            nodeid, offset, target, offset_out, min(length, 0x7FFFF000)
        )
        return wire.dump_write(unique, count)

    def _copy_file_range_64(
        self, unique: int, nodeid: int, _uid: int, _gid: int, size: int
    ) -> Reply:
        offset, target, offset_out, length = wire.parse_copy_file_range(self.view, size)
        count = self._fs.copy_file_range(nodeid, offset, target, offset_out, length)
        return wire.dump_u64(unique, count)

    def _ioctl(self, unique: int, _nodeid: int, _uid: int, _gid: int, _size: int) -> Reply:
        return wire.dump_error(unique, errno.ENOTTY)

    def _ok(self, unique: int, _nodeid: int, _uid: int, _gid: int, _size: int) -> Reply:
        return wire.dump_ok(unique)

    def unsupported(self, unique: int, _nodeid: int, _uid: int, _gid: int, _size: int) -> Reply:
        """Answer an opcode that has no method: the kernel does without, and mostly remembers."""
        return wire.dump_error(unique, errno.ENOSYS)

    def _readdir(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        cookie, count = wire.parse_read(self.view, size)
        steps = self._batch(nodeid, cookie, count, abi.DIRENT_BYTES)
        return _first_step(steps, lambda batch: self._dump_batch(unique, batch))

    def _dump_batch(self, unique: int, batch: list[DirEntry]) -> Reply:
        reply, at = self._reply, 16
        for entry in batch:
            at = wire.dump_dirent_into(reply, at, entry.ino, entry.cookie, entry.name, entry.dtype)
        _pack_header_into(reply, 0, at, 0, unique)
        return self._reply_view[:at]

    def _readdirplus(self, unique: int, nodeid: int, _uid: int, _gid: int, size: int) -> Reply:
        cookie, count = wire.parse_read(self.view, size)
        steps = self._batch(nodeid, cookie, count, abi.DIRENTPLUS_BYTES)
        return _first_step(steps, lambda batch: self._dump_batch_plus(unique, nodeid, batch))

    def _dump_batch_plus(self, unique: int, nodeid: int, batch: list[DirEntry]) -> Reply:
        reply, at = self._reply, 16
        dump, valid_s, block_size = wire.dump_direntplus_into, self._valid_s, self._block_size
        for entry in batch:
            name = entry.name
            inode = None if name in (b".", b"..") else self._lookup_entry(entry, nodeid)
            at = dump(
                reply, at, inode, entry.ino, entry.cookie, name, entry.dtype, valid_s, block_size
            )
        _pack_header_into(reply, 0, at, 0, unique)
        return self._reply_view[:at]

    def _lookup_entry(self, entry: DirEntry, parent: int) -> Inode | None:
        try:
            return self._fs.lookup_ino(entry.ino, parent)
        except (OSError, Unfinished):
            # The listing stays whole: the kernel asks for this one by name, and that LOOKUP
            # carries the error to whoever wants the file.
            return None

    def _batch(
        self, nodeid: int, cookie: int, count: int, fixed_bytes: int
    ) -> Steps[list[DirEntry]]:
        """Return the entries that fit into ``count`` bytes, never part of a run of one cookie.

        Names whose positions collide share a cookie, and reading goes on *after* a cookie: what
        was cut from a run would never be seen.
        """
        room = min(count, MAX_WRITE_BYTES)
        batch: list[DirEntry] = []
        start: int | None = cookie
        while start is not None:
            cookie, start = start, None
            for entry in self._in_steps.readdir(nodeid, cookie):
                if isinstance(entry, int):
                    if batch:
                        return batch
                    start = entry
                    yield None
                    break
                room -= (fixed_bytes + len(entry.name) + 7) & ~7
                if room < 0:
                    kept = len(batch)
                    while kept and batch[kept - 1].cookie == entry.cookie:
                        kept -= 1
                    if not kept:
                        raise FsError(errno.EIO)  # a single run larger than the reader's buffer
                    return list(islice(batch, kept))
                batch.append(entry)
        return batch


def _never(_ino: int) -> bool:
    return False


_ALL_FLAGS: Final = sum(InitFlag)


def _refused_xattr(name: bytes) -> int:
    """Return what is said of an extended attribute that can never be there; 0 if it can."""
    if name.startswith(_FOREIGN_XATTRS) or not name.startswith(_XATTR_KINDS):
        return errno.EOPNOTSUPP
    return errno.EINVAL if name in _XATTR_KINDS else 0
