# SPDX-License-Identifier: Apache-2.0
"""The key space of a tree: what its items mean, and their codecs. Pure.

On-disk format: a key is ``ino u64 big-endian | type u8 | rest``, so an inode stands together::

    type        rest                     value
    1 INODE     -                        the record below
    2 INLINE    -                        content of a small file (see inlineform for images of
                                         version 2), or the target of a symlink
    3 XATTR     name                     0x01 and the value; empty: removed (lower has it)
    4 DIRENT    position u64 BE, name    ino u64, dtype u8; empty: whiteout
    5 EXTENTS   group u32 BE             of GROUP consecutive chunks, trailing absent ones cut
    6 ORPHAN    -                        empty; ino in use without a name (key ino = the orphan)
    7 RECORDS   (ino = 0) segment u32,   who owns the records of a segment: runs of
                number u32 BE            (ino u64, chunk u32, offset u32, stored u32)
    8 PACK      (ino = 0) pack u32 BE    32-byte key identifier of a pack of an image
    9 SUPER     (ino = 0)                max_ino u64, files u64, bytes u64 of an image; in version
                                         2 where its padding lies, too: offset u64, length u64
    10 SHARED   (ino = 0) segment u32,   how many extents name a record, u32, at least 2
                number u32 BE

The position of a name is ``crypto.hashes.name_hash``. INODE record (little-endian, 84 bytes)::

    mode u32 | nlink u32 | uid u32 | gid u32 | rdev u32 | flags u32 | size u64 |
    atime i64 | mtime i64 | ctime i64 | btime i64 | lower_limit u64 | parent u64

``flags``: 1 INLINE (content in the INLINE item), 2 LOWER (bytes below ``lower_limit`` that no
extent covers are the lower layer's, same ino, same offset), 4 SPARSE (may have holes: what it
takes is to be counted).

Format version 2 has more of a record than version 1, where all of this is zero and refused:

* ``parent``, of a directory: the inode that its name is in (of the root: itself). 0: not recorded,
  of a directory that a volume took over from version 1. Of anything else it is zero.
* Bits 8 to 12 of ``flags``, of a regular file: log2 of the size of its records; 0: the chunk size
  of the image or volume. Fixed until the file is truncated to nothing.
* Attributes named in ``ACL_NAMES`` are POSIX ACLs (see ``acl``).
* SHARED items, and of each owner of such a record a RECORDS item of one run, whose key goes on with
  ino u64 BE and chunk u32 BE.
"""

from __future__ import annotations

import stat
import struct
from typing import Final

from serdab.crypto.hashes import name_hash
from serdab.errors import FormatError
from serdab.vfs.acl import ACL_NAMES, check_acl
from serdab.vfs.api import ROOT_INO, Inode
from serdab.vfs.layer import WHITEOUT, Dirent

V1: Final = 1
V2: Final = 2
"""Versions of the format."""

T_INODE: Final = 1
T_INLINE: Final = 2
T_XATTR: Final = 3
T_DIRENT: Final = 4
T_EXTENTS: Final = 5
T_ORPHAN: Final = 6
T_RECORDS: Final = 7
T_PACK: Final = 8
T_SUPER: Final = 9
T_SHARED: Final = 10

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
_RECORD_SHIFT: Final = 8
_RECORD_MASK: Final = 31 << _RECORD_SHIFT
LEAST_RECORD: Final = 12
MOST_RECORD: Final = 20
"""log2 of the sizes that the records of a file may have."""

_MARKED: Final = 1

_HEAD: Final = struct.Struct(">QB")
_SUB32: Final = struct.Struct(">QBI")
_RECORDS: Final = struct.Struct(">QBII")
_OWNER_KEY: Final = struct.Struct(">QBIIQI")
_SHARED: Final = struct.Struct("<I")
_ORPHAN: Final = struct.Struct(">QBQ")
_DIRENT_KEY: Final = struct.Struct(">QBQ")
_INODE: Final = struct.Struct("<IIIIIIQqqqqQQ")
_DIRENT: Final = struct.Struct("<QB")
_SLASH: Final = ord("/")
SUPER_V1: Final = struct.Struct("<QQQ")
SUPER: Final = struct.Struct("<QQQQQ")
OWNER: Final = struct.Struct("<QIII")

#: The types of inodes, as they stand in a directory entry and above bit 12 of a mode.
_FILE: Final = stat.S_IFREG >> 12
_DIRECTORY: Final = stat.S_IFDIR >> 12
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


def owner_key(segment: int, number: int, ino: int, chunk: int) -> bytes:
    """Return the key of the RECORDS item of one owner of a record that has several."""
    return _OWNER_KEY.pack(0, T_RECORDS, segment, number, ino, chunk)


