# SPDX-License-Identifier: Apache-2.0
"""What the kernel has of a file and has not written yet: stores through a shared mapping.

A store into a hole is seen by whoever reads the file, but the file system learns of it at msync(2),
munmap(2) or when the kernel writes back. So an answer from what is stored would call it a hole, and
who copies by SEEK_DATA (cp, ``tar -S``) would leave it out. Here the kernel is asked for what it
holds (FUSE_NOTIFY_RETRIEVE) before a hole is called one.

To have the kernel write back instead (FUSE_NOTIFY_INVAL_INODE) is no way: it waits, and cannot be
killed, until this process has answered its WRITE requests, and a server that is killed meanwhile
leaves a mount behind that nobody can end.

Which pages may be stored into: only those that were READ, since what no READ brought in has been
written with the file, and is no hole. So it is noted of each file which parts were read, and
nothing is asked of others.

Above: ``operations``. Below: ``vfs.api``, ``linux.process``. It does no I/O: a generator yields
what to ask for, as (offset, size), and is sent the bytes that the kernel holds from there on
without a gap. Or it yields what ``vfs.steps`` says, and others are served before it goes on.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Final, TypeAlias, final

from serdab.errors import FsError
from serdab.linux.process import is_being_killed, number_here
from serdab.vfs.api import FileSystem
from serdab.vfs.steps import Steps, Unfinished

#: Asks for pages, is given them, and returns a position; in between it does steps.
Asking: TypeAlias = "Generator[tuple[int, int] | int | None, bytes, int]"

UNIT_SHIFT: Final = 20
#: What is noted and asked for at once; the kernel gives a megabyte at most (max_write).
UNIT: Final = 1 << UNIT_SHIFT
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_ZEROS: Final = bytes(UNIT)
#: So many units are noted at most; of a file beyond, all is taken for read.
MAX_UNITS: Final = 1 << 18
_NONE: Final[frozenset[int]] = frozenset()
_ONLY_FIRST: Final = frozenset((0,))


class Unwritten:
    """Answers SEEK_DATA and SEEK_HOLE of one file system for its kernel."""

    def __init__(self, fs: FileSystem, lseek: Callable[[int, int, int], Steps[int]]) -> None:
        """``lseek`` is that of the file system, in steps."""
        self._fs = fs
        self._lseek = lseek
        #: ino → the units of it that were read; None: any may be
        self._read: dict[int, set[int] | frozenset[int] | None] = {}
        self._noted = 0

    def note(self, ino: int, offset: int, count: int) -> None:
        """The kernel has read this part of a file that may have holes."""
        first, last = offset >> UNIT_SHIFT, (offset + count - 1) >> UNIT_SHIFT
        units = self._read.get(ino, _ONLY_FIRST if last == 0 else set())
        if isinstance(units, frozenset) and last:
            units = set(units)
        self._read[ino] = units
        if isinstance(units, set):
            before = len(units)
            units.update(range(first, last + 1))
            self._noted += len(units) - before
            if self._noted > MAX_UNITS:
                self.forget(ino)
                self._read[ino] = None

    def forget(self, ino: int) -> None:
        """The kernel holds nothing of a file any more."""
        units = self._read.pop(ino, None)
        if isinstance(units, set):
            self._noted -= len(units)

    def may_hold(self, ino: int) -> bool:
        """Return whether there may be stores that are not written."""
        return ino in self._read

    def seek(self, ino: int, offset: int, whence: int) -> Asking:
        """Find what lseek(2) asks for, with what the kernel holds."""
        if whence == os.SEEK_HOLE:
            return (yield from self._seek_hole(ino, offset))
        try:
            data = yield from self._lseek(ino, offset, whence)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            size = yield from self._size(ino)
            if offset >= size:
                raise
            found = yield from self._first_data(ino, offset, size)
            if found == size:
                raise
            return found
        return (yield from self._first_data(ino, offset, data))

    def _size(self, ino: int) -> Steps[int]:
        while True:
            try:
                return self._fs.getattr(ino).size
            except Unfinished as exc:
                # The kernel was asked by now, and the question cannot be put again.
                steps = exc.steps
            yield from steps

    def _seek_hole(self, ino: int, offset: int) -> Asking:
        hole = yield from self._lseek(ino, offset, os.SEEK_HOLE)
        size = yield from self._size(ino)
        while hole < size:
            try:
                end = yield from self._lseek(ino, hole, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno != errno.ENXIO:
                    raise
                end = size
            clear = yield from self._first_clear(ino, hole, end)
            if clear < end:
                return clear
            if end >= size:
                break
            hole = yield from self._lseek(ino, end, os.SEEK_HOLE)
        return size

    def _parts(self, ino: int, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (unit, start, end) of what was read of a range, in order."""
        units = self._read.get(ino, _NONE)
        wanted = range(start >> UNIT_SHIFT, ((end - 1) >> UNIT_SHIFT) + 1)
        among: Iterable[int] = wanted
        if units is not None:
            small, large = (wanted, units) if len(wanted) < len(units) else (units, wanted)
            among = sorted(unit for unit in small if unit in large)
        for unit in among:
            yield unit, max(start, unit << UNIT_SHIFT), min(end, (unit + 1) << UNIT_SHIFT)

    def _first_data(self, ino: int, start: int, end: int) -> Asking:
        """Return where the kernel holds something else than zeros in a hole; its end if nowhere."""
        for unit, low, high in self._parts(ino, start, end):
            at = low - low % _PAGE
            is_held = False
            while at < high:
                held = yield at, high - at
                is_held |= len(held) > 0
                if not _is_zero(held):
                    return max(start, at + _first_page(held))
                at += _pages(held)
            if not is_held and low == unit << UNIT_SHIFT and high == low + UNIT:
                self._drop(ino, unit)
        return end

    def _first_clear(self, ino: int, start: int, end: int) -> Asking:
        """Return where the kernel holds nothing, or zeros, in a hole; its end if nowhere."""
        position = start
        for _, low, high in self._parts(ino, start, end):
            if low > position:
                break
            at = low - low % _PAGE
            while at < high:
                held = yield at, high - at
                if not held:
                    return max(start, at)
                for skip in range(0, len(held), _PAGE):
                    if _is_zero(held[skip : skip + _PAGE]):
                        return max(start, at + skip)
                at += _pages(held)
            position = high
        return position

    def _drop(self, ino: int, unit: int) -> None:
        units = self._read.get(ino)
        if isinstance(units, set) and unit in units:
            units.remove(unit)
            self._noted -= 1


