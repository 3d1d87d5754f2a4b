# SPDX-License-Identifier: Apache-2.0
"""The bytes that travel over ``/dev/fuse``: parsing requests, dumping replies. No I/O.

Above: ``operations`` and ``session``. Below: ``abi`` (numbers and layouts, see fuse(4)),
``vfs.api`` for the :class:`~serdab.vfs.api.Inode`.

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
from typing import Final

from serdab.errors import FormatError, FsError
from serdab.fuse import abi
from serdab.vfs.api import NOW_NS, Inode, SetAttr, StatFs


class MalformedRequest(FormatError):
    """A request whose bytes do not have the layout of its opcode."""


_SECOND: Final = 1_000_000_000
_FORMAT: Final = 0o170000
_REGULAR: Final = 0o100000
_SLASH: Final = ord("/")  # to look for a number in bytes takes a third of looking for bytes
_PADDING: Final = tuple(bytes(count) for count in range(8))
_unpack_header = abi.IN_HEADER_START.unpack_from
_unpack_read = abi.READ_IN_START.unpack_from
_unpack_write = abi.WRITE_IN_START.unpack_from
_pack_entry = abi.ENTRY_REPLY.pack
_pack_attr = abi.ATTR_REPLY.pack
_pack_out_header = abi.OUT_HEADER.pack


def _short(what: str, expected: int, found: int) -> MalformedRequest:
    return MalformedRequest(
        f"{what} request too short", expected=f"{expected} bytes", found=f"{found} bytes"
    )


def parse_header(view: memoryview, size: int) -> tuple[int, int, int, int, int]:
    """Return (opcode, unique, nodeid, uid, gid) of a request of ``size`` bytes."""
    if size < 40:
        raise _short("a", 40, size)
    length, opcode, unique, nodeid, uid, gid = _unpack_header(view)
    if length != size:
        raise MalformedRequest(
            "request length does not match", expected=f"{length} bytes", found=f"{size} bytes"
        )
    return opcode, unique, nodeid & abi.NODEID_MASK, uid, gid


def parse_name(view: memoryview, size: int, start: int = 40) -> bytes:
    """Return the one name that fills the request from ``start``, without its NUL."""
    raw = view[start:size].tobytes()
    if raw.find(b"\0") != len(raw) - 1 or len(raw) < 2:
        raise MalformedRequest("name is empty, unterminated or followed by more")
    if _SLASH in raw:
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
    if _SLASH in raw:
        raise MalformedRequest("name holds a slash")
    if len(parts[0]) > abi.NAME_MAX or len(parts[1]) > abi.NAME_MAX:
        raise FsError(errno.ENAMETOOLONG)
    return parts[0], parts[1]


def parse_init(view: memoryview, size: int) -> tuple[int, int, int, int]:
    """Return (major, minor, max_readahead, flags)."""
    if size < 40 + abi.INIT_IN.size:
        raise _short("INIT", 40 + abi.INIT_IN.size, size)
    major, minor, readahead, flags = abi.INIT_IN.unpack_from(view, 40)
    return major, minor, readahead, flags


def parse_forget(view: memoryview, size: int) -> int:
    """Return the count of lookups to forget."""
    if size < 48:
        raise _short("FORGET", 48, size)
    return int(abi.FORGET_IN.unpack_from(view, 40)[0])


def parse_interrupt(view: memoryview, size: int) -> int:
    """Return the number of the request whose caller got a signal."""
    if size < 48:
        raise _short("INTERRUPT", 48, size)
    return int.from_bytes(view[40:48], "little")


def parse_pid(view: memoryview) -> int:
    """Return which thread asks, as the mount's PID namespace knows it; 0: that knows it not."""
    return int.from_bytes(view[32:36], "little")


def parse_batch_forget(view: memoryview, size: int) -> list[tuple[int, int]]:
    """Return (nodeid, nlookup) pairs."""
    if size < 48:
        raise _short("BATCH_FORGET", 48, size)
    count = abi.BATCH_FORGET_IN.unpack_from(view, 40)[0]
    end = 48 + 16 * count
    if end > size:
        raise _short("BATCH_FORGET", end, size)
    return list(abi.FORGET_ONE.iter_unpack(view[48:end]))