def parse_owner_key(raw: bytes) -> tuple[int, int] | None:
    """Return (ino, chunk) of the key of a RECORDS item, or None if it is one of runs."""
    if len(raw) == _RECORDS.size:
        return None
    if len(raw) != _OWNER_KEY.size:
        raise FormatError("owner of an impossible length", found=str(len(raw)))
    _, _, _, _, ino, chunk = _OWNER_KEY.unpack(raw)
    return ino, chunk


def shared_key(segment: int, number: int) -> bytes:
    return _RECORDS.pack(0, T_SHARED, segment, number)


def parse_record_key(raw: bytes) -> tuple[int, int]:
    """Return (segment, number) of the key of a SHARED or RECORDS item."""
    if len(raw) not in (_RECORDS.size, _OWNER_KEY.size):
        raise FormatError("record with an impossible key", found=raw.hex())
    _, _, segment, number = _RECORDS.unpack_from(raw)
    return segment, number


def dump_shared(count: int) -> bytes:
    return _SHARED.pack(count)


def parse_shared(raw: bytes) -> int:
    """Return how many extents name a record."""
    if len(raw) != _SHARED.size or (count := int.from_bytes(raw, "little")) < 2:
        raise FormatError("impossible number of owners of a record")
    return count


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


def record_size(flags: int, default: int) -> int:
    """Return the size of a file's records; ``default`` is that of its image or volume."""
    shift = (flags & _RECORD_MASK) >> _RECORD_SHIFT
    return 1 << shift if shift else default


def with_record_size(flags: int, size: int) -> int:
    """Return flags that say how long the records of a file are; 0: as long as all others.

    Raises:
        ValueError: no file may have records of that size.
    """
    shift = size.bit_length() - 1 if size else 0
    if size and (size != 1 << shift or not LEAST_RECORD <= shift <= MOST_RECORD):
        raise ValueError(f"records of {size} bytes")
    return flags & ~_RECORD_MASK | shift << _RECORD_SHIFT


def dump_inode(inode: Inode, version: int) -> bytes:
    """Return the record, as a format version has it.

    Raises:
        FormatError: the inode has what the version does not know.
    """
    if version == V1 and inode.flags & _RECORD_MASK:
        raise FormatError("format version 1 has no record sizes", subject=f"inode {inode.ino}")
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
        inode.parent_ino if version != V1 and inode.mode >> 12 == _DIRECTORY else 0,
    )


def parse_inode(ino: int, raw: bytes, version: int) -> Inode:
    """Return the inode, checked."""
    if len(raw) != _INODE.size:
        raise FormatError("inode record of the wrong length", found=str(len(raw)))
    (
        mode, nlink, uid, gid, rdev, flags, size, atime_ns, mtime_ns, ctime_ns, btime_ns,
        lower_limit, parent,
    ) = _INODE.unpack(raw)  # fmt: skip
    dtype = mode >> 12
    if (
        dtype not in _DTYPES
        or size > MAX_FILE_BYTES
        or nlink > MAX_LINKS
        or (flags & ~_KNOWN_FLAGS and not _has_record_size(dtype, flags, version))
        or (parent and not _has_parent(ino, dtype, parent, version))
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
    inode.parent_ino = parent
    inode.blocks = -1
    return inode


def _has_record_size(dtype: int, flags: int, version: int) -> bool:
    shift = (flags & _RECORD_MASK) >> _RECORD_SHIFT
    return (
        version != V1
        and not flags & ~(_KNOWN_FLAGS | _RECORD_MASK)
        and dtype == _FILE
        and LEAST_RECORD <= shift <= MOST_RECORD
    )


def _has_parent(ino: int, dtype: int, parent: int, version: int) -> bool:
    return (
        version != V1
        and dtype == _DIRECTORY
        and parent <= MAX_INO
        and (parent == ino) == (ino == ROOT_INO)
    )


def check_xattr(name: bytes, marked: bytes, version: int) -> bytes:
    """Return the value of an XATTR item.

    Raises:
        FormatError: it is not marked, or an ACL that cannot be, or one in version 1.
    """
    if marked and marked[0] != _MARKED:
        raise FormatError("attribute without its mark")
    if name in ACL_NAMES:
        if version == V1:
            raise FormatError("format version 1 has no ACLs")
        if marked:
            check_acl(marked[1:])
    return marked


def copy_inode(source: Inode, into: Inode) -> None:
    """Make one inode object say what another says."""
    for field in Inode.__slots__:
        setattr(into, field, getattr(source, field))
