# SPDX-License-Identifier: Apache-2.0
"""Random operations on any FileSystem, and a picture of its whole tree to compare."""

from __future__ import annotations

import errno
import random
import stat
from typing import Any

from serdab.errors import FsError
from serdab.vfs.api import ROOT_INO, FileSystem, Inode, SetAttr

NAMES = [b"a", b"b", b"c", b"dir", b"e.txt", b"f" * 40]
_RAMP = bytes(range(251)) * 14
CHUNK = 16384
SIZES = (0, 1, 10, 100, 2000, 2048, 2049, 5000, 65536, 65537, 150_000)


def picture(fs: FileSystem) -> dict[bytes, tuple[Any, ...]]:
    """Return path -> (type and mode, nlink, size, content or target, xattrs)."""
    found: dict[bytes, tuple[Any, ...]] = {}

    def visit(ino: int, path: bytes) -> None:
        inode = fs.getattr(ino)
        kind = stat.S_IFMT(inode.mode)
        body: bytes = b""
        if kind == stat.S_IFREG:
            body = read(fs, ino, 0, inode.size + 10)
        elif kind == stat.S_IFLNK:
            body = fs.readlink(ino)
        xattrs = tuple((name, fs.getxattr(ino, name)) for name in sorted(fs.listxattr(ino)))
        size = 0 if kind == stat.S_IFDIR else inode.size
        found[path] = (inode.mode, inode.nlink, inode.uid, size, body, xattrs)
        if kind == stat.S_IFDIR:
            for entry in list(fs.readdir(ino, 0)):
                if entry.name not in (b".", b".."):
                    child = fs.lookup(ino, entry.name)
                    assert child.ino == entry.ino
                    visit(child.ino, path + b"/" + entry.name)
                    fs.forget(child.ino, 1)

    visit(ROOT_INO, b"")
    return found


def read(fs: FileSystem, ino: int, offset: int, length: int) -> bytes:
    buf = bytearray(length)
    with memoryview(buf) as view:
        count = fs.read_into(ino, offset, view)
    return bytes(buf[:count])


class Operations:
    """Draws operations by path, so that file systems with other inode numbers can replay them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.paths: list[list[bytes]] = [[]]

    def draw(self) -> tuple[Any, ...]:
        """Return one operation as a tuple of plain values."""
        rng = self.random
        kind = rng.choices(
            ["create", "mkdir", "symlink", "write", "truncate", "unlink", "rmdir", "rename",
             "link", "chmod", "setxattr", "removexattr", "punch", "exchange", "read", "clone"],
            [8, 4, 2, 14, 6, 5, 3, 6, 3, 3, 2, 1, 3, 1, 4, 12],
        )[0]  # fmt: skip
        size = rng.choice(SIZES)
        return (
            kind, self.path(), self.path(), rng.choice(SIZES), size,
            rng.randrange(256), rng.randrange(0o10000),
        )  # fmt: skip

    def path(self) -> tuple[bytes, ...]:
        return tuple(self.random.choice(NAMES) for _ in range(self.random.choice((1, 1, 2, 2, 3))))


def apply(fs: FileSystem, operation: tuple[Any, ...]) -> object:
    """Apply one operation; return its result or errno, comparable between file systems."""
    kind, path, other = operation[:3]
    held: list[int] = []

    def resolve(parts: tuple[bytes, ...]) -> int:
        ino = ROOT_INO
        for part in parts:
            ino = took(fs.lookup(ino, part))
        return ino

    def parent_of(parts: tuple[bytes, ...]) -> int:
        # The kernel looks at the type of both parents before it asks a file system anything.
        ino = resolve(parts[:-1])
        if not stat.S_ISDIR(fs.getattr(ino).mode):
            raise FsError(errno.ENOTDIR)
        return ino

    def is_file(ino: int) -> bool:
        return stat.S_ISREG(fs.getattr(ino).mode)

    def took(inode: Inode) -> int:
        held.append(inode.ino)
        return inode.ino

    try:
        parent, name = parent_of(path), path[-1]
        if kind in ("rename", "exchange", "link"):
            parent_of(other)
        if kind == "create":
            took(fs.mknod(parent, name, stat.S_IFREG | 0o644, 0, 5, 5))
        elif kind == "mkdir":
            took(fs.mkdir(parent, name, 0o755, 5, 5))
        elif kind == "symlink":
            took(fs.symlink(parent, name, b"/".join(other), 5, 5))
        elif kind == "unlink":
            fs.unlink(parent, name)
        elif kind == "rmdir":
            fs.rmdir(parent, name)
        elif kind in ("rename", "exchange"):
            if other[: len(path)] == path or path[: len(other)] == other:
                return None  # into itself: the kernel answers that
            fs.rename(parent, name, resolve(other[:-1]), other[-1], 2 if kind == "exchange" else 0)
        elif kind == "link":
            ino = resolve(path)
            if stat.S_ISDIR(fs.getattr(ino).mode):
                return None  # the kernel answers that
            took(fs.link(ino, resolve(other[:-1]), other[-1]))
        else:
            ino = resolve(path)
            if not is_file(ino):
                return "not regular"
            if kind != "clone":
                return _on_file(fs, ino, operation)
            into = resolve(other)
            return _clone(fs, ino, into, operation) if is_file(into) else "not regular"
    except FsError as exc:
        return exc.errno
    finally:
        for ino in held:
            fs.forget(ino, 1)
    return 0


def _clone(fs: FileSystem, ino: int, into: int, operation: tuple[Any, ...]) -> int:
    """Copy a range as cp(1) does; most are aligned, and many are to the end."""
    _, _, _, offset, size, byte, mode = operation
    offset_out = (offset, 0, mode * 16, SIZES[byte % len(SIZES)])[byte % 4]
    if byte % 5:
        offset -= offset % CHUNK
        offset_out -= offset_out % CHUNK
    length = fs.getattr(ino).size - offset
    if mode % 3 == 0:
        length = min(length, size)
    if ino == into and abs(offset - offset_out) < length:
        return 0  # the kernel answers that
    done = 0
    while done < length:
        count = fs.copy_file_range(ino, offset + done, into, offset_out + done, length - done)
        assert count > 0
        done += count
    return done


def _on_file(fs: FileSystem, ino: int, operation: tuple[Any, ...]) -> object:
    kind, _, _, offset, size, byte, mode = operation
    if kind == "write":
        start = byte % 251
        data = _RAMP[start : start + min(size, 3000)] * (size // 3000 + 1)
        return fs.write(ino, offset, memoryview(data[:size]), kill_suidgid=False)
    if kind == "truncate":
        return fs.setattr(ino, SetAttr(size=offset)).size
    if kind == "chmod":
        return fs.setattr(ino, SetAttr(mode=mode)).mode
    if kind == "setxattr":
        return fs.setxattr(ino, b"user.%d" % (byte % 3), bytes([byte]) * (size % 3000), 0)
    if kind == "removexattr":
        return fs.removexattr(ino, b"user.%d" % (byte % 3))
    if kind == "punch":
        return fs.fallocate(ino, 3, offset, max(size, 1))
    return read(fs, ino, offset, size)
