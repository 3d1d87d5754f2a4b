# SPDX-License-Identifier: Apache-2.0
"""A host directory in memory: for layers that end with their process, and for tests.

Above: ``volume``, ``testing``. Below: nothing. Everything is gone with the object.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final, final

from serdab.errors import BusyError

_TOTAL_BYTES: Final = 1 << 32


def _missing(name: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


@final
class MemoryFile:
    """Bytes that act as a file."""

    __slots__ = ("content",)

    def __init__(self) -> None:
        self.content = bytearray()

    def pread_into(self, buf: memoryview, offset: int) -> int:
        part = memoryview(self.content)[offset : offset + len(buf)]
        buf[: len(part)] = part
        return len(part)

    def pwrite(self, raw: bytes | bytearray | memoryview, offset: int) -> None:
        if offset > len(self.content):
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset : offset + len(raw)] = raw

    def sync(self) -> None:
        """There is nothing below to be flushed."""

    def flusher(self) -> Callable[[], None]:
        return self.sync

    def size(self) -> int:
        return len(self.content)

    def truncate(self, size: int) -> None:
        if size < len(self.content):
            del self.content[size:]
        else:
            self.content.extend(bytes(size - len(self.content)))

    def allocate(self, size: int) -> None:
        """Memory needs nothing set aside."""

    def close(self) -> None:
        """The content stays in its directory."""


@final
class MemoryDir:
    """A dictionary that acts as a directory."""

    def __init__(self, label: str = "memory") -> None:
        self.label = label
        self.files: dict[str, MemoryFile] = {}
        self.dirs: dict[str, MemoryDir] = {}
        self._locked = False

    def open(self, name: str, *, write: bool = False, create: bool = False) -> MemoryFile:
        if create:
            if name in self.files:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
            self.files[name] = MemoryFile()
        file = self.files.get(name)
        if file is None:
            raise _missing(name)
        return file

    def subdir(self, name: str, *, create: bool = False) -> MemoryDir:
        if create:
            return self.dirs.setdefault(name, MemoryDir(f"{self.label}/{name}"))
        if name not in self.dirs:
            raise _missing(name)
        return self.dirs[name]

    def names(self) -> list[str]:
        return sorted([*self.files, *self.dirs])

    def unlink(self, name: str) -> None:
        if name not in self.files:
            raise _missing(name)
        del self.files[name]

    def rename(self, old: str, new: str) -> None:
        if old not in self.files:
            raise _missing(old)
        self.files[new] = self.files.pop(old)

    def sync(self) -> None:
        """There is nothing below to be flushed."""

    def lock(self, *, exclusive: bool) -> None:
        if self._locked and exclusive:
            raise BusyError("in use", subject=self.label)
        self._locked = True

    def free_bytes(self) -> tuple[int, int]:
        used = sum(len(file.content) for file in self.files.values())
        return _TOTAL_BYTES, max(_TOTAL_BYTES - used, 0)

    def close(self) -> None:
        self._locked = False
