# SPDX-License-Identifier: Apache-2.0
"""A copy-on-write, authenticated B+tree over an ordered key space, changed in batches. Pure logic.

Everything a volume knows (inodes, names, extents, attributes) is an item of one tree. A batch of
changes rewrites each touched page once, bottom-up; there is no in-place insertion and no
rebalancing step: a rewritten run of items is cut into pages anew, small leftovers join a
neighbour. Pointers are opaque bytes; what authenticates them is the page store's affair.

Above: ``image`` and ``volume``. Below: ``page`` and a :class:`PageStore`.

Security: a child's level is its parent's minus one, so a chain of pointers ends, whatever the
image says; a child whose first key is not the one its parent names is refused.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol, final

from serdab.errors import FormatError
from serdab.sefs.page import MAX_LEVEL, Item, Page, dump_page, split_items
from serdab.structs import frozen

Change = tuple[bytes, bytes | None]


class PageStore(Protocol):
    """Where pages live."""

    def load_page(self, pointer: bytes, *, level: int) -> Page:
        """Return a verified page."""
        ...


class PageSink(PageStore, Protocol):
    """Where new pages go."""

    def store_page(self, raw: bytes, *, level: int) -> bytes:
        """Store a page; return its pointer."""
        ...

    def free_page(self, pointer: bytes) -> None:
        """The page is no longer part of the newest tree."""
        ...


@frozen
class Root:
    """The root of a tree: its pointer and level. ``pointer`` is empty for an empty tree."""

    pointer: bytes
    level: int


EMPTY: Final = Root(b"", 0)
_LAST: Final = b"\xff" * 9
"""Above every key: inode numbers stay below 2**62."""


class _Near(NamedTuple):
    """A leaf and the keys it answers for: low <= key < high."""

    low: bytes
    high: bytes
    page: Page


_NEAR_LEAVES: Final = 512
"""So many leaves are found without a walk from the root."""


@final
class Tree:
    """Reads a tree. The root may be replaced by what :func:`apply_changes` returned."""

    __slots__ = ("_lows", "_near", "root", "store")

    def __init__(self, store: PageStore, root: Root) -> None:
        if root.level > MAX_LEVEL:
            raise FormatError("tree deeper than any real one", found=str(root.level))
        self.store = store
        self.root = root
        self._lows: list[bytes] = []
        self._near: list[_Near] = []

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, or None."""
        at = bisect_right(self._lows, key) - 1
        if at < 0 or key >= (near := self._near[at]).high:
            found = self._leaf(key)
            if found is None:
                return None
            near = found
        page = near.page
        keys = page.keys
        index = bisect_left(keys, key)
        if index < len(keys) and keys[index] == key:
            return page.value(index)
        return None

    def _leaf(self, key: bytes) -> _Near | None:
        """Return the leaf that would hold a key, and remember which keys it answers for.

        Programs ask for what lies together: the leaves used of late answer most of them. The tree
        of a root never changes, so there is nothing to invalidate.
        """
        pointer, level = self.root.pointer, self.root.level
        if not pointer:
            return None
        page = self.store.load_page(pointer, level=level)
        low, high = b"", _LAST
        while level:
            index = bisect_right(page.keys, key) - 1
            if index < 0:
                return None
            low = page.keys[index]
            if index + 1 < len(page.keys):
                high = page.keys[index + 1]
            level -= 1
            page = load_child(self.store, page, index)
        if len(self._lows) >= _NEAR_LEAVES:
            self._lows, self._near = [], []
        at = bisect_left(self._lows, low)
        near = _Near(low, high, page)
        self._lows.insert(at, low)
        self._near.insert(at, near)
        return near

    def last(self, start: bytes, end: bytes) -> bytes | None:
        """Return the greatest key with start <= key < end, or None."""
        pointer, level = self.root.pointer, self.root.level
        if not pointer:
            return None
        page = self.store.load_page(pointer, level=level)
        while (index := bisect_left(page.keys, end) - 1) >= 0:
            if not level:
                return page.keys[index] if page.keys[index] >= start else None
            level -= 1
            page = load_child(self.store, page, index)
        return None

    def scan(self, start: bytes, end: bytes) -> Iterator[Item]:
        """Return an iterator of the items with start <= key < end, in order."""
        at = bisect_right(self._lows, start) - 1
        near = self._near[at] if at >= 0 else None
        if near is None or start >= near.high:
            near = self._leaf(start)
        if near is not None and end <= near.high:
            keys = near.page.keys
            index = bisect_left(keys, start)
            if index == len(keys) or keys[index] >= end:
                return iter(())  # most files have none of what is asked for
            return self._scan(near.page, start, end)
        if not self.root.pointer:
            return iter(())
        page = self.store.load_page(self.root.pointer, level=self.root.level)
        return self._scan(page, start, end)

    def _scan(self, page: Page, start: bytes, end: bytes) -> Iterator[Item]:
        if page.level == 0:
            for index in range(bisect_left(page.keys, start), len(page.keys)):
                key = page.keys[index]
                if key >= end:
                    return
                yield key, page.value(index)
            return
        index = max(bisect_right(page.keys, start) - 1, 0)
        while index < len(page.keys) and page.keys[index] < end:
            yield from self._scan(load_child(self.store, page, index), start, end)
            index += 1

    def pages(self) -> Iterator[tuple[bytes, Page]]:
        """Yield (pointer, page) for each page, parents first."""
        if not self.root.pointer:
            return
        root = self.store.load_page(self.root.pointer, level=self.root.level)
        stack = [(self.root.pointer, root)]
        while stack:
            pointer, page = stack.pop()
            yield pointer, page
            if page.level:
                for index in reversed(range(len(page.keys))):
                    stack.append((page.value(index), load_child(self.store, page, index)))


