# SPDX-License-Identifier: Apache-2.0
"""The bytes that travel over ``/dev/fuse``: numbers, layouts, parsing and dumping. No I/O.

The protocol is the kernel's ``include/uapi/linux/fuse.h`` (see fuse(4)). It is native-endian and
made for the machine it runs on, so every layout here is ``=`` (native order, no padding).

Above: ``operations`` and ``session``. Below: ``vfs.api`` for the :class:`~serdab.vfs.api.Inode`.

A ``parse_*`` function takes the receive buffer as a memoryview and the number of bytes that
arrived, checks the length, and raises :class:`MalformedRequest` where it is wrong: never
``struct.error`` or ``IndexError``. A ``dump_*`` function returns one whole reply, header included.

Security:
    1. The kernel is trusted, yet a length is never taken on faith: the buffer is reused, so what
       lies past the end is an older request, which might be another user's data.
    2. A name never holds a NUL or a slash when it leaves here, and is never longer than 255 bytes
       (``FsError`` ENAMETOOLONG, the one errno that is decided here).
"""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, final

from serdab.errors import FormatError, FsError
from serdab.vfs.api import Inode, SetAttr, StatFs

MAJOR: Final = 7
MINOR: Final = 45
#: Oldest minor version served: max_pages (28) and zero-message opendir (29) are there since 5.1,
#: 7.31 is Linux 5.2.
MINOR_MIN: Final = 31
#: The kernel passes names of up to 1024 bytes on; Linux has no file system that takes more.
NAME_MAX: Final = 255


class MalformedRequest(FormatError):
    """A request whose bytes do not have the layout of its opcode."""


