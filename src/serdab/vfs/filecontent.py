# SPDX-License-Identifier: Apache-2.0
"""What a union does with the content of its files: read, write, cut, zero, copy, find the holes.

What may take long is a generator of steps (``steps``). A base of ``union``, as ``liveinodes`` is
and for the same reason.

Above: ``union``. Below: ``liveinodes``, ``layer``.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from serdab.errors import FsError
from serdab.vfs.api import Inode
from serdab.vfs.attributes import drop_suidgid
from serdab.vfs.liveinodes import LiveInodes
from serdab.vfs.merged import FLAG_LOWER, FLAG_SPARSE
from serdab.vfs.steps import Steps, after, finish

NAME_GROWTH: Final = 512
"""About what a new name and its inode take, in bytes."""
COPY_BYTES: Final = 1 << 20
"""So much is copied by one request, as much as is written by one."""
SHARED_CHUNKS: Final = 256
"""So many are shared by one request."""
_SHARED_GROWTH: Final = 256
"""About what is noted for each of them, in bytes."""
STEP_RANGES: Final = 64
"""So many stored ranges are looked at in one step."""
MAX_SIZE: Final = (1 << 63) - 1

_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_ZERO_RANGE: Final = 16


class FileContent(LiveInodes):
    """See the module."""

    def _resize(self, inode: Inode, size: int) -> None:
        """Set the size; content beyond it is gone already."""
        if size > inode.size:
            inode.flags |= FLAG_SPARSE
        elif size == 0:
            inode.flags &= ~FLAG_SPARSE
            inode.blocks = -1
        inode.size = size

    def read_into(self, ino: int, offset: int, buf: memoryview) -> int:
        inode = self._inode(ino)
        return self._merged.read(inode, offset, buf)

    def may_have_holes(self, ino: int) -> bool:
        return self._inode(ino).flags & (FLAG_SPARSE | FLAG_LOWER) != 0

    def write(self, ino: int, offset: int, data: memoryview, *, kill_suidgid: bool) -> int:
        inode = self._inode(ino)
        end = offset + len(data)
        if end > MAX_SIZE:
            raise FsError(errno.EFBIG)
        self._admit_write(inode, offset, end)
        try:
            self._upper.write(inode, offset, data)
        except BaseException:
            if end > inode.size:
                # What is there of it must not show when the file grows.
                finish(after(self._upper.truncate(inode, inode.size)))
                self._upper.put_inode(inode)
            raise
        if end > inode.size:
            if offset > inode.size:
                inode.flags |= FLAG_SPARSE
            inode.size = end
        if kill_suidgid:
            drop_suidgid(inode)
        self._changed(inode, content=True)
        return len(data)

    def _admit_write(self, inode: Inode, offset: int, end: int) -> None:
        """Admit it as if all of it were new; where that is too much, what is rewritten as such."""
        try:
            self._upper.admit(end - offset + NAME_GROWTH)
        except FsError as exc:
            if exc.errno != errno.ENOSPC or offset >= inode.size:
                raise
            rewritten = self._upper.held_bytes(inode, offset, end)
            if not rewritten:
                raise
            new = end - offset - rewritten
            self._upper.admit(new + NAME_GROWTH if new else 0, rewritten)

    def fallocate(self, ino: int, mode: int, offset: int, length: int) -> None:
        finish(self.fallocate_steps(ino, mode, offset, length))

    def fallocate_steps(self, ino: int, mode: int, offset: int, length: int) -> Steps[None]:
        """Like ``fallocate``. Each step makes zeros of a part of the range, from its start on."""
        inode = self._inode(ino)
        if not stat.S_ISREG(inode.mode):
            raise FsError(errno.ENODEV)
        if offset < 0 or length <= 0:
            raise FsError(errno.EINVAL)
        if offset + length > MAX_SIZE:
            raise FsError(errno.EFBIG)
        keep = mode & _KEEP_SIZE
        action = mode & ~_KEEP_SIZE
        # Allocation alone is refused: what is stored goes to a place of its own each time, so room
        # for one write would be gone with it. posix_fallocate(3) writes every block then, and what
        # is written can be rewritten (see _admit_write).
        if action not in (_PUNCH_HOLE, _ZERO_RANGE) or (action == _PUNCH_HOLE and not keep):
            raise FsError(errno.EOPNOTSUPP)
        self._upper.admit()
        inode.flags |= FLAG_SPARSE
        with self._kept(inode):
            yield from self._upper.punch(inode, offset, length)
            if not keep and offset + length > inode.size:
                inode.size = offset + length
            self._changed(inode, content=True)

    def lseek(self, ino: int, offset: int, whence: int) -> int:
        return finish(self.lseek_steps(ino, offset, whence))

    def lseek_steps(self, ino: int, offset: int, whence: int) -> Steps[int]:
        """Like ``lseek``."""
        inode = self._inode(ino)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise FsError(errno.EINVAL)
        if not 0 <= offset < inode.size:
            raise FsError(errno.ENXIO)
        position = offset
        with self._kept(inode):
            while position < inode.size:
                ranges = self._merged.ranges(inode, position, inode.size)
                for count, (start, end) in enumerate(ranges, 1):
                    if whence == os.SEEK_DATA:
                        if start < end:
                            return max(start, offset)
                    elif start > position:
                        return position
                    position = max(position, end)
                    if count == STEP_RANGES:
                        break
                else:
                    break
                yield None
        if whence == os.SEEK_DATA:
            raise FsError(errno.ENXIO)
        return min(position, inode.size)

    def copy_file_range(
        self, ino: int, offset: int, ino_out: int, offset_out: int, length: int
    ) -> int:
        """Copy some of it: a caller asks again for the rest, as after a short write(2).

        Whole chunks are shared, not copied, where the two files can. Where nothing lies behind it
        in the target, a hole stays one, and is copied whole.
        """
        source, target = self._inode(ino), self._inode(ino_out)
        length = min(length, max(0, source.size - offset))
        if ino == ino_out and offset < offset_out + length and offset_out < offset + length:
            raise FsError(errno.EINVAL)
        if length <= 0:
            return 0
        if offset_out >= target.size and offset_out + length <= MAX_SIZE:
            length, is_data = self._run(source, offset, length)
            if not is_data:
                self._upper.admit(NAME_GROWTH)
                self._resize(target, offset_out + length)
                self._changed(target, content=True)
                return length
        chunk = self._upper.common_chunk(source, target)
        if chunk and (offset - offset_out) % chunk == 0:
            if head := -offset % chunk:
                length = min(length, head)  # what follows can be shared
            elif shared := self._share(source, offset, target, offset_out, length, chunk):
                return shared
        with memoryview(bytearray(min(COPY_BYTES, length))) as view:
            count = self.read_into(ino, offset, view)
            if count:
                self.write(ino_out, offset_out, view[:count], kill_suidgid=False)
            return count

    def _share(
        self, source: Inode, offset: int, target: Inode, offset_out: int, length: int, chunk: int
    ) -> int:
        """Let the target have whole chunks of the source; return their length, 0 if there are none.

        The last one of the source need not be whole, where nothing is behind it in the target.
        """
        end = offset_out + length
        is_all = offset + length == source.size and end >= target.size
        count = -(-length // chunk) if is_all else length // chunk
        if length < chunk or not count or end > MAX_SIZE:
            return 0
        count = min(count, SHARED_CHUNKS)
        self._upper.admit(NAME_GROWTH + count * _SHARED_GROWTH)
        done = self._upper.share(source, offset // chunk, target, offset_out // chunk, count)
        if not done:
            return 0
        length = min(length, done * chunk)
        if source.flags & (FLAG_SPARSE | FLAG_LOWER) or offset_out > target.size:
            target.flags |= FLAG_SPARSE
        target.size = max(target.size, offset_out + length)
        self._changed(target, content=True)
        return length

    def _run(self, inode: Inode, offset: int, length: int) -> tuple[int, bool]:
        """Return how much from an offset on is alike, as far as was looked; whether it is data."""
        data_end = hole_end = offset
        for count, (start, end) in enumerate(self._merged.ranges(inode, offset, offset + length)):
            if data_end > offset and (start > data_end or count >= STEP_RANGES):
                return data_end - offset, True
            if start < end:
                if data_end == offset and start > offset:
                    return start - offset, False
                data_end = end
            elif data_end == offset:
                hole_end = start
            if count >= STEP_RANGES:
                break
        else:
            return (data_end - offset, True) if data_end > offset else (length, False)
        return (hole_end - offset, False) if hole_end > offset else (length, True)