def load_child(store: PageStore, parent: Page, index: int) -> Page:
    """Return a child page, checked against what its parent says of it."""
    child = store.load_page(parent.value(index), level=parent.level - 1)
    if child.keys[0] != parent.keys[index]:
        raise FormatError("tree page that is not the one its parent names")
    if index + 1 < len(parent.keys) and child.keys[-1] >= parent.keys[index + 1]:
        raise FormatError("tree page that reaches into its neighbour")
    return child


def apply_changes(sink: PageSink, root: Root, changes: Sequence[Change], *, page_size: int) -> Root:
    """Write the tree that has ``changes`` (sorted by key, None deletes); return its root.

    The old tree stays readable until its pages are reclaimed.
    """
    if not changes:
        return root
    if root.pointer:
        items = _rewrite(sink, root.pointer, root.level, changes, page_size)
        sink.free_page(root.pointer)
        level = root.level
    else:
        items = [(key, value) for key, value in changes if value is not None]
        level = 0
    return store_levels(sink, items, level, page_size=page_size)


def store_levels(sink: PageSink, items: Sequence[Item], level: int, *, page_size: int) -> Root:
    """Write items of one level as pages, and the levels above them; return the root."""
    while True:
        if not items:
            return EMPTY
        if level and len(items) == 1:
            # An interior page with one child would only be a detour.
            return _skip_single(sink, items[0][1], level - 1)
        runs = split_items(items, page_size)
        stored = [(run[0][0], sink.store_page(dump_page(level, run), level=level)) for run in runs]
        if len(stored) == 1:
            return Root(stored[0][1], level)
        items, level = stored, level + 1


def _skip_single(sink: PageSink, pointer: bytes, level: int) -> Root:
    while level:
        page = sink.load_page(pointer, level=level)
        if len(page.keys) > 1:
            break
        child = page.value(0)
        sink.free_page(pointer)
        pointer, level = child, level - 1
    return Root(pointer, level)


def _merge(page: Page, changes: Sequence[Change]) -> list[Item]:
    merged: dict[bytes, bytes] = dict(page.items())
    fresh = False
    for key, value in changes:
        if value is None:
            merged.pop(key, None)
        else:
            fresh = fresh or key not in merged
            merged[key] = value
    return sorted(merged.items()) if fresh else list(merged.items())


def _rewrite(
    sink: PageSink, pointer: bytes, level: int, changes: Sequence[Change], page_size: int
) -> list[Item]:
    """Return the items that replace the content of a page, its children written."""
    page = sink.load_page(pointer, level=level)
    if level == 0:
        return _merge(page, changes)
    # A run is either the untouched child it names, or items that still need pages.
    result: list[Item] = []
    run: list[Item] = []
    low = 0
    small = page_size // 4
    keys = page.keys
    for index, key in enumerate(keys):
        if index + 1 < len(keys):
            high = bisect_left(changes, (keys[index + 1],), low)
        else:
            high = len(changes)
        child = page.value(index)
        if low < high:
            run.extend(_rewrite(sink, child, level - 1, changes[low:high], page_size))
            sink.free_page(child)
            low = high
        elif run and _size(run) < small:
            # Too little for a page of its own: the right neighbour takes it in.
            run.extend(sink.load_page(child, level=level - 1).items())
            sink.free_page(child)
        else:
            _store_run(sink, result, run, level - 1, page_size)
            run = []
            result.append((key, child))
    if run and result and _size(run) < small:
        # The last run is small and has no right neighbour: join the left one.
        _, left = result.pop()
        run[:0] = sink.load_page(left, level=level - 1).items()
        sink.free_page(left)
    _store_run(sink, result, run, level - 1, page_size)
    return result


def _size(items: Sequence[Item]) -> int:
    return sum(len(key) + len(value) for key, value in items)


def _store_run(
    sink: PageSink, result: list[Item], run: list[Item], level: int, page_size: int
) -> None:
    if not run:
        return
    for part in split_items(run, page_size):
        result.append((part[0][0], sink.store_page(dump_page(level, part), level=level)))