@final
class Opcode(IntEnum):
    """``enum fuse_opcode``."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


@final
class InitFlag(IntFlag):
    """The bits of ``fuse_init_in.flags`` that are of use here."""

    ASYNC_READ = 1 << 0
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30


FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_CTIME: Final = 1 << 10
FATTR_KILL_SUIDGID: Final = 1 << 11

WRITE_KILL_SUIDGID: Final = 1 << 2
FSYNC_FDATASYNC: Final = 1 << 0

STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800

# The layouts carry the names of the C structures.
IN_HEADER: Final = Struct("=IIQQIIIHH")
OUT_HEADER: Final = Struct("=IiQ")
IN_HEADER_BYTES: Final = IN_HEADER.size  # 40
OUT_HEADER_BYTES: Final = OUT_HEADER.size  # 16

INIT_IN: Final = Struct("=IIII")
INIT_IN_EXT: Final = Struct("=IIIII44x")
INIT_OUT: Final = Struct("=IIIIHHIIHHI28x")

GETATTR_IN: Final = Struct("=IIQ")
SETATTR_IN: Final = Struct("=IIQQQqqqIIIIIIII")
MKNOD_IN: Final = Struct("=IIII")
MKDIR_IN: Final = Struct("=II")
RENAME_IN: Final = Struct("=Q")
RENAME2_IN: Final = Struct("=QII")
LINK_IN: Final = Struct("=Q")
OPEN_IN: Final = Struct("=II")
CREATE_IN: Final = Struct("=IIII")
READ_IN: Final = Struct("=QQIIQII")
WRITE_IN: Final = Struct("=QQIIQII")
FSYNC_IN: Final = Struct("=QII")
SETXATTR_IN: Final = Struct("=II")
GETXATTR_IN: Final = Struct("=II")
FORGET_IN: Final = Struct("=Q")
BATCH_FORGET_IN: Final = Struct("=II")
FORGET_ONE: Final = Struct("=QQ")
FALLOCATE_IN: Final = Struct("=QQQII")
LSEEK_IN: Final = Struct("=QQII")
COPY_FILE_RANGE_IN: Final = Struct("=QQQQQQQ")
STATX_IN: Final = Struct("=IIQII")

# struct fuse_attr. Times are u64 on the wire but the kernel reads them as signed.
_ATTR = "QQQqqqIIIIIIIIII"
_ENTRY = "QQQQII" + _ATTR
#: fuse_out_header + fuse_entry_out
ENTRY_REPLY: Final = Struct("=IiQ" + _ENTRY)
#: fuse_out_header + fuse_entry_out + fuse_open_out
CREATE_REPLY: Final = Struct("=IiQ" + _ENTRY + "QII")
#: fuse_out_header + fuse_attr_out
ATTR_REPLY: Final = Struct("=IiQ" + "QII" + _ATTR)
OPEN_REPLY: Final = Struct("=IiQQII")
WRITE_REPLY: Final = Struct("=IiQII")
LSEEK_REPLY: Final = Struct("=IiQQ")
SIZE_REPLY: Final = Struct("=IiQII")
STATFS_REPLY: Final = Struct("=IiQ" + "QQQQQIIII24x")
DIRENT: Final = Struct("=QQII")
DIRENT_BYTES: Final = DIRENT.size  # 24
#: fuse_entry_out + fuse_dirent
DIRENTPLUS: Final = Struct("=" + _ENTRY + "QQII")
DIRENTPLUS_BYTES: Final = DIRENTPLUS.size  # 152
# struct fuse_statx: mask … mode, ino … attributes_mask, four times, device numbers.
_STATX = "IIQIIIHHQQQQ" + "qIi" * 4 + "IIII112x"
#: fuse_out_header + fuse_statx_out
STATX_REPLY: Final = Struct("=IiQ" + "QII16x" + _STATX)

_SECOND: Final = 1_000_000_000
_unpack_header = IN_HEADER.unpack_from
_pack_entry = ENTRY_REPLY.pack
_pack_attr = ATTR_REPLY.pack
_pack_out_header = OUT_HEADER.pack


def _short(what: str, expected: int, found: int) -> MalformedRequest:
    return MalformedRequest(
        f"{what} request too short", expected=f"{expected} bytes", found=f"{found} bytes"
    )


def parse_header(view: memoryview, size: int) -> tuple[int, int, int, int, int]:
    """Return (opcode, unique, nodeid, uid, gid) of a request of ``size`` bytes."""
    if size < 40:
        raise _short("a", 40, size)
    length, opcode, unique, nodeid, uid, gid, _, _, _ = _unpack_header(view)
    if length != size:
        raise MalformedRequest(
            "request length does not match", expected=f"{length} bytes", found=f"{size} bytes"
        )
    return opcode, unique, nodeid, uid, gid


def parse_name(view: memoryview, size: int, start: int = 40) -> bytes:
    """Return the one name that fills the request from ``start``, without its NUL."""
    raw = view[start:size].tobytes()
    if raw.find(b"\0") != len(raw) - 1 or len(raw) < 2:
        raise MalformedRequest("name is empty, unterminated or followed by more")
    if b"/" in raw:
        raise MalformedRequest("name holds a slash")
    if len(raw) > 256:
        raise FsError(errno.ENAMETOOLONG)
    return raw[:-1]


def parse_two_names(view: memoryview, size: int, start: int) -> tuple[bytes, bytes]:
    """Return the two names of RENAME and RENAME2."""
    raw = view[start:size].tobytes()
    parts = raw.split(b"\0")
    if len(parts) != 3 or parts[2] or not parts[0] or not parts[1]:
        raise MalformedRequest("expected two NUL-terminated names")
    if b"/" in raw:
        raise MalformedRequest("name holds a slash")
    if len(parts[0]) > NAME_MAX or len(parts[1]) > NAME_MAX:
        raise FsError(errno.ENAMETOOLONG)
    return parts[0], parts[1]


def parse_init(view: memoryview, size: int) -> tuple[int, int, int, int]:
    """Return (major, minor, max_readahead, flags)."""
    if size < 40 + INIT_IN.size:
        raise _short("INIT", 40 + INIT_IN.size, size)
    major, minor, readahead, flags = INIT_IN.unpack_from(view, 40)
    return major, minor, readahead, flags


def parse_forget(view: memoryview, size: int) -> int:
    """Return the count of lookups to forget."""
    if size < 48:
        raise _short("FORGET", 48, size)
    return int(FORGET_IN.unpack_from(view, 40)[0])


def parse_batch_forget(view: memoryview, size: int) -> list[tuple[int, int]]:
    """Return (nodeid, nlookup) pairs."""
    if size < 48:
        raise _short("BATCH_FORGET", 48, size)
    count = BATCH_FORGET_IN.unpack_from(view, 40)[0]
    end = 48 + 16 * count
    if end > size:
        raise _short("BATCH_FORGET", end, size)
    return list(FORGET_ONE.iter_unpack(view[48:end]))


def parse_setattr(view: memoryview, size: int) -> SetAttr:
    """Return the changes; ``mode`` is reduced to its permission bits."""
    if size < 128:
        raise _short("SETATTR", 128, size)
    (
        valid, _, _, length, _, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
        mode, _, uid, gid, _,
    ) = SETATTR_IN.unpack_from(view, 40)  # fmt: skip
    changes = SetAttr()
    if valid & FATTR_MODE:
        changes.mode = mode & 0o7777
    if valid & FATTR_UID:
        changes.uid = uid
    if valid & FATTR_GID:
        changes.gid = gid
    if valid & FATTR_SIZE:
        changes.size = length
    if valid & FATTR_ATIME_NOW:
        changes.atime_ns = -1
    elif valid & FATTR_ATIME:
        changes.atime_ns = _stamp(atime, atime_ns)
    if valid & FATTR_MTIME_NOW:
        changes.mtime_ns = -1
    elif valid & FATTR_MTIME:
        changes.mtime_ns = _stamp(mtime, mtime_ns)
    if valid & FATTR_CTIME:
        changes.ctime_ns = _stamp(ctime, ctime_ns)
    changes.kill_suidgid = bool(valid & FATTR_KILL_SUIDGID)
    return changes


def _stamp(seconds: int, nanoseconds: int) -> int:
    stamp = seconds * _SECOND + nanoseconds
    # -1 means "now" in SetAttr. utimensat(2) can name that very nanosecond of 1969; the one
    # before it is nearer to the truth than today.
    return -2 if stamp == -1 else stamp


def parse_mknod(view: memoryview, size: int) -> tuple[int, int, bytes]:
    """Return (mode with the umask applied, rdev, name)."""
    if size < 56:
        raise _short("MKNOD", 56, size)
    mode, rdev, umask, _ = MKNOD_IN.unpack_from(view, 40)
    return mode & ~umask, rdev, parse_name(view, size, 56)


def parse_mkdir(view: memoryview, size: int) -> tuple[int, bytes]:
    """Return (permission bits with the umask applied, name)."""
    if size < 48:
        raise _short("MKDIR", 48, size)
    mode, umask = MKDIR_IN.unpack_from(view, 40)
    return mode & ~umask & 0o7777, parse_name(view, size, 48)


def parse_tmpfile(view: memoryview, size: int) -> int:
    """Return the permission bits with the umask applied.

    The layout is CREATE's, name included, but a file without a name arrives as "/".
    """
    if size < 56:
        raise _short("TMPFILE", 56, size)
    _, mode, umask, _ = CREATE_IN.unpack_from(view, 40)
    return int(mode & ~umask & 0o7777)


def parse_symlink(view: memoryview, size: int) -> tuple[bytes, bytes]:
    """Return (name, target)."""
    parts = view[40:size].tobytes().split(b"\0")
    if len(parts) != 3 or parts[2] or not parts[0] or not parts[1]:
        raise MalformedRequest("expected a name and a target, both NUL-terminated")
    if b"/" in parts[0]:
        raise MalformedRequest("name holds a slash")
    if len(parts[0]) > NAME_MAX:
        raise FsError(errno.ENAMETOOLONG)
    return parts[0], parts[1]


def parse_link(view: memoryview, size: int) -> tuple[int, bytes]:
    """Return (nodeid of the file, new name)."""
    if size < 48:
        raise _short("LINK", 48, size)
    return LINK_IN.unpack_from(view, 40)[0], parse_name(view, size, 48)


def parse_rename(view: memoryview, size: int) -> tuple[int, bytes, bytes]:
    """Return (nodeid of the new directory, old name, new name)."""
    if size < 48:
        raise _short("RENAME", 48, size)
    new_parent = RENAME_IN.unpack_from(view, 40)[0]
    old, new = parse_two_names(view, size, 48)
    return new_parent, old, new


def parse_rename2(view: memoryview, size: int) -> tuple[int, int, bytes, bytes]:
    """Return (nodeid of the new directory, flags, old name, new name)."""
    if size < 56:
        raise _short("RENAME2", 56, size)
    new_parent, flags, _ = RENAME2_IN.unpack_from(view, 40)
    old, new = parse_two_names(view, size, 56)
    return new_parent, flags, old, new


def parse_read(view: memoryview, size: int) -> tuple[int, int]:
    """Return (offset, count) of READ, READDIR and READDIRPLUS."""
    if size < 80:
        raise _short("READ", 80, size)
    _, offset, count, _, _, _, _ = READ_IN.unpack_from(view, 40)
    return offset, count


def parse_write(view: memoryview, size: int) -> tuple[int, int, memoryview]:
    """Return (offset, write_flags, data); the data is a window into ``view``."""
    if size < 80:
        raise _short("WRITE", 80, size)
    _, offset, count, flags, _, _, _ = WRITE_IN.unpack_from(view, 40)
    if count != size - 80:
        raise _short("WRITE", 80 + count, size)
    return offset, flags, view[80:size]


def parse_fsync(view: memoryview, size: int) -> bool:
    """Return whether only data needs to be durable (fdatasync(2))."""
    if size < 56:
        raise _short("FSYNC", 56, size)
    return bool(FSYNC_IN.unpack_from(view, 40)[1] & FSYNC_FDATASYNC)


def parse_setxattr(view: memoryview, size: int) -> tuple[bytes, bytes, int]:
    """Return (name, value, flags)."""
    if size < 48:
        raise _short("SETXATTR", 48, size)
    count, flags = SETXATTR_IN.unpack_from(view, 40)
    name, nul, value = view[48:size].tobytes().partition(b"\0")
    if not nul or not name or len(value) != count:
        raise MalformedRequest("extended attribute does not match its length")
    return name, value, flags


def parse_getxattr(view: memoryview, size: int) -> tuple[int, bytes]:
    """Return (room for the value, name)."""
    if size < 48:
        raise _short("GETXATTR", 48, size)
    raw = view[48:size].tobytes()
    if raw.find(b"\0") != len(raw) - 1 or len(raw) < 2:
        raise MalformedRequest("name of an extended attribute is empty or unterminated")
    return GETXATTR_IN.unpack_from(view, 40)[0], raw[:-1]


def parse_xattr_name(view: memoryview, size: int) -> bytes:
    """Return the name in REMOVEXATTR; unlike a file's it may hold a slash."""
    raw = view[40:size].tobytes()
    if raw.find(b"\0") != len(raw) - 1 or len(raw) < 2:
        raise MalformedRequest("name of an extended attribute is empty or unterminated")
    return raw[:-1]


