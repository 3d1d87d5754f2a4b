# SPDX-License-Identifier: Apache-2.0
"""A host directory in memory that writes down what is done to it: the record of a workload.

Key types: :class:`RecordingDir` (a :class:`serdab.sefs.hostdir.Dir`) and the events it appends to
a :class:`Trace`. ``crashes`` turns a trace into what a power cut may leave behind.

Above: tests, ``crashes``. Below: ``sefs.memorydir``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import final

from serdab.sefs.memorydir import MemoryDir, MemoryFile
from serdab.structs import field, frozen, mutable


@frozen
class Write:
    """Bytes were handed to the host."""

    file: int
    offset: int
    data: bytes


@frozen
class Truncate:
    """A file was made shorter or longer."""

    file: int
    size: int


@frozen
class SyncFile:
    """fdatasync(2) succeeded."""

    file: int


@frozen
class FailedSync:
    """fdatasync(2) failed. The host marks the pages clean all the same: what was pending may be
    lost, and no later flush says anything about it (fsync(2), "Errors"; Rebello et al., ATC 2020).
    """

    file: int


@frozen
class Create:
    """A new, empty file got a name."""

    directory: int
    name: str
    file: int


@frozen
class MakeDir:
    """A new directory got a name."""

    directory: int
    name: str
    made: int


@frozen
class Rename:
    """A file changed its name, perhaps over another one."""

    directory: int
    old: str
    new: str


@frozen
class Unlink:
    """A name is gone."""

    directory: int
    name: str


@frozen
class SyncDir:
    """fsync(2) of a directory succeeded: its names are durable."""

    directory: int


@frozen
class Mark:
    """Not an act on the host: the workload notes how far it is.

    ``issued`` operations have begun, ``acknowledged`` of them were said to be durable.
    """

    issued: int
    acknowledged: int


Event = (
    Write | Truncate | SyncFile | FailedSync | Create | MakeDir | Rename | Unlink | SyncDir | Mark
)


@mutable
class Trace:
    """What happened, in order, and the numbers that files and directories go by."""

    base: MemoryDir
    """What the host held, durably, before the first event."""
    events: list[Event] = field(default_factory=list)
    _numbers: dict[int, int] = field(default_factory=dict)
    _kept: list[object] = field(default_factory=list)

    def number(self, thing: object) -> int:
        """Return the number of a file or directory object."""
        found = self._numbers.get(id(thing))
        if found is None:
            found = self._numbers[id(thing)] = len(self._kept)
            self._kept.append(thing)  # an identity is not used again while its object lives
        return found

    def mark(self, issued: int, acknowledged: int) -> None:
        """Note how far the workload is."""
        self.events.append(Mark(issued, acknowledged))


@final
class RecordingFile:
    """A file whose changes are written down."""

    __slots__ = ("_file", "_number", "_trace")

    def __init__(self, trace: Trace, file: MemoryFile) -> None:
        self._trace = trace
        self._file = file
        self._number = trace.number(file)

    def pread_into(self, buf: memoryview, offset: int) -> int:
        return self._file.pread_into(buf, offset)

    def pwrite(self, raw: bytes | bytearray | memoryview, offset: int) -> None:
        self._trace.events.append(Write(self._number, offset, bytes(raw)))
        self._file.pwrite(raw, offset)

    def sync(self) -> None:
        self._trace.events.append(SyncFile(self._number))

    def flusher(self) -> Callable[[], None]:
        return self.sync

    def fail_sync(self) -> None:
        """Note that a flush was asked for and failed."""
        self._trace.events.append(FailedSync(self._number))

    def size(self) -> int:
        return self._file.size()

    def truncate(self, size: int) -> None:
        self._trace.events.append(Truncate(self._number, size))
        self._file.truncate(size)

    def allocate(self, size: int) -> None:
        self._file.allocate(size)

    def close(self) -> None:
        """Closing makes nothing durable."""


@final
class RecordingDir:
    """A directory whose changes are written down.

    >>> host = RecordingDir.over(MemoryDir())
    >>> file = host.open("name", create=True)
    >>> [type(event).__name__ for event in host.trace.events]
    ['Create']
    """

    def __init__(self, trace: Trace, directory: MemoryDir) -> None:
        self.trace = trace
        self._dir = directory
        self._number = trace.number(directory)
        self.label = directory.label

    @classmethod
    def over(cls, directory: MemoryDir) -> RecordingDir:
        """Record what is done to ``directory``; what it holds now counts as durable."""
        trace = Trace(copy.deepcopy(directory))
        _number_all(trace, directory)
        return cls(trace, directory)

    def open(self, name: str, *, write: bool = False, create: bool = False) -> RecordingFile:
        file = self._dir.open(name, write=write, create=create)
        opened = RecordingFile(self.trace, file)
        if create:
            self.trace.events.append(Create(self._number, name, self.trace.number(file)))
        return opened

    def subdir(self, name: str, *, create: bool = False) -> RecordingDir:
        fresh = create and name not in self._dir.dirs
        directory = self._dir.subdir(name, create=create)
        made = RecordingDir(self.trace, directory)
        if fresh:
            # As HostDir does it: made, then the parent flushed.
            self.trace.events.append(MakeDir(self._number, name, self.trace.number(directory)))
            self.trace.events.append(SyncDir(self._number))
        return made

    def names(self) -> list[str]:
        return self._dir.names()

    def unlink(self, name: str) -> None:
        self._dir.unlink(name)
        self.trace.events.append(Unlink(self._number, name))

    def rename(self, old: str, new: str) -> None:
        self._dir.rename(old, new)
        self.trace.events.append(Rename(self._number, old, new))

    def sync(self) -> None:
        self.trace.events.append(SyncDir(self._number))

    def lock(self, *, exclusive: bool) -> None:
        self._dir.lock(exclusive=exclusive)

    def free_bytes(self) -> tuple[int, int]:
        return self._dir.free_bytes()

    def close(self) -> None:
        self._dir.close()


def _number_all(trace: Trace, directory: MemoryDir) -> None:
    """Number what is there already, in an order that ``crashes`` repeats on the base."""
    trace.number(directory)
    for name in sorted(directory.files):
        trace.number(directory.files[name])
    for name in sorted(directory.dirs):
        _number_all(trace, directory.dirs[name])