def parse_setattr(view: memoryview, size: int) -> SetAttr:
    """Return the changes; ``mode`` is reduced to its permission bits."""
    if size < 128:
        raise _short("SETATTR", 128, size)
    (
        valid, _, _, length, _, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
        mode, _, uid, gid, _,
    ) = abi.SETATTR_IN.unpack_from(view, 40)  # fmt: skip
    changes = SetAttr()
    if valid & abi.FATTR_MODE:
        changes.mode = mode & 0o7777
    if valid & abi.FATTR_UID:
        changes.uid = uid
    if valid & abi.FATTR_GID:
        changes.gid = gid
    if valid & abi.FATTR_SIZE:
        changes.size = length
    if valid & abi.FATTR_ATIME_NOW:
        changes.atime_ns = NOW_NS
    elif valid & abi.FATTR_ATIME:
        changes.atime_ns = atime * _SECOND + atime_ns
    if valid & abi.FATTR_MTIME_NOW:
        changes.mtime_ns = NOW_NS
    elif valid & abi.FATTR_MTIME:
        changes.mtime_ns = mtime * _SECOND + mtime_ns
    if valid & abi.FATTR_CTIME:
        changes.ctime_ns = ctime * _SECOND + ctime_ns
    # With FUSE_HANDLE_KILLPRIV_V2 one that sets nothing is sent for this alone: by chown(2) of
    # neither owner nor group, and before a change of content by whoever may not leave the bits.
    changes.kill_suidgid = bool(valid & abi.FATTR_KILL_SUIDGID) or not valid & abi.FATTR_ANYTHING
    return changes


def parse_mknod(view: memoryview, size: int) -> tuple[int, int, int, bytes]:
    """Return (mode, umask, rdev, name)."""
    if size < 56:
        raise _short("MKNOD", 56, size)
    mode, rdev, umask, _ = abi.MKNOD_IN.unpack_from(view, 40)
    return mode, umask, rdev, parse_name(view, size, 56)


def parse_mkdir(view: memoryview, size: int) -> tuple[int, int, bytes]:
    """Return (permission bits, umask, name)."""
    if size < 48:
        raise _short("MKDIR", 48, size)
    mode, umask = abi.MKDIR_IN.unpack_from(view, 40)
    return mode & 0o7777, umask, parse_name(view, size, 48)


def parse_tmpfile(view: memoryview, size: int) -> tuple[int, int]:
    """Return (permission bits, umask).

    The layout is CREATE's, name included, but a file without a name arrives as "/".
    """
    if size < 56:
        raise _short("TMPFILE", 56, size)
    _, mode, umask, _ = abi.CREATE_IN.unpack_from(view, 40)
    return mode & 0o7777, umask


def parse_symlink(view: memoryview, size: int) -> tuple[bytes, bytes]:
    """Return (name, target)."""
    parts = view[40:size].tobytes().split(b"\0")
    if len(parts) != 3 or parts[2] or not parts[0] or not parts[1]:
        raise MalformedRequest("expected a name and a target, both NUL-terminated")
    if _SLASH in parts[0]:
        raise MalformedRequest("name holds a slash")
    if len(parts[0]) > abi.NAME_MAX:
        raise FsError(errno.ENAMETOOLONG)
    return parts[0], parts[1]


def parse_link(view: memoryview, size: int) -> tuple[int, bytes]:
    """Return (nodeid of the file, new name)."""
    if size < 48:
        raise _short("LINK", 48, size)
    return abi.LINK_IN.unpack_from(view, 40)[0], parse_name(view, size, 48)


def parse_rename(view: memoryview, size: int) -> tuple[int, bytes, bytes]:
    """Return (nodeid of the new directory, old name, new name)."""
    if size < 48:
        raise _short("RENAME", 48, size)
    new_parent = abi.RENAME_IN.unpack_from(view, 40)[0] & abi.NODEID_MASK
    old, new = parse_two_names(view, size, 48)
    return new_parent, old, new


def parse_rename2(view: memoryview, size: int) -> tuple[int, int, bytes, bytes]:
    """Return (nodeid of the new directory, flags, old name, new name)."""
    if size < 56:
        raise _short("RENAME2", 56, size)
    new_parent, flags, _ = abi.RENAME2_IN.unpack_from(view, 40)
    old, new = parse_two_names(view, size, 56)
    return new_parent & abi.NODEID_MASK, flags, old, new


def parse_read(view: memoryview, size: int) -> tuple[int, int]:
    """Return (offset, count) of READ, READDIR and READDIRPLUS."""
    if size < 80:
        raise _short("READ", 80, size)
    offset, count = _unpack_read(view, 40)
    return offset, count


def parse_write(view: memoryview, size: int) -> tuple[int, int, memoryview]:
    """Return (offset, write_flags, data); the data is a window into ``view``."""
    if size < 80:
        raise _short("WRITE", 80, size)
    offset, count, flags = _unpack_write(view, 40)
    if count != size - 80:
        raise _short("WRITE", 80 + count, size)
    return offset, flags, view[80:size]


def parse_fsync(view: memoryview, size: int) -> bool:
    """Return whether only data needs to be durable (fdatasync(2))."""
    if size < 56:
        raise _short("FSYNC", 56, size)
    return bool(abi.FSYNC_IN.unpack_from(view, 40)[1] & abi.FSYNC_FDATASYNC)


