# SPDX-License-Identifier: Apache-2.0
"""A host directory in memory with a size, for writable layers that a program fills.

Above: ``volume``. Below: ``memorydir``. What would grow beyond the size is ENOSPC, as on a full
disk, and what is set aside for the volume's reserve counts: so the volume refuses a write in time,
and its checkpoints find their room.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final, final

from serdab.sefs.limits import VolumeLimits
from serdab.sefs.memorydir import MemoryDir, MemoryFile

#: Beyond the live data: what is removed gives its place back only two checkpoints later.
_LEAST_SLACK: Final = 16 << 20
_LEAST_DIRTY: Final = 2 << 20
_MOST_DIRTY: Final = 32 << 20
_LEAST_SEGMENT: Final = 4 << 20


def half_of_memory() -> int:
    """Return what a file system in memory may take by default (tmpfs(5))."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def limits_for(max_bytes: int) -> VolumeLimits:
    """Return the limits of a volume whose live data may take so much memory."""
    part = max_bytes // 16
    dirty = min(max(part, _LEAST_DIRTY), _MOST_DIRTY)
    return VolumeLimits(
        segment_bytes=min(max(part, _LEAST_SEGMENT), 64 << 20),
        dirty_bytes=dirty,
        log_bytes=dirty,
        scattered_bytes=dirty // 2,
        reclaim_bytes=dirty,
        max_bytes=max_bytes,
    )


def whole_size(max_bytes: int) -> int:
    """Return the size of the directory for a volume with :func:`limits_for` ``max_bytes``."""
    return max_bytes + max(max_bytes // 4, _LEAST_SLACK)


class _Room:
    """How much of the size each file takes."""

    __slots__ = ("_by_file", "size_bytes", "used_bytes")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.used_bytes = 0
        self._by_file: dict[int, int] = {}

    def charge(self, file: MemoryFile, taken: int) -> None:
        """Let a file take so much.

        Raises:
            OSError: ENOSPC; it takes what it took.
        """
        before = self._by_file.get(id(file), 0)
        if taken > before and self.used_bytes + taken - before > self.size_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.used_bytes += taken - before
        self._by_file[id(file)] = taken

    def taken(self, file: MemoryFile) -> int:
        return self._by_file.get(id(file), 0)

    def forget(self, file: MemoryFile) -> None:
        """The file was removed."""
        self.used_bytes -= self._by_file.pop(id(file), 0)


@final
class BoundedFile:
    """A file of a :class:`BoundedDir`."""

    __slots__ = ("_file", "_room")

    def __init__(self, file: MemoryFile, room: _Room) -> None:
        self._file = file
        self._room = room

    def pread_into(self, buf: memoryview, offset: int) -> int:
        return self._file.pread_into(buf, offset)

    def pwrite(self, raw: bytes | bytearray | memoryview, offset: int) -> None:
        self._grow(offset + len(raw))
        self._file.pwrite(raw, offset)

    def _grow(self, size: int) -> None:
        if size > self._room.taken(self._file):
            self._room.charge(self._file, size)

    def sync(self) -> None:
        """There is nothing below to be flushed."""

    def flusher(self) -> Callable[[], None]:
        return self.sync

    def size(self) -> int:
        return self._file.size()

    def truncate(self, size: int) -> None:
        self._room.charge(self._file, size)
        self._file.truncate(size)

    def allocate(self, size: int) -> None:
        """Keep room for the file to grow to this size; no memory is taken yet."""
        self._grow(size)

    def close(self) -> None:
        """The content stays in its directory."""


@final
class BoundedDir:
    """A :class:`MemoryDir` that is full at some point; directories below it share its room."""

    def __init__(self, size_bytes: int) -> None:
        self._begin(MemoryDir(), _Room(size_bytes))

    def _begin(self, directory: MemoryDir, room: _Room) -> None:
        self._directory = directory
        self._room = room
        self.label = directory.label

    def open(self, name: str, *, write: bool = False, create: bool = False) -> BoundedFile:
        return BoundedFile(self._directory.open(name, write=write, create=create), self._room)

    def subdir(self, name: str, *, create: bool = False) -> BoundedDir:
        below = BoundedDir.__new__(BoundedDir)
        below._begin(self._directory.subdir(name, create=create), self._room)
        return below

    def names(self) -> list[str]:
        return self._directory.names()

    def unlink(self, name: str) -> None:
        file = self._directory.files.get(name)
        self._directory.unlink(name)
        if file is not None:
            self._room.forget(file)

    def rename(self, old: str, new: str) -> None:
        replaced = self._directory.files.get(new)
        self._directory.rename(old, new)
        if replaced is not None and old != new:
            self._room.forget(replaced)

    def sync(self) -> None:
        """There is nothing below to be flushed."""

    def lock(self, *, exclusive: bool) -> None:
        self._directory.lock(exclusive=exclusive)

    def free_bytes(self) -> tuple[int, int]:
        return self._room.size_bytes, self._room.size_bytes - self._room.used_bytes

    def close(self) -> None:
        self._directory.close()
