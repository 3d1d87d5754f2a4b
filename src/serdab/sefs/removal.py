# SPDX-License-Identifier: Apache-2.0
"""Frees the content of large files in pieces, after their last name is gone.

Above: ``journal`` (which asks for a piece between requests), ``volume``. Below: ``content``.

What is changed is in memory until a checkpoint, so the extents of a large file cannot all go at
once, nor while a program waits. Its inode stays as one in use without a name (ORPHAN), so that a
session that ends in between leaves the rest to the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, final

from serdab.errors import AuthenticationError, FormatError, FsError
from serdab.sefs.content import Content
from serdab.sefs.extents import END
from serdab.vfs.api import Inode

PIECE: Final = 512
"""Extent items that go at once: some milliseconds."""
FREED_AT_ONCE: Final = 8192
"""Of what is freed in idle time a checkpoint takes so many items: a request may wait for it."""
NEXT_PIECE_S: Final = 0.001
"""Requests come first."""

log = logging.getLogger("serdab.sefs")


@final
class Removal:
    """The inodes of one volume whose content is being freed."""

    __slots__ = ("_content", "_inodes", "_next_group", "on_rest")

    def __init__(self, content: Content) -> None:
        self._content = content
        self.on_rest: Callable[[Inode], object] = content.drop
        """Called with an inode of which no more is left than goes at once."""
        self._inodes: dict[int, Inode] = {}
        #: Where the extents begin that are left of the inode that comes first.
        self._next_group = 0

    @property
    def is_pending(self) -> bool:
        """Whether anything is left to be freed."""
        return bool(self._inodes)

    def is_large(self, inode: Inode) -> bool:
        """Return whether an inode goes in pieces."""
        return self._content.is_large(inode, PIECE)

    def begin(self, inode: Inode) -> None:
        """Free the content of an inode from now on; nobody reads it any more."""
        self._content.forget_dirty(inode)
        self._inodes[inode.ino] = inode

    def step(self) -> None:
        """Free one piece. What cannot be read stays, for fsck to look at."""
        inode = next(iter(self._inodes.values()))
        try:
            self._next_group = self._content.drop_some(inode.ino, self._next_group, PIECE)
            if self._next_group != END:
                return
            self.on_rest(inode)
        except (AuthenticationError, FormatError, FsError) as exc:
            log.error("inode %d: its content is not freed: %s", inode.ino, exc)  # noqa: TRY400 - one line
        self._next_group = 0
        del self._inodes[inode.ino]
