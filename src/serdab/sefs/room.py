# SPDX-License-Identifier: Apache-2.0
"""What is changed and not durable yet: how much memory it takes, how much room on the host. Pure.

Above: ``journal``. Below: ``items``, ``content``, ``limits``.

Both are counted in bytes, worst case: a program chooses how large a thing is.
"""

from __future__ import annotations

from typing import Final, final

from serdab.sefs.content import Content
from serdab.sefs.items import Items
from serdab.sefs.limits import VolumeLimits
from serdab.vfs.api import Inode

BASE_ROOM: Final = 256 << 10
"""New segments, their table, a log: what a checkpoint takes however little changed."""
REMOVAL_ROOM: Final = 512 << 10
"""What is kept for removing, which must work when nothing else does."""
_INODE_BYTES: Final = 700
"""A changed inode in memory: its object, and the item it becomes."""
_INODE_STORED: Final = 101
"""An INODE item in a page."""


@final
class Changes:
    """The changes of one volume."""

    def __init__(
        self, items: Items, content: Content, inodes: dict[int, Inode], page_size: int
    ) -> None:
        self._items = items
        self._content = content
        self._inodes = inodes
        self._page_size = page_size

    def count(self) -> int:
        """Return how many items differ from the newest checkpoint."""
        return len(self._items.mem) + len(self._inodes)

    def held_bytes(self) -> int:
        """Return about what they take in memory, dirty content apart (that has its own limit)."""
        noted = self._items.held_bytes + self._content.noted_bytes()
        return noted + len(self._inodes) * _INODE_BYTES

    def scattered_bytes(self) -> int:
        """Return what is written anew because something beside it changed: a page an item."""
        return self.count() * self._page_size

    def stored_bytes(self) -> int:
        """Return what they add to the pages."""
        noted = self._items.stored_bytes + self._content.noted_bytes()
        return noted + len(self._inodes) * _INODE_STORED

    def added_bytes(self, growth: int) -> int:
        """Return what the volume grows by, with ``growth`` more."""
        content = self._content.dirty_bytes + self._content.writer.waiting_bytes
        return growth + content + self.stored_bytes()

    def room(self, growth: int, limits: VolumeLimits) -> int:
        """Return what a commit, the checkpoint after it and a second one may take.

        ``growth`` is what is about to be added. The commit carries the items once more; were it
        longer than a commit may be, it would be a checkpoint itself.
        """
        pages = min(self.scattered_bytes(), limits.scattered_bytes)
        logged = min(self.stored_bytes() + growth, limits.commit_bytes) + limits.log_growth_bytes
        return self.added_bytes(growth) + 2 * pages + logged + BASE_ROOM + REMOVAL_ROOM
