# SPDX-License-Identifier: Apache-2.0
"""The key space of a tree: what its items mean, and their codecs. Pure.

On-disk format: a key is ``ino u64 big-endian | type u8 | rest``, so an inode stands together::

    type        rest                     value
    1 INODE     -                        the record below
    2 INLINE    -                        content of a small file, or the target of a symlink
    3 XATTR     name                     0x01 and the value; empty: removed (lower has it)
    4 DIRENT    position u64 BE, name    ino u64, dtype u8; empty: whiteout
    5 EXTENTS   group u32 BE             of GROUP consecutive chunks, trailing absent ones cut
    6 ORPHAN    -                        empty; ino in use without a name (key ino = the orphan)
    7 RECORDS   (ino = 0) segment u32,   who owns the records of a segment: runs of
                number u32 BE            (ino u64, chunk u32, offset u32, stored u32)
    8 PACK      (ino = 0) pack u32 BE    32-byte key identifier of a pack of an image
    9 SUPER     (ino = 0)                max_ino u64, files u64, bytes u64 of an image

The position of a name is ``crypto.hashes.name_hash``. INODE record (little-endian, 84 bytes)::

    mode u32 | nlink u32 | uid u32 | gid u32 | rdev u32 | flags u32 | size u64 |
    atime i64 | mtime i64 | ctime i64 | btime i64 | lower_limit u64 | reserved u64 (zero)

``flags``: 1 INLINE (content in the INLINE item), 2 LOWER (bytes below ``lower_limit`` that no
extent covers are the lower layer's, same ino, same offset), 4 SPARSE (may have holes: what it
takes is to be counted).
"""

from __future__ import annotations

import stat
import struct
from typing import Final

from serdab.crypto.hashes import name_hash
from serdab.errors import FormatError
from serdab.vfs.api import Inode
from serdab.vfs.layer import WHITEOUT, Dirent

T_INODE: Final = 1
T_INLINE: Final = 2
T_XATTR: Final = 3
T_DIRENT: Final = 4
T_EXTENTS: Final = 5
T_ORPHAN: Final = 6
T_RECORDS: Final = 7
T_PACK: Final = 8
T_SUPER: Final = 9

GROUP: Final = 64
MAX_LINKS: Final = 1 << 31
MAX_GROUP: Final = (1 << 26) - 1  # chunks are numbered in 32 bits
INLINE_MAX: Final = 2048
NAME_MAX: Final = 255
XATTR_MAX: Final = 65536
MAX_INO: Final = 1 << 62
MAX_FILE_BYTES: Final = (1 << 63) - 1

F_INLINE: Final = 1
F_LOWER: Final = 2
F_SPARSE: Final = 4
_KNOWN_FLAGS: Final = F_INLINE | F_LOWER | F_SPARSE

_HEAD: Final = struct.Struct(">QB")
_SUB32: Final = struct.Struct(">QBI")
_RECORDS: Final = struct.Struct(">QBII")
_ORPHAN: Final = struct.Struct(">QBQ")
_DIRENT_KEY: Final = struct.Struct(">QBQ")
_INODE: Final = struct.Struct("<IIIIIIQqqqqQQ")
_DIRENT: Final = struct.Struct("<QB")
_SLASH: Final = ord("/")
SUPER: Final = struct.Struct("<QQQ")
OWNER: Final = struct.Struct("<QIII")

#: The types of inodes, as they stand in a directory entry and above bit 12 of a mode.
_DTYPES: Final = frozenset(
    kind >> 12
    for kind in (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFCHR,
        stat.S_IFBLK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
    )
)


def key(ino: int, kind: int) -> bytes:
    """Return the key of the one item of a kind."""
    return _HEAD.pack(ino, kind)


def xattr_key(ino: int, name: bytes) -> bytes:
    return _HEAD.pack(ino, T_XATTR) + name


def dirent_key(parent: int, name: bytes) -> bytes:
    return _DIRENT_KEY.pack(parent, T_DIRENT, name_hash(name)) + name


def dirent_start(parent: int, position: int) -> bytes:
    """Return the first possible key of a position."""
    return _DIRENT_KEY.pack(parent, T_DIRENT, position)


def group_key(ino: int, group: int) -> bytes:
    return _SUB32.pack(ino, T_EXTENTS, group)


def records_key(segment: int, number: int) -> bytes:
    return _RECORDS.pack(0, T_RECORDS, segment, number)


def orphan_key(ino: int) -> bytes:
    return _ORPHAN.pack(0, T_ORPHAN, ino)


def pack_key(pack: int) -> bytes:
    return _SUB32.pack(0, T_PACK, pack)


def kind_range(ino: int, kind: int) -> tuple[bytes, bytes]:
    """Return the range of all keys of one kind."""
    return _HEAD.pack(ino, kind), _HEAD.pack(ino, kind + 1)


def parse_dirent_key(raw: bytes) -> tuple[int, bytes]:
    """Return (position, name), checked."""
    name = raw[_DIRENT_KEY.size :]
    if not 1 <= len(name) <= NAME_MAX or _SLASH in name or 0 in name or name in (b".", b".."):
        raise FormatError("directory entry with an impossible name")
    position: int = _DIRENT_KEY.unpack_from(raw)[2]
    if position != name_hash(name):
        raise FormatError("directory entry at the wrong position")
    return position, name


def dump_dirent(entry: Dirent) -> bytes:
    return _DIRENT.pack(*entry) if entry.ino else b""


def parse_dirent(raw: bytes) -> Dirent:
    if not raw:
        return WHITEOUT
    if len(raw) != _DIRENT.size:
        raise FormatError("directory entry of the wrong length", found=str(len(raw)))
    ino, dtype = pair = _DIRENT.unpack(raw)
    if not 1 <= ino <= MAX_INO or dtype not in _DTYPES:
        raise FormatError("directory entry that names no possible inode")
    return tuple.__new__(Dirent, pair)  # half of what calling it takes, and one for each lookup


def dump_inode(inode: Inode) -> bytes:
    return _INODE.pack(
        inode.mode,
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.rdev,
        inode.flags,
        inode.size,
        inode.atime_ns,
        inode.mtime_ns,
        inode.ctime_ns,
        inode.btime_ns,
        inode.lower_limit,
        0,
    )


def parse_inode(ino: int, raw: bytes) -> Inode:
    """Return the inode, checked."""
    if len(raw) != _INODE.size:
        raise FormatError("inode record of the wrong length", found=str(len(raw)))
    (
        mode, nlink, uid, gid, rdev, flags, size, atime_ns, mtime_ns, ctime_ns, btime_ns,
        lower_limit, reserved,
    ) = _INODE.unpack(raw)  # fmt: skip
    if (
        mode >> 12 not in _DTYPES
        or size > MAX_FILE_BYTES
        or nlink > MAX_LINKS
        or flags & ~_KNOWN_FLAGS
        or reserved
    ):
        raise FormatError("inode record with an impossible field", subject=f"inode {ino}")
    inode = Inode.__new__(Inode)  # each field is set once
    inode.ino = ino
    inode.mode = mode
    inode.nlink = nlink
    inode.uid = uid
    inode.gid = gid
    inode.rdev = rdev
    inode.flags = flags
    inode.size = size
    inode.atime_ns = atime_ns
    inode.mtime_ns = mtime_ns
    inode.ctime_ns = ctime_ns
    inode.btime_ns = btime_ns
    inode.lower_limit = lower_limit
    inode.blocks = -1
    return inode


def copy_inode(source: Inode, into: Inode) -> None:
    """Make one inode object say what another says."""
    for field in Inode.__slots__:
        setattr(into, field, getattr(source, field))