def parse_listxattr(view: memoryview, size: int) -> int:
    """Return the room for the list."""
    if size < 48:
        raise _short("LISTXATTR", 48, size)
    return int(GETXATTR_IN.unpack_from(view, 40)[0])


def parse_fallocate(view: memoryview, size: int) -> tuple[int, int, int]:
    """Return (mode, offset, length)."""
    if size < 72:
        raise _short("FALLOCATE", 72, size)
    _, offset, length, mode, _ = FALLOCATE_IN.unpack_from(view, 40)
    return mode, offset, length


def parse_lseek(view: memoryview, size: int) -> tuple[int, int]:
    """Return (offset, whence)."""
    if size < 64:
        raise _short("LSEEK", 64, size)
    _, offset, whence, _ = LSEEK_IN.unpack_from(view, 40)
    return offset, whence


def parse_copy_file_range(view: memoryview, size: int) -> tuple[int, int, int, int]:
    """Return (offset, nodeid of the target, offset there, length)."""
    if size < 96:
        raise _short("COPY_FILE_RANGE", 96, size)
    _, offset, nodeid, _, offset_out, length, _ = COPY_FILE_RANGE_IN.unpack_from(view, 40)
    return offset, nodeid, offset_out, length


def _times(inode: Inode) -> tuple[int, int, int, int, int, int]:
    """Return seconds and nanoseconds of atime, mtime and ctime."""
    mtime = divmod(inode.mtime_ns, _SECOND)
    # A new file has one time in all three; a division of such numbers costs as much as a call.
    atime = mtime if inode.atime_ns == inode.mtime_ns else divmod(inode.atime_ns, _SECOND)
    ctime = mtime if inode.ctime_ns == inode.mtime_ns else divmod(inode.ctime_ns, _SECOND)
    return *atime, *mtime, *ctime


