# SPDX-License-Identifier: Apache-2.0
"""Writes the changed part of the tree, and moves what is alive out of segments that are emptied.

Above: ``journal``. Below: ``items``, ``content``, ``pagestore``, ``reclaim``, ``leftovers``.
"""

from __future__ import annotations

import logging
from typing import final

from serdab.errors import AuthenticationError, Error, FormatError
from serdab.sefs.content import Content
from serdab.sefs.items import Items
from serdab.sefs.leftovers import Leftovers
from serdab.sefs.pagestore import VolumePages
from serdab.sefs.reclaim import choose_victims, forget_owners, move_data, move_pages
from serdab.sefs.segment import SegmentStore
from serdab.sefs.tree import Root, apply_changes

log = logging.getLogger("serdab.sefs")


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

    def choose_victims(self, budget: int) -> set[int]:
        """Return the segments to be emptied; their live data is moved already."""
        spare = self._unmovable | self._leftovers.dead.keys()
        victims = choose_victims(self._segments, budget, spare)
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
