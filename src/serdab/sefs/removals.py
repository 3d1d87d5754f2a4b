# SPDX-License-Identifier: Apache-2.0
"""What was removed, and is freed in pieces: content, attributes, whiteouts, the inode at last.

Most inodes go in one piece. Of one that does not, the rest is a chore: it is an orphan until its
last piece, so that whatever ends this session, the next one goes on.

Above: ``volume``. Below: ``journal``, ``content``, ``items``.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, final

from serdab.errors import Error
from serdab.sefs import keyspace as ks
from serdab.sefs.extents import END
from serdab.sefs.journal import Journal
from serdab.vfs.api import Inode
from serdab.vfs.steps import Chores, after, finish

_STEP_ITEMS: Final = 256
"""So many items of an inode that goes away are dropped in one step."""
_DONE: Final = object()

log = logging.getLogger("serdab.sefs")


@final
class Removals:
    """Frees inodes of one volume."""

    def __init__(
        self,
        journal: Journal,
        chores: Chores,
        forget: Callable[[int], None],
        keep: Callable[[Inode], None],
    ) -> None:
        """What is left to free is one of the ``chores``. ``forget`` drops a record of which nothing
        is left; ``keep`` makes an orphan of one."""
        self._journal = journal
        self._content = journal.content
        self._items = journal.items
        self._forget = forget
        self._keep = keep
        self._chores = chores
        journal.removal.on_rest = self.drop_all

    def drop(self, inode: Inode) -> None:
        """Free an inode, or a piece of it."""
        removal = self._journal.removal
        if removal.is_large(inode):
            inode.nlink = 0
            self._keep(inode)
            removal.begin(inode)
        else:
            self.drop_all(inode)

    def drop_all(self, inode: Inode) -> None:
        """Free an inode that has no more content than goes at once."""
        group = self._content.drop(inode)
        names = self._items.scan(ks.key(inode.ino, ks.T_XATTR))
        if group == END and not stat.S_ISDIR(inode.mode) and next(names, None) is None:
            self._forget(inode.ino)
            return
        steps = self._steps(inode, group)
        if next(steps, _DONE) is not _DONE:
            self._keep(inode)
            self._chores.append(steps)

    def take_up(self, find: Callable[[int], Inode | None], orphans: set[int]) -> None:
        """Free what had no name when the last session ended: in use, or not freed whole.

        ``orphans`` are those that the volume knows of.
        """
        prefix = ks.key(0, ks.T_ORPHAN)
        for ino in [int.from_bytes(key[9:17], "big") for key, _ in self._items.scan(prefix)]:
            inode = find(ino)
            if self._journal.read_only:
                continue
            if inode is not None:
                orphans.add(ino)
                self.drop(inode)
            else:
                self._items.put(ks.orphan_key(ino), None)

    def _steps(self, inode: Inode, group: int) -> Iterator[None]:
        items = self._items
        while group != END:
            yield from self.piece()
            group = self._content.drop_on(inode, group)
        for kind in (ks.T_XATTR, ks.T_DIRENT):
            prefix = start = ks.key(inode.ino, kind)
            while keys := [key for key, _ in islice(items.scan(prefix, start), _STEP_ITEMS)]:
                for key in keys:
                    items.put(key, None)
                if len(keys) < _STEP_ITEMS:
                    break
                start = keys[-1]
                yield from self.piece()
        self._forget(inode.ino)

    def piece(self) -> Iterator[None]:
        """A piece of something larger is done; the next one is admitted like any change."""
        self._journal.touch()
        yield
        self._journal.admit()

    def finish(self) -> None:
        """Do all that is left."""
        while self._chores:
            try:
                finish(after(self._chores.popleft()))
            except (OSError, Error) as exc:
                # It stays an orphan, and the next session tries.
                log.warning("%s: a removed file is not freed yet: %s", self._journal.label, exc)