def parse_setxattr(view: memoryview, size: int, *, is_long: bool) -> tuple[bytes, bytes, int, int]:
    """Return (name, value, flags, SETXATTR_* flags).

    ``is_long``: FUSE_SETXATTR_EXT was agreed on (Linux 5.13).
    """
    start = 56 if is_long else 48
    if size < start:
        raise _short("SETXATTR", start, size)
    count, flags = abi.SETXATTR_IN.unpack_from(view, 40)
    more = abi.SETXATTR_EXT_IN.unpack_from(view, 48)[0] if is_long else 0
    name, nul, value = view[start:size].tobytes().partition(b"\0")
    if not nul or not name or len(value) != count:
        raise MalformedRequest("extended attribute does not match its length")
    return name, value, flags, more


def parse_getxattr(view: memoryview, size: int) -> tuple[int, bytes]:
    """Return (room for the value, name)."""
    if size < 48:
        raise _short("GETXATTR", 48, size)
    raw = view[48:size].tobytes()
    if raw.find(b"\0") != len(raw) - 1 or len(raw) < 2:
        raise MalformedRequest("name of an extended attribute is empty or unterminated")
    return abi.GETXATTR_IN.unpack_from(view, 40)[0], raw[:-1]


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
    return int(abi.GETXATTR_IN.unpack_from(view, 40)[0])


def parse_fallocate(view: memoryview, size: int) -> tuple[int, int, int]:
    """Return (mode, offset, length)."""
    if size < 72:
        raise _short("FALLOCATE", 72, size)
    _, offset, length, mode, _ = abi.FALLOCATE_IN.unpack_from(view, 40)
    return mode, offset, length


def parse_lseek(view: memoryview, size: int) -> tuple[int, int]:
    """Return (offset, whence)."""
    if size < 64:
        raise _short("LSEEK", 64, size)
    _, offset, whence, _ = abi.LSEEK_IN.unpack_from(view, 40)
    return offset, whence


def parse_copy_file_range(view: memoryview, size: int) -> tuple[int, int, int, int]:
    """Return (offset, nodeid of the target, offset there, length)."""
    if size < 96:
        raise _short("COPY_FILE_RANGE", 96, size)
    _, offset, nodeid, _, offset_out, length, _ = abi.COPY_FILE_RANGE_IN.unpack_from(view, 40)
    return offset, nodeid, offset_out, length


def parse_retrieved(view: memoryview, size: int) -> bytes:
    """Return what the kernel was asked for by :func:`dump_retrieve`."""
    if size < 80:
        raise _short("NOTIFY_REPLY", 80, size)
    count = abi.RETRIEVE_IN.unpack_from(view, 40)[2]
    if count != size - 80:
        raise _short("NOTIFY_REPLY", 80 + count, size)
    return view[80:size].tobytes()


def _times(inode: Inode) -> tuple[int, int, int, int, int, int]:
    """Return seconds and nanoseconds of atime, mtime and ctime."""
    stamp = inode.mtime_ns
    mtime, mtime_ns = atime, atime_ns = ctime, ctime_ns = divmod(stamp, _SECOND)
    # A new file has one time in all three; a division of such numbers costs as much as a call.
    if inode.atime_ns != stamp:
        atime, atime_ns = divmod(inode.atime_ns, _SECOND)
    if inode.ctime_ns != stamp:
        ctime, ctime_ns = divmod(inode.ctime_ns, _SECOND)
    return atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns


