# SPDX-License-Identifier: Apache-2.0
"""What was removed, and is freed in pieces: content, attributes, whiteouts, the inode at last.

Most inodes go in one piece. The rest of one that does not is freed between requests; it is an
orphan until its last piece, so that whatever ends this session, the next one goes on.

Above: ``volume``. Below: ``journal``, ``content``, ``items``.
"""

from __future__ import annotations

import logging
import stat
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, final

from serdab.errors import AuthenticationError, Error, FormatError, FsError
from serdab.sefs import keyspace as ks
from serdab.sefs.extents import END
from serdab.sefs.journal import Journal
from serdab.vfs.api import Inode
from serdab.vfs.steps import Chores, Unfinished

_STEP_ITEMS: Final = 256
"""So many items of an inode that goes away are dropped in one step."""
_AT_THE_END: Final = 64
"""So many steps more when a volume is closed: about a second."""

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
        self._pending: deque[tuple[int, Iterator[None]]] = deque()
        self._is_chore = False
        journal.free_rest = self.free_rest

    @property
    def is_pending(self) -> bool:
        """Whether anything is left to be freed."""
        return bool(self._pending)

    def drop(self, inode: Inode) -> None:
        """Free an inode, or a piece of it."""
        if self._step(inode.ino, steps := self._steps(inode)):
            return
        inode.nlink = 0
        self._keep(inode)
        self._pending.append((inode.ino, steps))
        if not self._is_chore:
            self._is_chore = True
            self._chores.append(self._chore())

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

    def free_rest(self) -> bool:
        """Free all that is left for a change that finds no room; return whether there was anything.

        Raises:
            Unfinished: it takes long, and others are served meanwhile.
            FsError: the host failed.
        """
        if not self._pending:
            return False
        if self._journal.ahead.is_served:
            raise Unfinished(self._all())
        for _ in self._all():
            pass
        return True

    def finish(self) -> None:
        """Do what is left, at the end, unless it is much: then the next session goes on."""
        try:
            for _ in islice(self._all(), _AT_THE_END):
                pass
        except (OSError, Error) as exc:
            log.warning("%s: removed files are not freed yet: %s", self._journal.label, exc)

    def _chore(self) -> Iterator[None]:
        try:
            yield from self._all()
        finally:
            self._is_chore = False

    def _all(self) -> Iterator[None]:
        """Free all that is left, of the first one first. Each piece is admitted like any change."""
        while self._pending:
            self._journal.admit()
            if self._step(*self._pending[0]):
                self._pending.popleft()
            yield

    def _step(self, ino: int, steps: Iterator[None]) -> bool:
        """Free a piece of an inode; return whether that was the last.

        What cannot be read stays, an orphan for fsck to look at.
        """
        try:
            for _ in steps:
                return False
        except (AuthenticationError, FormatError, FsError) as exc:
            log.error("inode %d: its content is not freed: %s", ino, exc)  # noqa: TRY400 - one line
        finally:
            self._journal.touch()
        return True

    def _steps(self, inode: Inode) -> Iterator[None]:
        group = self._content.drop(inode)
        while group != END:
            yield
            group = self._content.drop_on(inode, group)
        yield from self._items_dropped(ks.key(inode.ino, ks.T_XATTR))
        if stat.S_ISDIR(inode.mode):
            yield from self._items_dropped(ks.key(inode.ino, ks.T_DIRENT))
        self._forget(inode.ino)

    def _items_dropped(self, prefix: bytes) -> Iterator[None]:
        start = prefix
        while keys := [key for key, _ in islice(self._items.scan(prefix, start), _STEP_ITEMS)]:
            for key in keys:
                self._items.put(key, None)
            if len(keys) < _STEP_ITEMS:
                return
            start = keys[-1]
            yield