def dump_error(unique: int, errno_: int) -> bytes:
    """Return a reply that carries only an errno (positive here, negative on the wire)."""
    return _pack_out_header(16, -errno_, unique)


def dump_ok(unique: int) -> bytes:
    """Return an empty success."""
    return _pack_out_header(16, 0, unique)


def dump_data(unique: int, data: bytes) -> bytes:
    """Return a reply with a body of bytes."""
    return _pack_out_header(16 + len(data), 0, unique) + data


def dump_init(
    unique: int, *, flags: int, max_readahead: int, max_write: int, max_background: int
) -> bytes:
    """Return the answer to INIT."""
    return _pack_out_header(80, 0, unique) + INIT_OUT.pack(
        MAJOR,
        MINOR,
        max_readahead,
        flags,
        max_background,
        max_background * 3 // 4,
        max_write,
        1,
        (max_write + 4095) // 4096,
        0,
        0,
    )


def dump_entry(unique: int, inode: Inode, valid_s: int, block_size: int) -> bytes:
    """Return the reply that gives a name its inode."""
    size = inode.size
    blocks = inode.blocks
    atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns = _times(inode)
    ino = inode.ino
    return _pack_entry(
        144, 0, unique,
        ino, 0, valid_s, valid_s, 0, 0,
        ino, size, blocks if blocks >= 0 else (size + 511) >> 9,
        atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
        inode.mode, inode.nlink, inode.uid, inode.gid, inode.rdev, block_size, 0,
    )  # fmt: skip


