# SPDX-License-Identifier: Apache-2.0
"""What a power cut may leave of a recorded workload: every state that a POSIX host allows.

After each event of a trace the power may fail. Then

* a write or truncation that no flush of its file followed happened or not, each on its own, and a
  write may be torn at 512 or 4096 bytes, be zeros (a new length without the data) or, if it was
  the one in flight, garbage;
* a new, changed or removed name that no flush of its directory followed happened or not;
* what a *failed* flush covered stays in doubt for ever.

Up to :data:`EXHAUSTIVE` pending events every subset is tried, beyond that all prefixes and random
subsets.

Above: tests. Below: ``recording``, ``sefs.memorydir``.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Final, final

from serdab.sefs.memorydir import MemoryDir, MemoryFile
from serdab.structs import field, frozen, mutable
from serdab.testing.recording import (
    Create,
    Event,
    FailedSync,
    MakeDir,
    Mark,
    Rename,
    SyncDir,
    SyncFile,
    Trace,
    Truncate,
    Unlink,
    Write,
)

EXHAUSTIVE: Final = 8
_RANDOM_SUBSETS: Final = 24
_SECTORS: Final = (512, 4096)

Change = Write | Truncate
Naming = Create | MakeDir | Rename | Unlink


@frozen
class CrashState:
    """One thing the host may hold after the power failed."""

    point: int
    """Index of the first event that did not happen."""
    kind: str
    """How the pending events fared, for the message of a failing test."""
    mark: Mark
    """How far the workload was."""
    host: MemoryDir


@mutable
class _File:
    durable: bytearray
    pending: list[tuple[int, Change]] = field(default_factory=list)
    """Since the last flush; after one that failed, everything."""
    doubtful: set[int] = field(default_factory=set)
    """Of the pending: what a failed flush covered."""
    sure: set[int] = field(default_factory=set)
    """Of the pending: what a later flush made durable. It stays there to keep the order."""

    def flush(self) -> None:
        if self.doubtful:
            self.sure.update(index for index, _ in self.pending if index not in self.doubtful)
            return
        for _, change in self.pending:
            _change(self.durable, change)
        self.pending.clear()

    def fail(self) -> None:
        self.doubtful.update(index for index, _ in self.pending if index not in self.sure)


@mutable
class _Dir:
    durable: dict[str, int] = field(default_factory=dict)
    pending: list[tuple[int, Naming]] = field(default_factory=list)

    def flush(self) -> None:
        for _, naming in self.pending:
            _rename(self.durable, naming)
        self.pending.clear()


@final
class CrashStates:
    """Iterates over crash states of a trace.

    ``per_point`` bounds the states of one point (None: all); beyond it a random choice is made, in
    which "all pending kept" and "none kept" always are.
    """

    def __init__(
        self, trace: Trace, *, seed: int = 0, per_point: int | None = None, first: int = 0
    ) -> None:
        self._trace = trace
        self._random = random.Random(seed)  # noqa: S311 - it chooses test cases
        self._per_point = per_point
        self._first = first
        self._files: dict[int, _File] = {}
        self._dirs: dict[int, _Dir] = {}
        self._next = 0
        self._root = self._load(trace.base)

    def _load(self, directory: MemoryDir) -> int:
        number = self._next
        self._next += 1
        state = self._dirs[number] = _Dir()
        for name in sorted(directory.files):
            self._files[self._next] = _File(bytearray(directory.files[name].content))
            state.durable[name] = self._next
            self._next += 1
        for name in sorted(directory.dirs):
            state.durable[name] = self._load(directory.dirs[name])
        return number

    def __iter__(self) -> Iterator[CrashState]:
        mark = Mark(0, 0)
        fresh = True
        for point, event in enumerate(self._trace.events):
            if point >= self._first and fresh:
                yield from self._at(point, mark)
            # A flush alone takes states away, a mark changes none: both are seen with what follows.
            fresh = not isinstance(event, Mark)
            if isinstance(event, Mark):
                if event.acknowledged > mark.acknowledged:
                    fresh = True
                mark = event
            else:
                self._happen(point, event)
        yield from self._at(len(self._trace.events), mark)

    def _happen(self, point: int, event: Event) -> None:
        match event:
            case Write() | Truncate():
                self._files[event.file].pending.append((point, event))
            case SyncFile(file=file):
                self._files[file].flush()
            case FailedSync(file=file):
                self._files[file].fail()
            case Create(directory=directory, file=file):
                self._files[file] = _File(bytearray())
                self._dirs[directory].pending.append((point, event))
            case MakeDir(directory=directory, made=made):
                self._dirs[made] = _Dir()
                self._dirs[directory].pending.append((point, event))
            case Rename(directory=directory) | Unlink(directory=directory):
                self._dirs[directory].pending.append((point, event))
            case SyncDir(directory=directory):
                self._dirs[directory].flush()

    def _at(self, point: int, mark: Mark) -> Iterator[CrashState]:
        pending = [index for names in self._dirs.values() for index, _ in names.pending]
        for file in self._files.values():
            pending += [index for index, _ in file.pending if index not in file.sure]
        pending.sort()
        plans = self._plans(pending)
        if self._per_point is not None and len(plans) > self._per_point:
            plans = plans[:2] + self._random.sample(plans[2:], max(self._per_point - 2, 0))
        for kind, kept, other in plans:
            yield CrashState(point, kind, mark, self._build(self._root, kept, other, "host"))

    def _plans(self, pending: list[int]) -> list[tuple[str, frozenset[int], dict[int, Change]]]:
        """Return (description, what is kept, writes that came out otherwise)."""
        everything = frozenset(pending)
        plans: list[tuple[str, frozenset[int], dict[int, Change]]] = [("all", everything, {})]
        if not pending:
            return plans
        plans.append(("none", frozenset(), {}))
        if len(pending) <= EXHAUSTIVE:
            subsets: list[tuple[int, ...]] = [
                subset
                for count in range(1, len(pending))
                for subset in itertools.combinations(pending, count)
            ]
        else:
            subsets = [tuple(pending[:count]) for count in range(1, len(pending))]
            subsets += [
                tuple(index for index in pending if self._random.random() < share)
                for share in (0.2, 0.5, 0.8)
                for _ in range(_RANDOM_SUBSETS // 3)
            ]
        plans += [(f"only {subset}", frozenset(subset), {}) for subset in subsets]
        writes = [
            event
            for event in map(self._trace.events.__getitem__, pending)
            if isinstance(event, Write) and event.data
        ]
        for write in writes[-2:]:
            index = next(i for i in pending if self._trace.events[i] is write)
            plans += [
                (f"{what} {index}", everything, {index: changed})
                for what, changed in self._damaged(write)
            ]
        return plans

    def _damaged(self, write: Write) -> Iterator[tuple[str, Write]]:
        """Yield what may become of a write that was in flight."""
        length = len(write.data)
        for sector in _SECTORS:
            count = -(-length // sector)
            if count < 2:
                continue
            for first in {1, count // 2, count - 1, self._random.randrange(1, count)}:
                yield f"torn after {first}x{sector}", _part(write, 0, first * sector)
                yield f"torn before {first}x{sector}", _part(write, first * sector, length)
        sector = _SECTORS[0]
        hole = self._random.randrange(-(-length // sector)) * sector
        end = min(hole + sector, length)
        noise = self._random.randbytes(end - hole)
        mixed = write.data[:hole] + noise + write.data[end:]
        yield f"a garbage sector at {hole} of", Write(write.file, write.offset, mixed)
        yield "garbage in", Write(write.file, write.offset, self._random.randbytes(length))
        yield "zeros in", Write(write.file, write.offset, bytes(length))

    def _build(
        self, number: int, kept: frozenset[int], other: dict[int, Change], label: str
    ) -> MemoryDir:
        state = self._dirs[number]
        names = dict(state.durable)
        for index, naming in state.pending:
            if index in kept:
                _rename(names, naming)
        built = MemoryDir(label)
        for name, entry in names.items():
            if entry in self._dirs:
                built.dirs[name] = self._build(entry, kept, other, f"{label}/{name}")
                continue
            file = self._files[entry]
            content = bytearray(file.durable)
            for index, change in file.pending:
                if index in kept or index in file.sure:
                    _change(content, other.get(index, change))
            built.files[name] = made = MemoryFile()
            made.content = content
        return built


def _part(write: Write, start: int, end: int) -> Write:
    return Write(write.file, write.offset + start, write.data[start:end])


def _change(content: bytearray, change: Change) -> None:
    if isinstance(change, Write):
        end = change.offset + len(change.data)
        if change.offset > len(content):
            content.extend(bytes(change.offset - len(content)))
        content[change.offset : end] = change.data
    elif change.size < len(content):
        del content[change.size :]
    else:
        content.extend(bytes(change.size - len(content)))


def _rename(names: dict[str, int], naming: Naming) -> None:
    match naming:
        case Create(name=name, file=number) | MakeDir(name=name, made=number):
            names[name] = number
        case Rename(old=old, new=new):
            if old in names:
                names[new] = names.pop(old)
        case Unlink(name=name):
            names.pop(name, None)
