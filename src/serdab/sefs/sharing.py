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
from serdab.sefs.segment import ABSENT, HOLE
from serdab.sefs.slots import NOTHING, LowerPart, dump_lower, dump_reserved, is_record, is_reserved
from serdab.vfs.api import Inode


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

    def share(self, source: Inode, first: int, into: Inode, start: int, count: int) -> None:
        """Let ``count`` chunks of a file be those of another one; no content is read or written.

        Raises:
            FsError: EOPNOTSUPP in a volume of version 1, EINVAL if the two have records of two
                sizes; ENOSPC if what was in memory only found no room.
        """
        self._check_version()
        content = self._content
        size = content.chunk_size(source)
        if size != content.chunk_size(into):
            raise FsError(errno.EINVAL)
        content.leave_inline(source)
        content.leave_inline(into)
        for index in range(count):
            chunk, target = first + index, start + index
            content.seal_chunk(source, chunk)
            content.forget_chunk(into, target)
            slot = content.slot(source.ino, chunk)
            if is_record(slot):
                content.records.share((source.ino, chunk), (into.ino, target))
                continue
            if slot == ABSENT and (below := _below(source, chunk * size)):
                slot = dump_lower(LowerPart(source.ino, chunk * size, min(below, size)))
            elif slot in NOTHING or is_reserved(slot):
                slot = HOLE if _below(into, target * size) else ABSENT
            content.records.put_slot(into.ino, target, slot)

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
