# SPDX-License-Identifier: Apache-2.0
"""A host that fails: errors, short reads and half writes at the Nth call, once or for ever.

``RecordingDir`` and ``CrashStates`` (a host that writes down its acts, and what a power cut leaves
of them) are found here too, since the three are used together: a flush that failed is noted in the
recording as one that made nothing durable.

Above: tests. Below: any :class:`serdab.sefs.hostdir.Dir`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum
from typing import Final, TypeVar, final

from serdab.sefs.hostdir import Dir, File
from serdab.structs import field, frozen, mutable
from serdab.testing.crashes import CrashState, CrashStates
from serdab.testing.recording import RecordingDir, RecordingFile, Trace

__all__ = [
    "Act",
    "CrashState",
    "CrashStates",
    "Fault",
    "FaultyDir",
    "FaultyFile",
    "Host",
    "RecordingDir",
    "RecordingFile",
    "Trace",
]

T = TypeVar("T")


class Act(Enum):
    """What may be asked of a host."""

    OPEN = "open"
    CREATE = "create"
    READ = "read"
    WRITE = "write"
    TRUNCATE = "truncate"
    ALLOCATE = "allocate"
    SYNC = "sync"
    SIZE = "size"
    SUBDIR = "subdir"
    NAMES = "names"
    UNLINK = "unlink"
    RENAME = "rename"
    SYNC_DIR = "sync directory"


ALWAYS: Final = 1 << 62
CHANGES: Final = frozenset(
    {Act.CREATE, Act.WRITE, Act.TRUNCATE, Act.SYNC, Act.UNLINK, Act.RENAME, Act.SYNC_DIR}
)
SPACE: Final = frozenset({Act.CREATE, Act.WRITE, Act.SUBDIR, Act.ALLOCATE})
"""Acts that a full host refuses."""


@frozen
class Fault:
    """What goes wrong: from call ``first`` on (counted over ``acts``, from 0), ``times`` times.

    ``error`` is an errno; 0 makes reads short instead, as if the file ended early. ``half``: a
    write that fails has written half of its bytes.
    """

    first: int
    error: int
    times: int = 1
    half: bool = False
    acts: frozenset[Act] = frozenset(Act)


@mutable
class Host:
    """The state that all directories and files of one faulty host share."""

    fault: Fault | None = None
    calls: int = 0
    """Calls that the fault counts (without a fault: all)."""
    failed: list[Act] = field(default_factory=list)
    free: tuple[int, int] | None = None
    """(total, available) bytes to be told, instead of the truth."""

    def strikes(self, act: Act) -> Fault | None:
        """Count a call; return the fault if it is to fail."""
        fault = self.fault
        if fault is not None and act not in fault.acts:
            return None
        number = self.calls
        self.calls += 1
        if fault is None or not fault.first <= number < fault.first + fault.times:
            return None
        self.failed.append(act)
        return fault

    def guard(self, act: Act, effect: Callable[[], T]) -> T:
        """Do it, or fail."""
        fault = self.strikes(act)
        if fault is not None and fault.error:
            raise OSError(fault.error, os.strerror(fault.error))
        return effect()


@final
class FaultyFile:
    """A file of a faulty host."""

    __slots__ = ("_file", "_host")

    def __init__(self, host: Host, file: File) -> None:
        self._host = host
        self._file = file

    def pread_into(self, buf: memoryview, offset: int) -> int:
        fault = self._host.strikes(Act.READ)
        if fault is None:
            return self._file.pread_into(buf, offset)
        if fault.error:
            raise OSError(fault.error, os.strerror(fault.error))
        return self._file.pread_into(buf[: len(buf) // 2], offset)

    def pwrite(self, raw: bytes | bytearray | memoryview, offset: int) -> None:
        fault = self._host.strikes(Act.WRITE)
        if fault is None or not fault.error:
            self._file.pwrite(raw, offset)
            return
        if fault.half:
            self._file.pwrite(bytes(raw[: len(raw) // 2]), offset)
        raise OSError(fault.error, os.strerror(fault.error))

    def sync(self) -> None:
        fault = self._host.strikes(Act.SYNC)
        if fault is None or not fault.error:
            self._file.sync()
            return
        if isinstance(self._file, RecordingFile):
            self._file.fail_sync()
        raise OSError(fault.error, os.strerror(fault.error))

    def flusher(self) -> Callable[[], None]:
        return self.sync

    def size(self) -> int:
        return self._host.guard(Act.SIZE, self._file.size)

    def truncate(self, size: int) -> None:
        self._host.guard(Act.TRUNCATE, lambda: self._file.truncate(size))

    def allocate(self, size: int) -> None:
        self._host.guard(Act.ALLOCATE, lambda: self._file.allocate(size))

    def close(self) -> None:
        self._file.close()


@final
class FaultyDir:
    """A directory of a faulty host.

    >>> from serdab.sefs.memorydir import MemoryDir
    >>> import errno
    >>> directory = FaultyDir(Host(Fault(first=1, error=errno.ENOSPC)), MemoryDir())
    >>> file = directory.open("name", create=True)
    >>> file.pwrite(b"content", 0)
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device
    """

    def __init__(self, host: Host, directory: Dir) -> None:
        self._host = host
        self._dir = directory
        self.label = directory.label

    def open(self, name: str, *, write: bool = False, create: bool = False) -> FaultyFile:
        file = self._host.guard(
            Act.CREATE if create else Act.OPEN,
            lambda: self._dir.open(name, write=write, create=create),
        )
        return FaultyFile(self._host, file)

    def subdir(self, name: str, *, create: bool = False) -> FaultyDir:
        found = self._host.guard(Act.SUBDIR, lambda: self._dir.subdir(name, create=create))
        return FaultyDir(self._host, found)

    def names(self) -> list[str]:
        return self._host.guard(Act.NAMES, self._dir.names)

    def unlink(self, name: str) -> None:
        self._host.guard(Act.UNLINK, lambda: self._dir.unlink(name))

    def rename(self, old: str, new: str) -> None:
        self._host.guard(Act.RENAME, lambda: self._dir.rename(old, new))

    def sync(self) -> None:
        self._host.guard(Act.SYNC_DIR, self._dir.sync)

    def lock(self, *, exclusive: bool) -> None:
        self._dir.lock(exclusive=exclusive)

    def free_bytes(self) -> tuple[int, int]:
        return self._host.free or self._dir.free_bytes()

    def close(self) -> None:
        self._dir.close()
