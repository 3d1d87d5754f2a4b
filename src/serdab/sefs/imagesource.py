# SPDX-License-Identifier: Apache-2.0
"""The tree of a sealed image as the source of another one, with the same inode numbers.

The order is that of ``imagewalk``: names by their bytes, all of a directory before its first
subdirectory. So content lands where a build of the same tree puts it.

Above: ``imagebuild``. Below: ``image``.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from typing import final

from serdab.errors import FormatError
from serdab.sefs import keyspace as ks
from serdab.sefs.image import Image
from serdab.sefs.imagewalk import Name, SourceEntry, in_order
from serdab.vfs.api import ROOT_INO
from serdab.vfs.layer import Dirent


@final
class ImageSource:
    """Implements :class:`serdab.sefs.imagewalk.Source`. ``replaced``: content by path."""

    def __init__(self, image: Image, replaced: Mapping[bytes, bytes]) -> None:
        self._image = image
        self._replaced = replaced
        self._seen: set[int] = set()
        self.names: list[Name] = []

    def entries(self) -> Iterator[SourceEntry]:
        """See :class:`serdab.sefs.imagewalk.Source`.

        Raises:
            FormatError: the numbers of the inodes have gaps, as no image of ours has.
        """
        yield from in_order(self._entry(ROOT_INO, b"", ROOT_INO), self._directory)
        if len(self._seen) != self._image.max_ino:
            raise FormatError(
                "image whose inodes are not numbered without gaps",
                expected=f"{self._image.max_ino} inodes",
                found=f"{len(self._seen)} with a name",
            )

    def _directory(self, parent: SourceEntry) -> Iterator[SourceEntry]:
        listing: list[tuple[bytes, Dirent]] = [
            (name, entry) for _, name, entry in self._image.dirents(parent.inode.ino, 0)
        ]
        for name, entry in sorted(listing):
            self.names.append(Name(parent.inode.ino, name, entry.ino, entry.dtype))
            if entry.ino not in self._seen:
                path = parent.path + b"/" + name if parent.path else name
                yield self._entry(entry.ino, path, parent.inode.ino)

    def _entry(self, ino: int, path: bytes, parent: int) -> SourceEntry:
        inode = self._image.inode(ino)
        if inode is None or not 1 <= ino <= self._image.max_ino:
            raise FormatError("name of an inode that the image does not have", found=str(ino))
        self._seen.add(ino)
        # Whether content is inline is decided by who writes; how long its records are, was.
        inode.flags = ks.with_record_size(0, ks.record_size(inode.flags, 0))
        if stat.S_ISDIR(inode.mode):
            inode.parent_ino = parent  # version 1 does not record it
        entry = SourceEntry(inode, path, None, content=self._replaced.get(path))
        if entry.content is not None:
            inode.size = len(entry.content)
        if stat.S_ISLNK(inode.mode):
            entry.target = self._image.target(ino)
        entry.xattrs = [(name, marked[1:]) for name, marked in self._image.xattrs(ino)]
        return entry

    def pieces(self, entry: SourceEntry, unit: int) -> Iterator[bytes]:
        """See :class:`serdab.sefs.imagewalk.Source`."""
        size = entry.inode.size
        if entry.content is not None:
            for start in range(0, size, unit):
                yield entry.content[start : start + unit]
            return
        for start in range(0, size, unit):
            raw = bytearray(min(unit, size - start))
            with memoryview(raw) as view:
                self._image.read_into(entry.inode.ino, start, view)
            yield bytes(raw)