def dump_no_entry(unique: int, valid_s: int) -> bytes:
    """Return the reply that lets the kernel remember that a name does not exist."""
    return _pack_entry(
        144, 0, unique, 0, 0, valid_s, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip


def dump_attr(unique: int, inode: Inode, valid_s: int, block_size: int) -> bytes:
    """Return the reply to GETATTR and SETATTR."""
    size = inode.size
    blocks = inode.blocks
    atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns = _times(inode)
    return _pack_attr(
        120, 0, unique,
        valid_s, 0, 0,
        inode.ino, size, blocks if blocks >= 0 else (size + 511) >> 9,
        atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
        inode.mode, inode.nlink, inode.uid, inode.gid, inode.rdev, block_size, 0,
    )  # fmt: skip


def dump_created(unique: int, inode: Inode, valid_s: int, block_size: int) -> bytes:
    """Return the reply to TMPFILE (and CREATE): an entry and an open file in one."""
    entry = dump_entry(unique, inode, valid_s, block_size)
    return _pack_out_header(160, 0, unique) + entry[16:] + OPEN_REPLY.pack(0, 0, 0, 0, 0, 0)[16:]


def dump_statx(unique: int, inode: Inode, valid_s: int, block_size: int) -> bytes:
    """Return the reply to STATX: what GETATTR says, and the time of birth."""
    size = inode.size
    blocks = inode.blocks
    atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns = _times(inode)
    btime, btime_ns = divmod(inode.btime_ns, _SECOND)
    mask = STATX_BASIC_STATS | (STATX_BTIME if inode.btime_ns else 0)
    rdev = inode.rdev
    return STATX_REPLY.pack(
        304, 0, unique,
        valid_s, 0, 0,
        mask, block_size, 0, inode.nlink, inode.uid, inode.gid, inode.mode, 0,
        inode.ino, size, blocks if blocks >= 0 else (size + 511) >> 9, 0,
        atime, atime_ns, 0, btime, btime_ns, 0, ctime, ctime_ns, 0, mtime, mtime_ns, 0,
        (rdev >> 8) & 0xFFF, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00), 0, 0,
    )  # fmt: skip


