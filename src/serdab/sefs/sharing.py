# SPDX-License-Identifier: Apache-2.0
"""What only version 2 has of file content: shared records, parts of the lower layer, reserved room,
records of a length of their own.

Above: ``volume``. Below: ``content``, ``datarecords``.

Chunk by chunk. Nothing here sets the size of a file, nor asks whether there is room.
"""

from __future__ import annotations

import errno
from typing import Final, final

from serdab.errors import FsError
from serdab.sefs import keyspace as ks
from serdab.sefs.content import Content
from serdab.sefs.references import MOST_OWNERS
from serdab.sefs.segment import ABSENT, HOLE
from serdab.sefs.slots import NOTHING, LowerPart, dump_lower, dump_reserved, is_record, is_reserved
from serdab.vfs.api import Inode

_MOST_SEALED: Final = 1 << 20
"""So many bytes that are in memory only are sealed at once."""


@final
class Sharing:
    """Changes the slots of files of one volume."""

    def __init__(self, content: Content, version: int) -> None:
        self._content: Final = content
        self._version: Final = version

    def _check_version(self) -> None:
        if self._version == ks.V1:
            raise FsError(errno.EOPNOTSUPP)

    def set_record_size(self, inode: Inode, size: int) -> None:
        """Let a file that is empty have records of ``size`` bytes; 0: as long as all others.

        Raises:
            FsError: EOPNOTSUPP in a volume of version 1, EINVAL if the file is not empty or no
                file may have such records.
        """
        self._check_version()
        if inode.size or self._content.holds(inode):
            raise FsError(errno.EINVAL)
        try:
            inode.flags = ks.with_record_size(inode.flags, size)
        except ValueError:
            raise FsError(errno.EINVAL) from None

    def common_chunk(self, source: Inode, into: Inode) -> int:
        """Return how long the chunks are that one file may have of another; 0 if it cannot."""
        content = self._content
        size = content.chunk_size(source)
        is_alike = size == content.chunk_size(into) or self._is_free(into)
        return size if is_alike and self._version != ks.V1 else 0

    def _is_free(self, inode: Inode) -> bool:
        """Return whether a file's records may get another size."""
        return not inode.size and not self._content.holds(inode)

    def share(self, source: Inode, first: int, into: Inode, start: int, count: int) -> int:
        """Let ``count`` chunks of a file be those of another one; no content is read or written.

        An empty file gets records of the other's size. Returns how many were shared: fewer where
        much is in memory only, or a record has owners enough.

        Raises:
            FsError: EOPNOTSUPP in a volume of version 1, EINVAL if the two have records of two
                sizes; ENOSPC if what was in memory only found no room.
        """
        self._check_version()
        content = self._content
        if content.chunk_size(source) != content.chunk_size(into):
            self.set_record_size(into, content.chunk_size(source))
        size = content.chunk_size(source)
        content.leave_inline(source)
        content.leave_inline(into)
        done = sealed = 0
        while done < count:
            chunk, target = first + done, start + done
            if run := self._share_run(source, chunk, into, target, count - done):
                done += run
                continue
            if content.is_dirty(source, chunk):
                if sealed >= _MOST_SEALED:
                    return done
                content.seal_chunk(source, chunk)
                sealed += size
            if not self._share_one(source, chunk, into, target, size):
                return done
            done += 1
        return count

    def _share_run(self, source: Inode, chunk: int, into: Inode, target: int, most: int) -> int:
        """Share successive records that chunks have which had nothing; return how many."""
        content = self._content
        count = min(most, content.clean_records(source, chunk))
        count = content.records.share_run((source.ino, chunk), (into.ino, target), count)
        for index in range(target, target + count):
            content.forget_chunk(into, index)
        return count

    def _share_one(self, source: Inode, chunk: int, into: Inode, target: int, size: int) -> bool:
        """Share what a chunk has; return False if its record has owners enough."""
        content = self._content
        slot = content.slot(source.ino, chunk)
        if is_record(slot):
            if content.references.count(slot) >= MOST_OWNERS:
                return False
            content.forget_chunk(into, target)
            content.records.share((source.ino, chunk), (into.ino, target))
            return True
        content.forget_chunk(into, target)
        if slot == ABSENT and (below := _below(source, chunk * size)):
            slot = dump_lower(LowerPart(source.ino, chunk * size, min(below, size)))
        elif slot in NOTHING or is_reserved(slot):
            slot = HOLE if _below(into, target * size) else ABSENT
        content.records.put_slot(into.ino, target, slot)
        return True

    def reserve(self, inode: Inode, first: int, count: int) -> None:
        """Have chunks hold room for what is written to them; those that have content stay.

        Raises:
            FsError: EOPNOTSUPP in a volume of version 1.
        """
        self._check_version()
        content = self._content
        content.leave_inline(inode)
        size = content.chunk_size(inode)
        for chunk in range(first, first + count):
            slot = content.slot(inode.ino, chunk)
            is_free = slot == HOLE or (slot == ABSENT and not _below(inode, chunk * size))
            if is_free and not content.is_dirty(inode, chunk):
                content.records.put_slot(inode.ino, chunk, dump_reserved(size))

    def refer_below(self, inode: Inode, chunk: int, part: LowerPart) -> None:
        """Let a chunk be a part of a file of the lower layer, and zeros behind it.

        Raises:
            FsError: EOPNOTSUPP in a volume of version 1, EINVAL if the part is longer than a chunk.
        """
        self._check_version()
        if not 0 < part.length <= self._content.chunk_size(inode):
            raise FsError(errno.EINVAL)
        self._content.leave_inline(inode)
        self._content.forget_chunk(inode, chunk)
        self._content.records.put_slot(inode.ino, chunk, dump_lower(part))


def _below(inode: Inode, offset: int) -> int:
    """Return how much of the lower layer's file shows through from an offset on."""
    return max(inode.lower_limit - offset, 0) if inode.flags & ks.F_LOWER else 0
