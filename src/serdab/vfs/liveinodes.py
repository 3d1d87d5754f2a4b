# SPDX-License-Identifier: Apache-2.0
"""The inodes of a union that are in memory, and how long each of them lives.

Which object stands for a number: one for as long as it has unsaved changes, or is an orphan; any
other may be dropped, and read again. Who still refers to it: the kernel, by the lookups that it
has not forgotten. What becomes of one whose last name is gone: it lives as an orphan until the
kernel forgets it, so that an open file stays usable (unlink(2)).

Above: ``union``, which is built on it: a base, not a member, since every request asks here and a
call through another object would be one more on the way of each. Below: ``merged``, ``layer``.
"""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from serdab.errors import FsError
from serdab.vfs.api import ROOT_INO, Inode
from serdab.vfs.attributes import one_name_less
from serdab.vfs.layer import Layer, WritableLayer
from serdab.vfs.merged import FLAG_SPARSE, Merged
from serdab.vfs.steps import Unfinished

_CACHE_INODES: Final = 40_000
_FORMAT: Final = 0o170000


class LiveInodes:
    """See the module."""

    def __init__(self, upper: WritableLayer, lower: Layer | None) -> None:
        self._upper = upper
        self._merged = Merged(upper, lower)
        self._inodes: dict[int, Inode] = {}
        #: Lookups that the kernel has not forgotten.
        self._counts: dict[int, int] = {}
        #: No name left, and still in use.
        self._orphans: dict[int, Inode] = {}
        #: Where a directory was last found: what ``..`` of it leads to, if its record does not say.
        #: The kernel forgets no directory before what is below it, so this knows all that it holds.
        self._parents: dict[int, int] = {ROOT_INO: ROOT_INO}
        #: Of operations in steps that are not at their end: how many go on with an inode.
        self._in_steps: dict[int, int] = {}
        self._stepwise = False

    @property
    def stepwise(self) -> bool:
        """Whether a caller is asked to come again (``steps.Unfinished``) rather than kept waiting.

        Who sets it does the chores, too.
        """
        return self._stepwise

    @stepwise.setter
    def stepwise(self, value: bool) -> None:
        self._stepwise = value
        if value:
            self._upper.let_be_served()

    def _find(self, ino: int) -> Inode | None:
        """Return an inode that is not at hand, and keep it there."""
        inode = self._orphans.get(ino) or self._merged.inode(ino)
        if inode is not None:
            if len(self._inodes) >= _CACHE_INODES:
                self._evict()
            self._inodes[ino] = inode
        return inode

    def _evict(self) -> None:
        """Drop the older half of the clean inodes; they are read again when asked for."""
        live = self._upper.live_inode
        for ino in list(self._inodes)[: _CACHE_INODES // 2]:
            if live(ino) is None and ino not in self._orphans and ino not in self._in_steps:
                del self._inodes[ino]

    def _inode(self, ino: int) -> Inode:
        inode = self._inodes.get(ino) or self._find(ino)
        if inode is None:
            raise FsError(errno.ESTALE)
        return inode

    def _dir(self, ino: int) -> Inode:
        inode = self._inodes.get(ino) or self._inode(ino)
        if inode.mode & _FORMAT != stat.S_IFDIR:
            raise FsError(errno.ENOTDIR)
        return inode

    def _parent(self, directory: Inode) -> int:
        """Return the inode that a directory is in.

        Raises:
            FsError: ESTALE; its record does not say, and nobody came to it by its name.
        """
        parent = directory.parent_ino or self._parents.get(directory.ino)
        if parent is None:
            raise FsError(errno.ESTALE)
        return parent

    def _stamp_all(self, inode: Inode) -> None:
        now = time.time_ns()
        inode.atime_ns = inode.mtime_ns = inode.ctime_ns = inode.btime_ns = now

    def _changed(self, inode: Inode, *, content: bool = False) -> None:
        """The inode changed now; its record goes to the upper layer."""
        now = time.time_ns()
        inode.ctime_ns = now
        if content:
            inode.mtime_ns = now
        if not inode.parent_ino and inode.mode & _FORMAT == stat.S_IFDIR:
            # Taken over from a layer that does not record it.
            inode.parent_ino = self._parents.get(inode.ino, 0)
        self._upper.put_inode(inode)

    @contextmanager
    def _kept(self, inode: Inode) -> Iterator[None]:
        """Within it, this object stands for its number, whatever comes between the steps."""
        steps, ino = self._in_steps, inode.ino
        steps[ino] = steps.get(ino, 0) + 1
        try:
            yield
        finally:
            steps[ino] -= 1
            if not steps[ino]:
                del steps[ino]

    def _measured(self, inode: Inode) -> Inode:
        """Return a sparse file with what it takes now (``st_blocks`` of stat(2)).

        Raises:
            Unfinished: to find that out takes longer than one request may.
        """
        if self.stepwise and not self._upper.is_measured(inode):
            steps = self._upper.measure(inode)
            next(steps, None)
            if not self._upper.is_measured(inode):
                raise Unfinished(steps)
        inode.blocks = (self._upper.taken_bytes(inode) + 511) >> 9
        return inode

    def _count(self, inode: Inode) -> Inode:
        if inode.flags & FLAG_SPARSE:
            self._measured(inode)
        counts = self._counts
        counts[inode.ino] = counts.get(inode.ino, 0) + 1
        return inode

    def lookup_ino(self, ino: int, parent: int) -> Inode:
        inode = self._inode(ino)
        if inode.mode & _FORMAT == stat.S_IFDIR:
            self._parents[ino] = parent
        return self._count(inode)

    def forget(self, ino: int, nlookup: int) -> bool:
        left = self._counts.get(ino, 0) - nlookup
        if left > 0:
            self._counts[ino] = left
            return False
        self._counts.pop(ino, None)
        if ino != ROOT_INO:
            self._parents.pop(ino, None)
        orphan = self._orphans.pop(ino, None)
        if orphan is not None:
            self._inodes.pop(ino, None)
            self._upper.drop_inode(orphan)
        return True

    def _orphan(self, inode: Inode) -> None:
        """The last name is gone. The inode lives until the kernel forgets it."""
        self._orphans[inode.ino] = inode
        self._upper.put_orphan(inode.ino)

    def _release(self, inode: Inode) -> None:
        """One name less. A directory is empty: what is left of it are whiteouts."""
        if stat.S_ISDIR(inode.mode):
            inode.nlink = 0
        else:
            one_name_less(inode)
        if inode.nlink > 0:
            self._changed(inode)
        elif self._counts.get(inode.ino):
            inode.ctime_ns = time.time_ns()
            self._upper.put_inode(inode)
            self._orphan(inode)
        else:
            self._inodes.pop(inode.ino, None)
            self._upper.drop_inode(inode)
