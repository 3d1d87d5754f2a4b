# SPDX-License-Identifier: Apache-2.0
"""The two layers of a union seen as one: which of them answers for a name, an inode, a byte.

Above: ``union`` (what a file system means by an operation). Below: ``layer``.

A name, record or attribute of the upper layer wins over the lower one's; a whiteout, or an
attribute marked as removed, hides it. An inode that the upper layer has no record of is read from
the lower layer whole.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from itertools import islice
from typing import Final, final

from serdab.errors import FsError
from serdab.vfs.api import Inode
from serdab.vfs.layer import WHITEOUT, Dirent, Layer, WritableLayer
from serdab.vfs.steps import Steps

FLAG_LOWER: Final = 2
"""Content below ``lower_limit`` is the lower layer's (``sefs.keyspace``)."""
FLAG_SPARSE: Final = 4
"""There may be holes: ``st_blocks`` does not follow from the size (the same)."""
STEP_NAMES: Final = 256
"""So many whiteouts are passed over in one step."""
STEP_XATTRS: Final = 64
"""So many attributes are read in one step: each may be 64 KiB."""


@final
class Merged:
    """Reads through both layers; hides and shows names in the upper one."""

    def __init__(self, upper: WritableLayer, lower: Layer | None) -> None:
        self.upper = upper
        self.lower = lower
        #: Above it all inodes are the upper layer's own: it numbers new ones from there.
        self._last_below = 0 if lower is None else lower.max_ino

    def _below(self, ino: int) -> Layer | None:
        """Return the lower layer if it can know an inode."""
        return self.lower if ino <= self._last_below else None

    def inode(self, ino: int) -> Inode | None:
        """Return the record of an inode."""
        inode = self.upper.live_inode(ino) or self.upper.inode(ino)
        if inode is None and (below := self._below(ino)) is not None:
            inode = below.inode(ino)
            if inode is not None:
                # Seen from here, all of its content is the lower layer's.
                inode.flags = FLAG_LOWER if stat.S_ISREG(inode.mode) else 0
                inode.lower_limit = inode.size
        return inode

    def entry(self, parent: int, name: bytes) -> Dirent | None:
        """Return what a name leads to, or None."""
        entry = self.upper.dirent(parent, name)
        if entry is None:
            below = self._below(parent)
            return None if below is None else below.dirent(parent, name)
        return entry if entry.ino else None

    def entries(self, ino: int, position: int) -> Iterator[tuple[int, bytes, Dirent]]:
        """Return an iterator of the entries of a directory in order, whiteouts applied."""
        upper = self.upper.dirents(ino, position)
        below = self._below(ino)
        if below is None:
            return upper
        both = _interleaved(upper, below.dirents(ino, position))
        return (entry for entry in both if entry[2].ino)

    def entries_or_gaps(self, ino: int, position: int) -> Iterator[tuple[int, bytes, Dirent] | int]:
        """Like ``entries``; a number among them is a position before which nothing else is left.

        One comes after so many whiteouts, and only where no name is cut from others of its place.
        """
        upper = self.upper.dirents(ino, position)
        below = self._below(ino)
        return (
            upper
            if below is None
            else _with_gaps(_interleaved(upper, below.dirents(ino, position)))
        )

    def show(self, parent: int, name: bytes, inode: Inode) -> None:
        """Make a name lead to an inode."""
        self.upper.put_dirent(parent, name, Dirent(inode.ino, inode.mode >> 12))

    def hide(self, parent: int, name: bytes) -> None:
        """Make a name lead nowhere."""
        below = self._below(parent)
        if below is not None and below.dirent(parent, name) is not None:
            self.upper.put_dirent(parent, name, WHITEOUT)
        else:
            self.upper.remove_dirent(parent, name)

    def target(self, ino: int) -> bytes:
        """Return the target of a symbolic link."""
        target = self.upper.target(ino)
        if not target and (below := self._below(ino)) is not None:
            target = below.target(ino)
        return target

    def _is_upper(self, ino: int) -> bool:
        if ino > self._last_below:
            return True
        return self.upper.live_inode(ino) is not None or self.upper.inode(ino) is not None

    def read(self, inode: Inode, offset: int, buf: memoryview) -> int:
        """Fill ``buf`` with content; return the count, short at end of file only."""
        if self._is_upper(inode.ino):
            return self.upper.read(inode, offset, buf)
        if self.lower is None:
            raise FsError(errno.ESTALE)
        return self.lower.read_into(inode.ino, offset, buf)

    def ranges(self, inode: Inode, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the stored ranges within [start, end), in order."""
        if self._is_upper(inode.ino):
            return self.upper.ranges(inode, start, end)
        return iter(()) if self.lower is None else self.lower.data_ranges(inode.ino, start, end)

    def xattr(self, ino: int, name: bytes) -> bytes:
        """Return an attribute with its marker byte; empty if there is none."""
        marked = self.upper.xattr(ino, name)
        if marked is None and (below := self._below(ino)) is not None:
            marked = below.xattr(ino, name)
        return marked or b""

    def xattr_names(self, ino: int) -> Steps[list[bytes]]:
        """Return the names of all attributes, sorted, in steps."""
        below = self._below(ino)
        found: dict[bytes, bool] = {}
        for layer in (self.upper,) if below is None else (below, self.upper):
            name = b""
            while True:
                some = list(islice(layer.xattrs(ino, name), STEP_XATTRS))
                found.update((each, bool(marked)) for each, marked in some)
                if len(some) < STEP_XATTRS:
                    break
                name = some[-1][0]
                yield None
        return sorted(name for name, is_there in found.items() if is_there)

    def drop_xattr(self, ino: int, name: bytes) -> None:
        """Remove an attribute."""
        below = self._below(ino)
        if below is not None and below.xattr(ino, name):
            self.upper.put_xattr(ino, name, b"")
        else:
            self.upper.remove_xattr(ino, name)


def _with_gaps(
    entries: Iterator[tuple[int, bytes, Dirent]],
) -> Iterator[tuple[int, bytes, Dirent] | int]:
    hidden = last = 0
    for entry in entries:
        if hidden >= STEP_NAMES and entry[0] != last:
            yield entry[0]
            hidden = 0
        last = entry[0]
        if entry[2].ino:
            yield entry
        else:
            hidden += 1


def _interleaved(
    upper: Iterator[tuple[int, bytes, Dirent]], lower: Iterator[tuple[int, bytes, Dirent]]
) -> Iterator[tuple[int, bytes, Dirent]]:
    """Yield the entries of two layers in order, whiteouts too, and not what they hide."""
    above, below = next(upper, None), next(lower, None)
    while above is not None:
        if below is not None and below[:2] < above[:2]:
            yield below
            below = next(lower, None)
            continue
        if below is not None and above[:2] == below[:2]:
            below = next(lower, None)
        yield above
        above = next(upper, None)
    if below is not None:
        yield below
        yield from lower
