# SPDX-License-Identifier: Apache-2.0
"""Items in memory over the tree of the last checkpoint: what a volume knows right now.

Above: ``content``, ``volume``. Below: ``tree``.

``mem`` holds every item changed since the last checkpoint (None: deleted), but for those that were
written into the tree ahead of the next one; ``pending`` the keys changed since the last commit. An
inode that is younger than the tree has nothing there, so looking is skipped.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final, final

from serdab.sefs.page import ITEM_OVERHEAD, Item
from serdab.sefs.tree import Change, Tree

_PREFIX: Final = 9
_ITEM_BYTES: Final = 400
"""Two objects, their places in three tables, and the inode's: beside the bytes themselves."""
_YOUNG_BYTES: Final = 110
_UNKNOWN: Final = bytes(bytearray(b"unknown"))
"""Told from every value by being this object: a miss that raises costs more than the rest."""


class _Run:
    """The changed keys of one inode and kind."""

    __slots__ = ("keys", "ordered")

    def __init__(self) -> None:
        self.keys: set[bytes] = set()
        self.ordered: list[bytes] | None = None


@final
class Items:
    """A sorted map from keys to values."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.mem: dict[bytes, bytes | None] = {}
        self.pending: set[bytes] = set()
        self.young: set[bytes] = set()
        self._runs: dict[bytes, _Run] = {}
        self._value_bytes = 0
        self.has_written = False
        """Whether some of what was changed since the checkpoint is in the tree already."""

    @property
    def stored_bytes(self) -> int:
        """What the changed items add to the pages that a checkpoint writes."""
        return self._value_bytes + len(self.mem) * ITEM_OVERHEAD

    @property
    def held_bytes(self) -> int:
        """About what the changed items take in memory."""
        return self._value_bytes + len(self.mem) * _ITEM_BYTES + len(self.young) * _YOUNG_BYTES

    def get(self, key: bytes) -> bytes | None:
        """Return a value, or None."""
        value = self.mem.get(key, _UNKNOWN)
        if value is not _UNKNOWN:
            return value
        return None if key[:8] in self.young else self.tree.get(key)

    def put(self, key: bytes, value: bytes | None) -> None:
        """Set a value; None deletes."""
        old = self.mem.get(key, _UNKNOWN)
        if old is _UNKNOWN:
            self._value_bytes += len(key)
            if len(key) > _PREFIX:
                run = self._runs.get(key[:_PREFIX])
                if run is None:
                    run = self._runs[key[:_PREFIX]] = _Run()
                run.keys.add(key)
                run.ordered = None
        elif old:
            self._value_bytes -= len(old)
        if value:
            self._value_bytes += len(value)
        self.mem[key] = value
        self.pending.add(key)

    def drop(self, key: bytes) -> None:
        """Delete a value that may not be there: of a young inode that no commit saw, nothing is."""
        if key in self.mem or key[:8] not in self.young:
            self.put(key, None)

    def scan(self, prefix: bytes, start: bytes = b"") -> Iterator[Item]:
        """Return an iterator of the items of one inode and kind (a 9-byte prefix), in order.

        It begins at ``start``, if that is given.
        """
        start = max(start, prefix)
        stored: Iterator[Item] = iter(())
        if prefix[:8] not in self.young:
            stored = self.tree.scan(start, prefix[:8] + bytes((prefix[8] + 1,)))
        run = self._runs.get(prefix)
        return stored if run is None else self._merged(stored, run, start)

    def last(self, start: bytes, end: bytes) -> bytes | None:
        """Return the greatest key with start <= key < end; both are of one inode and kind."""
        found: bytes | None = None
        run = self._runs.get(start[:_PREFIX])
        if run is not None:
            ordered = self._in_order(run)
            index = bisect_left(ordered, end) - 1
            while index >= 0 and ordered[index] >= start and self.mem[ordered[index]] is None:
                index -= 1
            if index >= 0 and ordered[index] >= start:
                found = ordered[index]
        if start[:8] in self.young:
            return found
        stored = self.tree.last(start, end)
        while stored is not None and self.mem.get(stored, _UNKNOWN) is None:
            stored = self.tree.last(start, stored)
        return max(filter(None, (found, stored)), default=None)

    def _in_order(self, run: _Run) -> list[bytes]:
        if run.ordered is None:
            run.ordered = sorted(run.keys)
        return run.ordered

    def _merged(self, stored: Iterator[Item], run: _Run, start: bytes) -> Iterator[Item]:
        # A copy of the position is enough: a later change makes a new list.
        ordered = self._in_order(run)
        index = bisect_left(ordered, start)
        for key, value in stored:
            while index < len(ordered) and ordered[index] < key:
                changed = self.mem[ordered[index]]
                if changed is not None:
                    yield ordered[index], changed
                index += 1
            if index < len(ordered) and ordered[index] == key:
                continue
            yield key, value
        for key in ordered[index:]:
            changed = self.mem[key]
            if changed is not None:
                yield key, changed

    def changes(self) -> list[Change]:
        """Return everything changed since the last checkpoint, sorted."""
        return sorted(self.mem.items(), key=lambda change: change[0])

    def written(self, tree: Tree, keys: Iterable[bytes]) -> None:
        """The tree holds these changed items now; it is not that of a checkpoint yet."""
        self.tree = tree
        self.has_written = True
        for key in keys:
            value = self.mem.pop(key)
            self._value_bytes -= len(key) + len(value or b"")
            self.pending.discard(key)
            self.young.discard(key[:8])
            run = self._runs.get(key[:_PREFIX]) if len(key) > _PREFIX else None
            if run is not None:
                run.keys.discard(key)
                run.ordered = None
                if not run.keys:
                    del self._runs[key[:_PREFIX]]

    def was_changed(self, key: bytes) -> bool:
        """Return whether a value may have been changed since the last checkpoint."""
        return self.has_written or key in self.mem

    def settle(self, tree: Tree) -> None:
        """The tree holds everything now."""
        self.tree = tree
        self.mem = {}
        self.pending = set()
        self.young = set()
        self._runs = {}
        self._value_bytes = 0
        self.has_written = False
