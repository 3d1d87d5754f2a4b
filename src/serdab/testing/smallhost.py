# SPDX-License-Identifier: Apache-2.0
"""A host in memory with so much room and no more, counted in blocks as a file system counts it.

Key types: :class:`SmallHost` (the room), :class:`SmallDir` (a :class:`serdab.sefs.hostdir.Dir`).
A write that does not fit writes the blocks that do, then fails, as write(2) does.

Above: tests. Below: ``sefs.memorydir``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final, final

from serdab.sefs.memorydir import MemoryDir, MemoryFile
from serdab.structs import field, mutable

BLOCK: Final = 4096


def _full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


@mutable
class SmallHost:
    """Room for ``total`` bytes."""

    total: int
    used: int = 0
    _taken: dict[int, int] = field(default_factory=dict)
    _kept: list[MemoryFile] = field(default_factory=list)

    def taken(self, file: MemoryFile) -> int:
        """Return what a file takes."""
        return self._taken.get(id(file), 0)

    def take(self, file: MemoryFile, size: int) -> None:
        """Let a file take so much, more or less than before.

        Raises:
            OSError: ENOSPC.
        """
        size = _blocks(size)
        used = self.used + size - self.taken(file)
        if used > self.total and size > self.taken(file):
            raise _full()
        if id(file) not in self._taken:
            self._kept.append(file)  # an identity is not used again while its object lives
        self._taken[id(file)] = size
        self.used = used

    def fits(self, file: MemoryFile) -> int:
        """Return up to where a file can grow."""
        return self.taken(file) + (self.total - self.used) // BLOCK * BLOCK


@final
class SmallFile:
    """A file of a small host."""

    __slots__ = ("_file", "_host")

    def __init__(self, host: SmallHost, file: MemoryFile) -> None:
        self._host = host
        self._file = file

    def pread_into(self, buf: memoryview, offset: int) -> int:
        return self._file.pread_into(buf, offset)

    def pwrite(self, raw: bytes | bytearray | memoryview, offset: int) -> None:
        end = offset + len(raw)
        host, file = self._host, self._file
        if end > host.taken(file):
            room = host.fits(file)
            if end > room:
                part = max(room - offset, 0)
                host.take(file, min(offset + part, room))
                file.pwrite(bytes(raw[:part]), offset)
                raise _full()
            host.take(file, end)
        file.pwrite(raw, offset)

    def sync(self) -> None:
        """There is nothing below to be flushed."""

    def flusher(self) -> Callable[[], None]:
        return self.sync

    def size(self) -> int:
        return self._file.size()

    def truncate(self, size: int) -> None:
        self._file.truncate(size)
        self._host.take(self._file, size)

    def allocate(self, size: int) -> None:
        if size > self._host.taken(self._file):
            self._host.take(self._file, size)

    def close(self) -> None:
        """The content stays in its directory."""


@final
class SmallDir:
    """A directory of a small host.

    >>> directory = SmallDir(SmallHost(8192), MemoryDir())
    >>> directory.open("name", create=True).pwrite(bytes(9000), 0)
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device
    >>> directory.free_bytes()
    (8192, 0)
    """

    def __init__(self, host: SmallHost, directory: MemoryDir) -> None:
        self.host = host
        self._dir = directory
        self.label = directory.label

    def open(self, name: str, *, write: bool = False, create: bool = False) -> SmallFile:
        return SmallFile(self.host, self._dir.open(name, write=write, create=create))

    def subdir(self, name: str, *, create: bool = False) -> SmallDir:
        return SmallDir(self.host, self._dir.subdir(name, create=create))

    def names(self) -> list[str]:
        return self._dir.names()

    def unlink(self, name: str) -> None:
        file = self._dir.files.get(name)
        self._dir.unlink(name)
        if file is not None:
            self.host.take(file, 0)

    def rename(self, old: str, new: str) -> None:
        replaced = self._dir.files.get(new)
        self._dir.rename(old, new)
        if replaced is not None:
            self.host.take(replaced, 0)

    def sync(self) -> None:
        """There is nothing below to be flushed."""

    def lock(self, *, exclusive: bool) -> None:
        self._dir.lock(exclusive=exclusive)

    def free_bytes(self) -> tuple[int, int]:
        return self.host.total, self.host.total - self.host.used

    def close(self) -> None:
        self._dir.close()
