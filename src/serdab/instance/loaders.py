# SPDX-License-Identifier: Apache-2.0
"""Says which programs of a tree cannot start, since their loader is not in it.

The kernel answers such a start with ENOENT, which reads as if the program were missing
(execve(2)). Seen once the tree is sealed anew, so the cost is one short read of each executable.

Above: ``build``. Below: ``intree``, ``linux.dirtree``.
"""

from __future__ import annotations

import os
import posixpath
import stat
import struct
from collections.abc import Iterator
from typing import Final

from serdab.instance.intree import Tree
from serdab.linux import dirtree
from serdab.linux.dirfd import DirFd

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HEADER: Final = struct.Struct("<16s2H5I6H")  # Elf32_Ehdr of elf(5), little-endian
_HEADER_64: Final = struct.Struct("<16s2HI3QI6H")
_SEGMENT: Final = struct.Struct("<8I")
_SEGMENT_64: Final = struct.Struct("<2I6Q")
_MAGIC_32: Final = b"\x7fELF\x01\x01"
_MAGIC_64: Final = b"\x7fELF\x02\x01"
_INTERP: Final = 3
_MOST_SEGMENTS: Final = 64
_MAX_BYTES: Final = 4096  # PATH_MAX: the kernel takes no longer loader


def lines_about(top: DirFd) -> Iterator[str]:
    """Yield a warning for each loader that programs of a tree want and that it lacks.

    Raises:
        OSError: a directory or a file cannot be read.
    """
    lacking: dict[str, list[str]] = {}
    tree = Tree(top)
    is_there: dict[str, bool] = {}
    for path, loader in _loaders(top):
        if loader not in is_there:
            is_there[loader] = tree.exists(loader)
        if not is_there[loader]:
            lacking.setdefault(loader, []).append(path)
    for loader, (first, *others) in lacking.items():
        more = f" and {len(others)} more" if others else ""
        yield (
            f"warning: {first}{more} will not start: {loader}, its loader, is not in the tree; "
            "`serdab copy-bom` brings what listed programs need"
        )


def _loaders(top: DirFd) -> Iterator[tuple[str, str]]:
    here = top.real()
    for fd, entries in dirtree.walk(top):
        place = os.readlink(f"/proc/self/fd/{fd}").removeprefix(here)
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                continue
            if entry.stat(follow_symlinks=False).st_mode & 0o111:
                loader = _loader_of(fd, entry.name)
                if loader:
                    yield posixpath.join("/", place, entry.name), loader


def _loader_of(directory: int, name: str) -> str:
    """Return the loader that a program names, or nothing."""
    fd = os.open(name, _READ, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        for kind, offset, size in _segments(fd):
            if kind == _INTERP and size <= _MAX_BYTES and offset < 1 << 63:
                return os.fsdecode(os.pread(fd, size, offset).split(b"\0")[0])
    finally:
        os.close(fd)
    return ""


def _segments(fd: int) -> Iterator[tuple[int, int, int]]:
    """Yield (type, offset, length in the file) of each segment; nothing of what is no ELF file."""
    head = os.pread(fd, _HEADER_64.size, 0)
    is_64 = head.startswith(_MAGIC_64)
    header, segment = (_HEADER_64, _SEGMENT_64) if is_64 else (_HEADER, _SEGMENT)
    if not head.startswith((_MAGIC_64, _MAGIC_32)) or len(head) < header.size:
        return
    fields = header.unpack_from(head)
    start, size, count = fields[5], fields[9], fields[10]
    if size != segment.size or start >= 1 << 62:
        return
    raw = os.pread(fd, size * min(count, _MOST_SEGMENTS), start)
    for at in range(0, len(raw) - size + 1, size):
        values = segment.unpack_from(raw, at)
        # p_flags stands before p_offset where addresses have 64 bits, else near the end.
        yield (values[0], values[2], values[5]) if is_64 else (values[0], values[1], values[4])