@final
class Question:
    """One that is asked for a request of the thread ``pid``."""

    __slots__ = ("_asking", "_pid", "is_interrupted")

    def __init__(self, asking: Asking, pid: int) -> None:
        self._asking: Final = asking
        self._pid = pid
        self.is_interrupted = False

    def interrupt(self, namespace: int) -> None:
        """As :meth:`Request.interrupt` does."""
        if not self.is_interrupted:
            self.is_interrupted = True
            if namespace >= 0:
                self._pid = number_here(self._pid, namespace)

    def go_on(self, held: bytes | None) -> tuple[int, int] | int | None:
        """Go on, with what the kernel holds if it was asked; return as an :data:`Asking` yields.

        Raises:
            StopIteration: with the position.
            FsError: EINTR, nobody waits any more; or what was found.
        """
        if self.is_interrupted and is_being_killed(self._pid):
            self._asking.close()
            raise FsError(errno.EINTR)
        return next(self._asking) if held is None else self._asking.send(held)


def _is_zero(held: bytes) -> bool:
    return _ZEROS.startswith(held)


def _pages(held: bytes) -> int:
    """Return how far the pages reach that were told, or one that there is not."""
    return max(1, -(-len(held) // _PAGE)) * _PAGE


def _first_page(held: bytes) -> int:
    """Return where the first page starts that is not zero; one is not."""
    pages = range(0, len(held), _PAGE)
    return next(skip for skip in pages if not _is_zero(held[skip : skip + _PAGE]))
