# SPDX-License-Identifier: Apache-2.0
"""Says which programs of a tree cannot start: their loader is not in it, or the machine is another.

The kernel answers such a start with ENOENT, which reads as if the program were missing, or with
ENOEXEC (execve(2)). Seen once the tree is sealed anew, so the cost is one short read of each
executable. A tree without any file is told, too: it was not filled yet.

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


#: e_machine of elf(5) by what uname(2) says, of the machines that we run on.
_OURS: Final = {"x86_64": 62, "aarch64": 183}
_MACHINES: Final = {
    3: "32-bit x86",
    20: "PowerPC",
    21: "64-bit PowerPC",
    22: "s390",
    40: "32-bit ARM",
    62: "x86-64",
    183: "64-bit ARM",
    243: "RISC-V",
    258: "LoongArch",
}


def foreign_machine(head: bytes) -> str:
    """Return what machine an ELF file is for; empty if it is this one, or no such file.

    ``head``: its first bytes, 20 at least.
    """
    if len(head) < 20 or not head.startswith(b"\x7fELF"):
        return ""
    is_64, is_little = head[4] == 2, head[5] == 1
    number = int.from_bytes(head[18:20], "little" if is_little else "big")
    if is_64 and number == _OURS.get(os.uname().machine):
        return ""
    name = _MACHINES.get(number, f"machine {number} of elf(5)")
    return "x32" if number == _OURS["x86_64"] and not is_64 else name


def foreign_line(machine: str, paths: list[str]) -> str:
    """Return the warning of programs that no loader of this machine starts."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return (
        f"warning: {paths[0]}{more} will not start: for {machine}, and this is {os.uname().machine}"
    )


def lines_about(top: DirFd) -> Iterator[str]:
    """Yield a warning for each loader that programs of a tree want and that it lacks.

    And for each other machine that programs are for, and of a tree without files.

    Raises:
        OSError: a directory or a file cannot be read.
    """
    lacking: dict[str, list[str]] = {}
    foreign: dict[str, list[str]] = {}
    tree = Tree(top)
    is_there: dict[str, bool] = {}
    is_empty = True
    for path, machine, loader in _programs(top):
        is_empty = False
        if machine:
            foreign.setdefault(machine, []).append(path)
            continue
        if not loader:
            continue
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
    for machine, paths in foreign.items():
        yield foreign_line(machine, paths)
    if is_empty:
        yield (
            f"warning: {top.path} holds no file: nothing will run in it but what is mounted; "
            "`serdab copy-bom -f FILE --root image` fills it"
        )


def _programs(top: DirFd) -> Iterator[tuple[str, str, str]]:
    """Yield (path, foreign machine, loader) of each file; of what is no program only the path."""
    here = top.real()
    for fd, entries in dirtree.walk(top):
        place = os.readlink(f"/proc/self/fd/{fd}").removeprefix(here)
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                continue
            machine = loader = ""
            if entry.stat(follow_symlinks=False).st_mode & 0o111:
                machine, loader = _nature_of(fd, entry.name)
            yield posixpath.join("/", place, entry.name), machine, loader


def _nature_of(directory: int, name: str) -> tuple[str, str]:
    """Return the machine that a program is for, if it is another, else the loader that it names."""
    fd = os.open(name, _READ, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "", ""
        machine = foreign_machine(os.pread(fd, _HEADER.size, 0))
        if machine:
            return machine, ""
        for kind, offset, size in _segments(fd):
            if kind == _INTERP and size <= _MAX_BYTES and offset < 1 << 63:
                return "", os.fsdecode(os.pread(fd, size, offset).split(b"\0")[0])
    finally:
        os.close(fd)
    return "", ""


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