def _attr_valid_s(inode: Inode, valid_s: int) -> int:
    """Return how long attributes count: those of a file without any content not at all.

    What the kernel holds of it and has not written (see ``unwritten``) would not show in them.
    """
    is_empty = inode.blocks == 0 and inode.size and inode.mode & _FORMAT == _REGULAR
    return 0 if is_empty else valid_s


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
    return _pack_out_header(80, 0, unique) + abi.INIT_OUT.pack(
        abi.MAJOR,
        abi.MINOR,
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
    attr_valid_s = valid_s if blocks else _attr_valid_s(inode, valid_s)
    atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns = _times(inode)
    ino = inode.ino
    return _pack_entry(
        144, 0, unique,
        ino, 0, valid_s, attr_valid_s, 0, 0,
        ino, size, blocks if blocks >= 0 else (size + 511) >> 9,
        atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
        inode.mode, inode.nlink, inode.uid, inode.gid, inode.rdev, block_size, 0,
    )  # fmt: skip


def dump_root_entry(unique: int, inode: Inode, valid_s: int, block_size: int) -> bytes:
    """Return the reply that gives a name the second inode of the root (see ROOT_ALIAS)."""
    reply = bytearray(dump_entry(unique, inode, valid_s, block_size))
    abi.NODEID.pack_into(reply, 16, abi.ROOT_ALIAS_NODEID)
    return bytes(reply)


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
    attr_valid_s = valid_s if blocks else _attr_valid_s(inode, valid_s)
    atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns = _times(inode)
    return _pack_attr(
        120, 0, unique,
        attr_valid_s, 0, 0,
        inode.ino, size, blocks if blocks >= 0 else (size + 511) >> 9,
        atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
        inode.mode, inode.nlink, inode.uid, inode.gid, inode.rdev, block_size, 0,
    )  # fmt: skip


def dump_created(unique: int, inode: Inode, valid_s: int, block_size: int) -> bytes:
    """Return the reply to TMPFILE (and CREATE): an entry and an open file in one."""
    entry = dump_entry(unique, inode, valid_s, block_size)
    return (
        _pack_out_header(160, 0, unique) + entry[16:] + abi.OPEN_REPLY.pack(0, 0, 0, 0, 0, 0)[16:]
    )


def dump_statx(unique: int, inode: Inode, valid_s: int, block_size: int) -> bytes:
    """Return the reply to STATX: what GETATTR says, and the time of birth."""
    size = inode.size
    blocks = inode.blocks
    attr_valid_s = valid_s if blocks else _attr_valid_s(inode, valid_s)
    atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns = _times(inode)
    btime, btime_ns = divmod(inode.btime_ns, _SECOND)
    mask = abi.STATX_BASIC_STATS | (abi.STATX_BTIME if inode.btime_ns else 0)
    rdev = inode.rdev
    return abi.STATX_REPLY.pack(
        304, 0, unique,
        attr_valid_s, 0, 0,
        mask, block_size, 0, inode.nlink, inode.uid, inode.gid, inode.mode, 0,
        inode.ino, size, blocks if blocks >= 0 else (size + 511) >> 9, 0,
        atime, atime_ns, 0, btime, btime_ns, 0, ctime, ctime_ns, 0, mtime, mtime_ns, 0,
        (rdev >> 8) & 0xFFF, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00), 0, 0,
    )  # fmt: skip


def dump_open(unique: int, open_flags: int) -> bytes:
    """Return the reply to OPEN and OPENDIR; file handles are always 0."""
    return abi.OPEN_REPLY.pack(32, 0, unique, 0, open_flags, 0)


def dump_write(unique: int, count: int) -> bytes:
    """Return the reply to WRITE and COPY_FILE_RANGE."""
    return abi.WRITE_REPLY.pack(24, 0, unique, count, 0)


def dump_u64(unique: int, number: int) -> bytes:
    """Return the reply to LSEEK and COPY_FILE_RANGE_64."""
    return abi.LSEEK_REPLY.pack(24, 0, unique, number)


def dump_size(unique: int, count: int) -> bytes:
    """Return the size that an extended attribute or their list needs."""
    return abi.SIZE_REPLY.pack(24, 0, unique, count, 0)


def dump_retrieve(unique: int, nodeid: int, offset: int, size: int) -> bytes:
    """Return a note that has the kernel tell what it holds of a file, in a NOTIFY_REPLY that comes
    with ``unique``: up to the first page that it does not hold, and the file's end."""
    return abi.RETRIEVE_NOTE.pack(48, abi.NOTIFY_RETRIEVE, 0, unique, nodeid, offset, size, 0)


def dump_statfs(unique: int, st: StatFs) -> bytes:
    """Return the reply to STATFS."""
    return abi.STATFS_REPLY.pack(
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
    abi.DIRENT.pack_into(buf, at, ino, cookie, count, dtype)
    end = at + 24 + count
    after = (end + 7) & ~7
    buf[at + 24 : after] = name + _PADDING[after - end]
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
        abi.DIRENTPLUS.pack_into(
            buf, at, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ino, cookie, count, dtype,
        )  # fmt: skip
    else:
        size = inode.size
        blocks = inode.blocks
        attr_valid_s = valid_s if blocks else _attr_valid_s(inode, valid_s)
        atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns = _times(inode)
        abi.DIRENTPLUS.pack_into(
            buf, at,
            ino, 0, valid_s, attr_valid_s, 0, 0,
            ino, size, blocks if blocks >= 0 else (size + 511) >> 9,
            atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
            inode.mode, inode.nlink, inode.uid, inode.gid, inode.rdev, block_size, 0,
            ino, cookie, count, dtype,
        )  # fmt: skip
    end = at + 152 + count
    after = (end + 7) & ~7
    buf[at + 152 : after] = name + _PADDING[after - end]
    return after