def dump_open(unique: int, open_flags: int) -> bytes:
    """Return the reply to OPEN and OPENDIR; file handles are always 0."""
    return OPEN_REPLY.pack(32, 0, unique, 0, open_flags, 0)


def dump_write(unique: int, count: int) -> bytes:
    """Return the reply to WRITE and COPY_FILE_RANGE."""
    return WRITE_REPLY.pack(24, 0, unique, count, 0)


def dump_u64(unique: int, number: int) -> bytes:
    """Return the reply to LSEEK and COPY_FILE_RANGE_64."""
    return LSEEK_REPLY.pack(24, 0, unique, number)


def dump_size(unique: int, count: int) -> bytes:
    """Return the size that an extended attribute or their list needs."""
    return SIZE_REPLY.pack(24, 0, unique, count, 0)


def dump_statfs(unique: int, st: StatFs) -> bytes:
    """Return the reply to STATFS."""
    return STATFS_REPLY.pack(
        96, 0, unique,
        st.blocks, st.blocks_free, st.blocks_free, st.files, st.files_free,
        st.block_size, st.name_max, st.block_size, 0,
    )  # fmt: skip


def dirent_bytes(name: bytes) -> int:
    """Return the size of a directory entry, padded to eight bytes."""
    return (24 + len(name) + 7) & ~7


def direntplus_bytes(name: bytes) -> int:
    """Return the size of a READDIRPLUS entry, padded to eight bytes."""
    return (152 + len(name) + 7) & ~7


def dump_dirent_into(
    buf: bytearray, at: int, ino: int, cookie: int, name: bytes, dtype: int
) -> int:
    """Write one directory entry at ``at``; return the position after it."""
    count = len(name)
    DIRENT.pack_into(buf, at, ino, cookie, count, dtype)
    end = at + 24 + count
    after = (end + 7) & ~7
    buf[at + 24 : after] = name + bytes(after - end)
    return after


def dump_direntplus_into(
    buf: bytearray,
    at: int,
    inode: Inode | None,
    ino: int,
    cookie: int,
    name: bytes,
    dtype: int,
    valid_s: int,
    block_size: int,
) -> int:
    """Write one READDIRPLUS entry at ``at``; return the position after it.

    Without an inode the entry says only what READDIR says, and no lookup is counted.
    """
    count = len(name)
    if inode is None:
        DIRENTPLUS.pack_into(
            buf, at, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ino, cookie, count, dtype,
        )  # fmt: skip
    else:
        size = inode.size
        blocks = inode.blocks
        atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns = _times(inode)
        DIRENTPLUS.pack_into(
            buf, at,
            ino, 0, valid_s, valid_s, 0, 0,
            ino, size, blocks if blocks >= 0 else (size + 511) >> 9,
            atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
            inode.mode, inode.nlink, inode.uid, inode.gid, inode.rdev, block_size, 0,
            ino, cookie, count, dtype,
        )  # fmt: skip
    end = at + 152 + count
    after = (end + 7) & ~7
    buf[at + 152 : after] = name + bytes(after - end)
    return after
