# SPDX-License-Identifier: Apache-2.0
"""Writes the changed part of the tree, and moves what is alive out of segments that are emptied.

Above: ``journal``. Below: ``items``, ``content``, ``pagestore``, ``reclaim``, ``leftovers``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, final

from serdab.errors import AuthenticationError, Error, FormatError
from serdab.sefs.content import Content
from serdab.sefs.items import Items
from serdab.sefs.leftovers import Leftovers
from serdab.sefs.pagestore import VolumePages
from serdab.sefs.reclaim import (
    choose_victims,
    forget_owners,
    move_data,
    move_data_steps,
    move_pages,
)
from serdab.sefs.reserve import is_full_only
from serdab.sefs.segment import SegmentStore
from serdab.sefs.tree import Change, Root, Tree, apply_changes

log = logging.getLogger("serdab.sefs")

_PAGES: Final = 32
"""So many tree pages are moved in one step."""


@final
class TreeWriter:
    """What a checkpoint does before its anchor."""

    def __init__(
        self,
        items: Items,
        content: Content,
        segments: SegmentStore,
        pages: VolumePages,
        leftovers: Leftovers,
        *,
        page_size: int,
        label: str,
    ) -> None:
        self._items = items
        self._content = content
        self._segments = segments
        self._pages = pages
        self._leftovers = leftovers
        self._page_size = page_size
        self._label = label
        self._unmovable: set[int] = set()
        #: Moved since the last checkpoint.
        self._moved_bytes = 0
        #: Segments that were chosen for that.
        self._emptied: set[int] = set()

    def move_steps(self, budget: int) -> Iterator[None]:
        """Move live data, of at most so many bytes, out of segments that the next checkpoint
        empties, in steps. What is moved by then counts as moved by that one."""
        self._emptied = self._choose(budget)
        self._moved_bytes += sum(self._segments.usage[number].live for number in self._emptied)
        try:
            yield from move_data_steps(self._items, self._content, self._emptied)
        except (AuthenticationError, FormatError) as exc:
            self._leave(self._emptied, exc)

    def move_page_steps(self) -> Iterator[None]:
        """Move the tree pages out of these segments, too."""
        victims = self._emptied - self._unmovable
        while victims:
            root = self._items.tree.root
            try:
                self._change(lambda: move_pages(self._pages, root, victims, _PAGES), ())  # noqa: B023 - called at once
            except (AuthenticationError, FormatError) as exc:
                self._leave(victims, exc)
                return
            if self._items.tree.root == root:
                return
            yield

    def _choose(self, budget: int) -> set[int]:
        spare = self._unmovable | self._leftovers.dead.keys()
        return choose_victims(self._segments, max(budget - self._moved_bytes, 0), spare)

    def write_some(self, changes: Sequence[Change]) -> None:
        """Write some changed items into the tree, ahead of a checkpoint.

        Raises:
            OSError: the host refused; nothing was changed.
        """
        root, size = self._items.tree.root, self._page_size
        self._change(
            lambda: apply_changes(self._pages, root, changes, page_size=size),
            [key for key, _ in changes],
        )

    def _change(self, change: Callable[[], Root], keys: Iterable[bytes]) -> None:
        """Have another tree in memory, that holds the changed items of these keys."""
        pages = self._pages
        pages.writer.flush()
        mark = pages.writer.mark()
        try:
            root = change()
        except BaseException as exc:
            pages.undo()
            if is_full_only(exc):
                self.give_up(lambda: pages.writer.cut(mark))
            raise
        pages.keep()
        self._items.written(Tree(pages, root), keys)

    def give_up(self, cut: Callable[[], None]) -> None:
        """Give back what an attempt wrote that a full host ended."""
        try:
            cut()
        except OSError as exc:
            log.warning("%s: what was written in vain stays for now: %s", self._label, exc)

    def choose_victims(self, budget: int, more: int) -> set[int]:
        """Return the segments to be emptied; their live data is moved already.

        ``more``: beyond what was moved in steps, so many bytes at most.
        """
        victims = self._choose(min(budget, self._moved_bytes + more))
        self._moved_bytes = 0
        try:
            move_data(self._items, self._content, victims)
        except (AuthenticationError, FormatError) as exc:
            self._leave(victims, exc)
            return set()
        return victims

    def _leave(self, victims: set[int], exc: Error) -> None:
        """Something in these segments does not verify: they stay, for fsck to look at."""
        log.error("%s: space is not reclaimed: %s", self._label, exc)
        self._unmovable |= victims

    def write(self, victims: set[int]) -> Root:
        """Write the pages of all changed items, and those that lie in victims.

        Preconditions: everything that is known stands in the items.
        """
        forget_owners(self._items, self._segments)
        root = apply_changes(
            self._pages,
            self._items.tree.root,
            self._items.changes(),
            page_size=self._page_size,
        )
        try:
            return move_pages(self._pages, root, victims)
        except (AuthenticationError, FormatError) as exc:
            self._leave(victims, exc)
            self._pages.undo()
            return self.write(set())
