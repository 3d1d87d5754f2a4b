# SPDX-License-Identifier: Apache-2.0
"""Operations for crash workloads: those of ``tests.property.fsops``, and some with a memory.

* ``("hold", path)``          a program opens the file: it outlives its name
* ``("let go", path)``        and closes it
* ``("held write", path, offset, size, byte)``
* ``("falloc", path, mode, offset, length)``
* ``("copy", path, other, offset, length)``     copy_file_range(2)
* ``("fifo", path)``, ``("device", path)``
"""

from __future__ import annotations

import stat
from typing import Any

from serdab.errors import FsError
from serdab.vfs.api import ROOT_INO, FileSystem
from tests.property.fsops import apply, read

CHUNK = 4096
Operation = tuple[Any, ...]
Step = Operation | str


class Actor:
    """One program at work on one file system."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self.held: dict[tuple[bytes, ...], int] = {}

    def act(self, operation: Operation) -> object:
        """Apply an operation; return its result or errno, comparable between file systems."""
        kind, path = operation[0], operation[1]
        method = getattr(self, "_" + kind.replace(" ", "_"), None)
        if method is None:
            return apply(self.fs, operation)
        try:
            return method(path, *operation[2:])
        except FsError as exc:
            return exc.errno

    def let_go(self) -> None:
        """The program ends."""
        for ino in self.held.values():
            self.fs.forget(ino, 1)
        self.held.clear()

    def _find(self, path: tuple[bytes, ...]) -> int:
        """Return the inode number of a path; nothing is held."""
        ino = ROOT_INO
        for name in path:
            inode = self.fs.lookup(ino, name)
            self.fs.forget(inode.ino, 1)
            ino = inode.ino
        return ino

    def _hold(self, path: tuple[bytes, ...]) -> object:
        if path in self.held:
            return "held already"
        parent = self._find(path[:-1])
        inode = self.fs.lookup(parent, path[-1])
        if not stat.S_ISREG(inode.mode):
            self.fs.forget(inode.ino, 1)
            return "not regular"
        self.held[path] = inode.ino
        return 0

    def _let_go(self, path: tuple[bytes, ...]) -> object:
        ino = self.held.pop(path, None)
        if ino is None:
            return "not held"
        self.fs.forget(ino, 1)
        return 0

    def _held_write(self, path: tuple[bytes, ...], offset: int, size: int, byte: int) -> object:
        ino = self.held.get(path)
        if ino is None:
            return "not held"
        return self.fs.write(ino, offset, memoryview(bytes([byte]) * size), kill_suidgid=False)

    def _falloc(self, path: tuple[bytes, ...], mode: int, offset: int, length: int) -> object:
        ino = self._find(path)
        if not stat.S_ISREG(self.fs.getattr(ino).mode):
            return "not regular"
        self.fs.fallocate(ino, mode, offset, length)
        return 0

    def _copy(
        self, path: tuple[bytes, ...], other: tuple[bytes, ...], offset: int, length: int
    ) -> object:
        ino, into = self._find(path), self._find(other)
        kinds = {stat.S_IFMT(self.fs.getattr(number).mode) for number in (ino, into)}
        if kinds != {stat.S_IFREG} or ino == into:
            return "not two files"
        rest = self.fs.getattr(ino).size - offset
        length = min(length, rest)
        if length <= 0:
            return 0
        end = self.fs.getattr(into).size
        # So much as one request does: what stands between two is a state of its own.
        if offset % CHUNK:
            length = min(length, -offset % CHUNK)
        elif length > CHUNK and (end > offset + length or length < rest):
            length -= length % CHUNK
        if end <= offset and self._may_have_holes(ino, offset, length):
            return "in several requests"
        count = self.fs.copy_file_range(ino, offset, into, offset, length)
        assert count == length
        return count

    def _may_have_holes(self, ino: int, offset: int, length: int) -> bool:
        """Return whether any chunk is zeros, as far as it is within a range."""
        body = read(self.fs, ino, offset, length)
        starts = (0, *range(CHUNK - offset % CHUNK, length, CHUNK))
        return any(not body[start : start + CHUNK].strip(b"\0") for start in starts)

    def _clone(
        self, path: tuple[bytes, ...], other: tuple[bytes, ...], offset: int, size: int, *_: int
    ) -> object:
        return self._copy(path, other, offset, size)

    def _fifo(self, path: tuple[bytes, ...]) -> object:
        return self._special(path, stat.S_IFIFO | 0o600, 0)

    def _device(self, path: tuple[bytes, ...]) -> object:
        return self._special(path, stat.S_IFCHR | 0o600, 0x0103)

    def _special(self, path: tuple[bytes, ...], mode: int, rdev: int) -> object:
        inode = self.fs.mknod(self._find(path[:-1]), path[-1], mode, rdev, 1, 1)
        self.fs.forget(inode.ino, 1)
        return 0
