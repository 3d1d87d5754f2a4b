# SPDX-License-Identifier: Apache-2.0
"""Numbers and layouts of the FUSE protocol, as the kernel's ``include/uapi/linux/fuse.h`` has them.

Only data. Above: ``wire``, ``operations``. The protocol is made for the machine it runs on, so
every layout is ``=``: native order, no padding. The layouts carry the names of the C structures;
``*_REPLY`` are those that follow a ``fuse_out_header``, which is part of them.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, final

MAJOR: Final = 7
MINOR: Final = 45
#: Oldest minor version served: max_pages (28) and zero-message opendir (29) are there since 5.1,
#: 7.31 is Linux 5.2.
MINOR_MIN: Final = 31
#: From this one on (Linux 6.2; some of 6.1 do) the kernel asks for set-id bits to be taken away
#: before FALLOCATE and COPY_FILE_RANGE, where the caller may not leave them.
MINOR_SAYS_KILL: Final = 38
#: The kernel passes names of up to 1024 bytes on; Linux has no file system that takes more.
NAME_MAX: Final = 255
#: The kernel keeps no ACL of the root of a mount, not even that it has none: that inode is older
#: than the answer to INIT which says that there are ACLs (fuse_init_inode(), fs/fuse/inode.c). So
#: each path of a program that does not own the root would ask for it. The root therefore has a
#: second inode, under a name that it has for the first who looks it up; that is mounted (ADR 22).
ROOT_ALIAS: Final = b"root"
ROOT_ALIAS_NODEID: Final = 1 << 63 | 1
#: No inode number has that bit.
NODEID_MASK: Final = (1 << 63) - 1
NODEID: Final = Struct("=Q")


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
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
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
#: Mode, owner, size and times: what a SETATTR is sent for.
FATTR_ANYTHING: Final = 0x1BF

WRITE_KILL_SUIDGID: Final = 1 << 2
FSYNC_FDATASYNC: Final = 1 << 0

STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800

IN_HEADER: Final = Struct("=IIQQIIIHH")
#: The fields of it that are of use.
IN_HEADER_START: Final = Struct("=IIQQII")
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
#: The fields of these two that are of use.
READ_IN_START: Final = Struct("=8xQI")
WRITE_IN_START: Final = Struct("=8xQII")
FSYNC_IN: Final = Struct("=QII")
SETXATTR_IN: Final = Struct("=II")
#: What follows it under FUSE_SETXATTR_EXT.
SETXATTR_EXT_IN: Final = Struct("=II")
SETXATTR_ACL_KILL_SGID: Final = 1 << 0
GETXATTR_IN: Final = Struct("=II")
FORGET_IN: Final = Struct("=Q")
BATCH_FORGET_IN: Final = Struct("=II")
FORGET_ONE: Final = Struct("=QQ")
FALLOCATE_IN: Final = Struct("=QQQII")
LSEEK_IN: Final = Struct("=QQII")
COPY_FILE_RANGE_IN: Final = Struct("=QQQQQQQ")
STATX_IN: Final = Struct("=IIQII")
#: fuse_notify_retrieve_in; what was retrieved follows
RETRIEVE_IN: Final = Struct("=QQIIQQ")

#: ``enum fuse_notify_code``: in place of the errno of a reply that answers no request (unique 0).
NOTIFY_RETRIEVE: Final = 5
#: fuse_out_header + fuse_notify_retrieve_out
RETRIEVE_NOTE: Final = Struct("=IiQQQQII")

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
