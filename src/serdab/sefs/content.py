# SPDX-License-Identifier: Apache-2.0
"""File content of a writable volume: chunks in memory, chunks in segments, the lower layer below.

Above: ``volume``. Below: ``extents`` (which slot), ``datarecords``, the lower ``Layer``.

A byte of a file is, in this order: in a dirty chunk; what the slot of its chunk says (``slots``),
if it says anything; the lower layer's if the inode is LOWER and the byte is below ``lower_limit``;
zero. A chunk that a write covers whole is sealed at once; a part of one waits as a dirty chunk
until a commit, a checkpoint or the limit of dirty bytes. A chunk is as long as the records of its
file (``keyspace.record_size``).
"""

from __future__ import annotations

import errno
import itertools
import stat
from bisect import insort
from collections.abc import Callable, Iterator
from typing import Final, final

from serdab.crypto.aead import TAG_BYTES
from serdab.errors import AuthenticationError, FormatError, FsError
from serdab.sefs import keyspace as ks
from serdab.sefs.cache import ByteCache
from serdab.sefs.datarecords import DataRecords
from serdab.sefs.dirty import DirtyChunk, DirtyFile, Discards
from serdab.sefs.extents import END, Extents
from serdab.sefs.held import STEP_CHUNKS, Held
from serdab.sefs.items import Items
from serdab.sefs.references import References
from serdab.sefs.segment import (
    ABSENT,
    HOLE,
    POINTER,
    POINTER_BYTES,
    SegmentStore,
    Writer,
    plain_length,
)
from serdab.sefs.slots import check_group, is_record, is_reserved, parse_lower
from serdab.vfs.api import Inode
from serdab.vfs.layer import Layer

_CHUNK_CACHE: Final = 4 << 20
_CHUNK_BYTES: Final = 320
"""What a dirty chunk takes beside its content: objects here, a tag and an owner on the host."""


@final
class Content(Held):
    """All file content of one volume."""

    def __init__(
        self,
        items: Items,
        segments: SegmentStore,
        chunk_size: int,
        lower: Layer | None,
        put_inode: Callable[[Inode], None],
    ) -> None:
        self._items = items
        self._segments = segments
        self.references = references = References(items, segments)
        extents = Extents(items, references, segments.version)
        self.records = records = DataRecords(items, segments, extents, references)
        super().__init__(extents, chunk_size, lower)
        self._seal = records.seal
        self._put_inode = put_inode
        self.writer: Writer = records.writer
        self.dirty_bytes = 0
        """What the dirty chunks take in memory, and at most on the host when they are sealed."""
        self._chunks: ByteCache[bytes, bytes] = ByteCache(_CHUNK_CACHE)
        self._discards = Discards()

    @staticmethod
    def _largest(size: int) -> int:
        """Return where the chunks of ``size`` end that can be numbered."""
        return (ks.MAX_GROUP + 1) * ks.GROUP * size

    # Reading ------------------------------------------------------------------------------

    def read(self, inode: Inode, offset: int, buf: memoryview) -> int:
        """Fill ``buf``; return the count, short at end of file only."""
        length = min(len(buf), inode.size - offset)
        if length <= 0:
            return 0
        ino = inode.ino
        if inode.flags & ks.F_INLINE:
            content = self._items.get(ks.key(ino, ks.T_INLINE)) or b""
            _copy(content, offset, buf[:length])
            return length
        opened = self._dirty.get(ino)
        dirty = opened.chunks if opened is not None else {}
        size = self.chunk_size(inode)
        position, end = offset, offset + length
        while position < end:
            chunk, skip = divmod(position, size)
            stop = min((chunk + 1) * size, end)
            out = buf[position - offset : stop - offset]
            held = dirty.get(chunk)
            if held is not None:
                _copy(held.buf, skip, out)
            else:
                pointer = self._pointer(ino, chunk)
                if pointer == ABSENT:
                    # One read of the lower layer for as many chunks as possible.
                    while (
                        stop < end
                        and stop // size not in dirty
                        and self._pointer(ino, stop // size) == ABSENT
                    ):
                        stop = min(stop + size, end)
                    self._read_below(inode, position, buf[position - offset : stop - offset])
                elif not is_record(pointer):
                    self._read_special(pointer, size, skip, out)
                elif skip == 0 and end - position > size:
                    at = position - offset
                    stop = position + self._read_run(ino, chunk, size, dirty, buf, at)
                else:
                    self._read_record(ino, chunk, size, pointer, skip, out)
            position = stop
        return length

    def _read_run(
        self,
        ino: int,
        chunk: int,
        size: int,
        dirty: dict[int, DirtyChunk],
        buf: memoryview,
        start: int,
    ) -> int:
        """Read whole chunks whose records lie one after another; return the bytes read."""
        records = self._extents.records(ino, chunk, (len(buf) - start) // size)
        segment, offset, stored, _, _ = records[0]
        count = 1
        if stored == size + TAG_BYTES:
            for record in records[1:]:
                offset += stored
                if record[1] != offset or record[2] != stored or record[0] != segment:
                    break
                if chunk + count in dirty:
                    break
                count += 1
        if count == 1:
            out = buf[start : start + size]
            self._read_record(ino, chunk, size, POINTER.pack(*records[0]), 0, out)
            return size
        del records[count:]
        try:
            self._segments.read_run(records, ino, chunk, buf[start : start + count * size])
        except (AuthenticationError, FormatError):
            # One by one, to say which record it is (and to serve none of the damaged request).
            for index, record in enumerate(records):
                out = buf[start + index * size : start + (index + 1) * size]
                self._read_record(ino, chunk + index, size, POINTER.pack(*record), 0, out)
        return count * size

    def _read_below(self, inode: Inode, offset: int, out: memoryview) -> None:
        count = 0
        if inode.flags & ks.F_LOWER and offset < inode.lower_limit and self._lower is not None:
            want = min(len(out), inode.lower_limit - offset)
            count = self._lower.read_into(inode.ino, offset, out[:want])
        if count < len(out):
            out[count:] = bytes(len(out) - count)

    def _read_special(self, slot: bytes, size: int, skip: int, out: memoryview) -> None:
        """Read what a slot says that names no record."""
        part = parse_lower(slot)
        count = 0
        if part is not None:
            if self._lower is None or part.length > size:
                raise FormatError("extent of a lower layer that there is not, or longer than any")
            want = min(len(out), max(part.length - skip, 0))
            if want:
                count = self._lower.read_into(part.ino, part.offset + skip, out[:want])
        if count < len(out):
            out[count:] = bytes(len(out) - count)

    def _read_record(
        self, ino: int, chunk: int, size: int, pointer: bytes, skip: int, out: memoryview
    ) -> None:
        try:
            if skip == 0 and len(out) >= (length := plain_length(pointer)):
                if length > size:
                    raise FormatError("chunk longer than the chunk size")
                self._segments.read_into(pointer, ino, chunk, out[:length])
                out[length:] = bytes(len(out) - length)
                return
            plain = self._chunks.get(pointer)
            if plain is None:
                plain = self._segments.read_data(pointer, ino, chunk, size)
                self._chunks.put(pointer, plain, len(plain))
        except (AuthenticationError, FormatError) as exc:
            segment, offset, *_ = POINTER.unpack(pointer)
            raise type(exc)(
                exc.message,
                stage="read",
                subject=f"segment {segment:08x}, offset {offset}, file data, inode {ino}",
                found=exc.found,
                hint="the storage changed these bytes; `serdab fsck` lists what is damaged",
            ) from None
        _copy(plain, skip, out)

    # Writing ------------------------------------------------------------------------------

    def _load(self, inode: Inode, chunk: int) -> DirtyChunk:
        """Return a chunk as a dirty one that holds its present content."""
        opened = self._dirty.get(inode.ino)
        if opened is None:
            opened = self._dirty[inode.ino] = DirtyFile(inode)
        held = opened.chunks.get(chunk)
        if held is None:
            size = self.chunk_size(inode)
            start = chunk * size
            present = max(0, min(size, inode.size - start))
            if present and inode.flags & (ks.F_INLINE | ks.F_LOWER) == 0:
                slot = self._pointer(inode.ino, chunk)
                if slot in (ABSENT, HOLE) or is_reserved(slot):
                    present = 0
            buf = bytearray(present)
            if present:
                with memoryview(buf) as view:
                    self.read(inode, start, view)
            held = DirtyChunk(buf, _CHUNK_BYTES + self._extents.cost(inode.ino, chunk))
            opened.chunks[chunk] = held
            if opened.order is not None:
                insort(opened.order, chunk)
            self.dirty_bytes += held.bytes()
            if inode.flags & ks.F_INLINE:
                held.touch(0, present)
                self._leave_inline(inode)
        return held

    def _leave_inline(self, inode: Inode) -> None:
        """The content is in memory alone now: who calls this logs all of it, or discards it."""
        inode.flags &= ~ks.F_INLINE
        self._items.put(ks.key(inode.ino, ks.T_INLINE), None)
        self._put_inode(inode)

    def write(self, inode: Inode, offset: int, data: memoryview) -> None:
        """Store content; the caller sets the size afterwards."""
        size = self.chunk_size(inode)
        if offset + len(data) > self._largest(size):
            raise FsError(errno.EFBIG)  # a file may be longer, as a hole
        self.leave_inline(inode)
        position, end = offset, offset + len(data)
        while position < end:
            chunk, skip = divmod(position, size)
            if skip == 0 and end - position >= size:
                rest = data[position - offset :]
                count = self.records.seal_run(inode.ino, chunk, rest, size)
                if inode.ino in self._dirty:
                    for sealed in range(chunk, chunk + count):
                        self._drop_chunk(inode.ino, sealed)
                position += size * count
                continue
            stop = min((chunk + 1) * size, end)
            self._write_part(inode, chunk, skip, data[position - offset : stop - offset])
            position = stop

    def _write_part(self, inode: Inode, chunk: int, skip: int, part: memoryview) -> None:
        held = self._place(inode, chunk, skip, part)
        if held.high - held.low == self.chunk_size(inode):
            self._seal(inode.ino, chunk, held.buf)
            self._drop_chunk(inode.ino, chunk)

    def _place(self, inode: Inode, chunk: int, skip: int, part: memoryview) -> DirtyChunk:
        """Put a part of a chunk into memory."""
        held = self._load(inode, chunk)
        buf = held.buf
        stop = skip + len(part)
        before = len(buf)
        if skip > before:
            buf.extend(bytes(skip - before))
        if skip >= before:
            buf += part  # a slice would be set from a copy of the part
        else:
            buf[skip:stop] = part
        self.dirty_bytes += len(buf) - before
        held.touch(skip if skip < before else before, stop)
        return held

    def seal_chunk(self, inode: Inode, chunk: int) -> None:
        """Have a chunk in its record, if it is in memory."""
        opened = self._dirty.get(inode.ino)
        if opened is not None and chunk in opened.chunks:
            self._seal_or_leave(inode.ino, chunk, opened.chunks[chunk].buf)
            self._drop_chunk(inode.ino, chunk)

    def _seal_or_leave(self, ino: int, chunk: int, buf: bytearray) -> None:
        if buf:
            self._seal(ino, chunk, buf)
        else:
            self._discards.add(ino, chunk)
            self._set_pointer(ino, chunk, ABSENT)

    def forget_chunk(self, inode: Inode, chunk: int) -> None:
        """Hold a chunk in memory no more: its slot is about to be another."""
        self._drop_chunk(inode.ino, chunk)
        self._discards.add(inode.ino, chunk)

    def leave_inline(self, inode: Inode) -> None:
        """Have the content of a file in chunks."""
        if inode.flags & ks.F_INLINE:
            self._load(inode, 0)

    def slot(self, ino: int, chunk: int) -> bytes:
        """Return the slot of a chunk; what is in memory is newer."""
        return self._pointer(ino, chunk)

    def clean_records(self, inode: Inode, chunk: int) -> int:
        """Return how many chunks from one on have records, and are not in memory, of one group."""
        count = self._extents.run(inode.ino, chunk)
        if inode.ino in self._dirty:
            dirty = self._dirty[inode.ino].chunks
            return next((n for n in range(count) if chunk + n in dirty), count)
        return count

    def holds(self, inode: Inode) -> bool:
        """Return whether anything is held of a file."""
        return inode.ino in self._dirty or self._extents.count(inode.ino) > 0

    def _drop_chunk(self, ino: int, chunk: int) -> None:
        opened = self._dirty.get(ino)
        if opened is None:
            return
        held = opened.chunks.pop(chunk, None)
        if held is not None:
            self.dirty_bytes -= held.bytes()
            if not opened.chunks:
                del self._dirty[ino]

    def truncate(self, inode: Inode, size: int, held_end: int = END) -> None:
        """Forget content from ``size`` on; the caller sets the size afterwards.

        ``held_end``: no extent from this chunk on has anything.
        """
        ino = inode.ino
        chunk_size = self.chunk_size(inode)
        chunk, keep = divmod(min(size, self._largest(chunk_size)), chunk_size)
        if inode.flags & ks.F_INLINE:
            if size == 0:
                self._leave_inline(inode)
                self._discards.add_from(ino, 0)
                return
            self._load(inode, 0)
        if keep:
            held = self._load(inode, chunk)
            self.dirty_bytes -= max(0, len(held.buf) - keep)
            del held.buf[keep:]
            held.low, held.high = 0, len(held.buf)
        opened = self._dirty.get(ino)
        if opened is not None:
            for number in [n for n in opened.chunks if n > chunk or (n == chunk and not keep)]:
                self._drop_chunk(ino, number)
        # What is kept of the border chunk is dirty and whole: its record and the lower layer
        # must not show through when the file grows again.
        inode.lower_limit = min(inode.lower_limit, chunk * chunk_size)
        self._discards.add_from(ino, chunk)
        self._extents.clear(ino, chunk, held_end)

    def truncate_steps(self, inode: Inode, size: int) -> Iterator[None]:
        """Like ``truncate``, from the end of the file on: after each step it is one that was cut
        further behind, its size set, so that whatever ends this leaves nothing to be undone.

        Precondition: nothing else makes the file longer meanwhile.
        """
        ino = inode.ino
        chunk_size = self.chunk_size(inode)
        kept = -(-min(size, self._largest(chunk_size)) // chunk_size)
        end = END
        if not inode.flags & ks.F_INLINE:
            if size % chunk_size and kept * chunk_size > size:
                self._load(inode, kept - 1)  # if the host has it no more, nothing was changed
            dirty = sorted(self._dirty[ino].chunks) if ino in self._dirty else []
            while (end := self._extents.clear_last(ino, kept, end)) > kept:
                while dirty and dirty[-1] >= end:
                    self._drop_chunk(ino, dirty.pop())
                self._end_at(inode, end)
                yield
            self._end_at(inode, end)
        self.truncate(inode, size, end)

    def _end_at(self, inode: Inode, chunk: int) -> None:
        """From a chunk on there are no extents any more: the file ends there."""
        inode.size = min(inode.size, chunk * self.chunk_size(inode))
        inode.lower_limit = min(inode.lower_limit, inode.size)
        self._discards.add_from(inode.ino, chunk)
        self._put_inode(inode)

    def punch_steps(self, inode: Inode, offset: int, length: int) -> Iterator[None]:
        """Make a range read as zeros, from its start on, in steps."""
        self.leave_inline(inode)
        size = self.chunk_size(inode)
        position, end = offset, min(offset + length, inode.size)
        for count in itertools.count(1):
            if position >= end:
                return
            if count % STEP_CHUNKS == 0:
                yield
            chunk, skip = divmod(position, size)
            below = inode.flags & ks.F_LOWER and position < inode.lower_limit
            if skip == 0 and not below and (held := self._next_held(inode.ino, chunk)) > chunk:
                position = held * size
                continue
            stop = min((chunk + 1) * size, end)
            if skip == 0 and (stop - position == size or stop == inode.size):
                self._drop_chunk(inode.ino, chunk)
                self._discards.add(inode.ino, chunk)
                self._set_pointer(inode.ino, chunk, HOLE if below else ABSENT)
            else:
                with memoryview(bytes(stop - position)) as zeros:
                    self._write_part(inode, chunk, skip, zeros)
            position = stop

    def drop(self, inode: Inode) -> int:
        """Forget content of an inode that goes away; return where ``drop_on`` goes on, or END."""
        self._forget_dirty(inode)
        ino = inode.ino
        if inode.flags & ks.F_INLINE or stat.S_ISLNK(inode.mode):
            self._items.drop(ks.key(ino, ks.T_INLINE))
        elif stat.S_ISREG(inode.mode):
            return self._extents.drop(ino)
        return END

    def drop_on(self, inode: Inode, group: int) -> int:
        """Forget more of it, in one step."""
        return self._extents.drop(inode.ino, group)

    def _forget_dirty(self, inode: Inode) -> None:
        """Hold nothing of an inode in memory that goes away."""
        ino = inode.ino
        opened = self._dirty.pop(ino, None)
        if opened is not None:
            self.dirty_bytes -= sum(held.bytes() for held in opened.chunks.values())
        if stat.S_ISREG(inode.mode) and self._items.was_changed(ks.key(ino, ks.T_INODE)):
            # A commit may have logged writes of it, whatever became of them here since.
            self._discards.add_from(ino, 0)

    def held_bytes(self, inode: Inode, start: int, end: int) -> int:
        """Return how much of a range lies in memory, or in records that no other file has."""
        if inode.flags & ks.F_INLINE:
            return max(0, min(end, inode.size) - start)
        ino, size = inode.ino, self.chunk_size(inode)
        held = 0
        for chunk in range(start // size, -(-end // size)):
            slot = self._pointer(ino, chunk)
            is_own = is_record(slot) and self.references.count(slot) == 1
            if is_own or self.is_dirty(inode, chunk):
                held += min(end, (chunk + 1) * size) - max(start, chunk * size)
        return held

    # Saving -------------------------------------------------------------------------------

    def uncommitted(self) -> list[tuple[int, int, bytes]]:
        """Return (ino, offset, content) of every dirty range that no commit has."""
        return [
            (ino, chunk * size + held.low, bytes(held.buf[held.low : held.high]))
            for ino, opened in self._dirty.items()
            for size in (self.chunk_size(opened.inode),)
            for chunk, held in opened.chunks.items()
            if held.low < held.high
        ]

    def uncommitted_bytes(self) -> int:
        """Return how many bytes that is."""
        every = (held for opened in self._dirty.values() for held in opened.chunks.values())
        return sum(held.high - held.low for held in every)

    def discards(self) -> list[tuple[int, int, int]]:
        """Return (ino, first, end) of what memory held and holds no more, since the last commit."""
        return self._discards.dump()

    def noted_bytes(self) -> int:
        """Return about what is noted beside the content takes in memory, and at most on the host:
        changed extents, who owns new records, discards."""
        noted = self._extents.changed_bytes + self._discards.bytes()
        return noted + self.records.noted_bytes()

    def committed(self) -> None:
        """Everything dirty is in a commit now."""
        for opened in self._dirty.values():
            for held in opened.chunks.values():
                held.low = held.high = 0
        self._discards.clear()

    def flush(self) -> None:
        """Seal all dirty chunks into records, small files into their inline item."""
        for opened in list(self._dirty.values()):
            self._flush_file(opened)

    def flush_steps(self) -> Iterator[None]:
        """Like ``flush``, in steps, of what is dirty now."""
        count = 0
        for opened in list(self._dirty.values()):
            inode = opened.inode
            many = sorted(opened.chunks) if len(opened.chunks) > 1 else ()
            for chunk in many:
                self.seal_chunk(inode, chunk)
                count += 1
                if count % STEP_CHUNKS == 0:
                    yield
            if not many and self._dirty.get(inode.ino) is opened:
                self._flush_file(opened)
                count += 1
                if count % STEP_CHUNKS == 0:
                    yield

    def _flush_file(self, opened: DirtyFile) -> None:
        inode = opened.inode
        ino = inode.ino
        held = opened.chunks.get(0)
        if held is not None and len(opened.chunks) == 1 and self._is_inline(inode):
            self._set_pointer(ino, 0, ABSENT)
            self._discards.add_from(ino, 0)
            self._items.put(ks.key(ino, ks.T_INLINE), bytes(held.buf[: inode.size]))
            inode.flags = (inode.flags & ~ks.F_LOWER) | ks.F_INLINE
            inode.lower_limit = 0
            self._put_inode(inode)
        else:
            for chunk in sorted(opened.chunks):
                self._seal_or_leave(ino, chunk, opened.chunks[chunk].buf)
        # One by one: if the host fails at a later inode, this one is in order.
        self.dirty_bytes -= sum(dirty.bytes() for dirty in opened.chunks.values())
        del self._dirty[ino]

    def _is_inline(self, inode: Inode) -> bool:
        """Return whether a file whose first chunk is in memory can be kept in its inode."""
        # A file of more chunks than one is no inline item, however small the chunks are.
        if inode.size > ks.INLINE_MAX or inode.size > self.chunk_size(inode):
            return False
        if self._segments.reserved_bytes and (
            self._next_held(inode.ino, 1) != END or is_reserved(self._pointer(inode.ino, 0))
        ):
            return False  # an inline file has no extents that could hold room
        return stat.S_ISREG(inode.mode)

    def save_extents(self) -> None:
        """Put the changed extents into the items."""
        self._extents.save()

    def settle(self) -> None:
        """A checkpoint holds everything now."""
        self._extents.settle()

    # Replay -------------------------------------------------------------------------------

    def replay_discard(self, ino: int, first: int, end: int) -> None:
        """Apply a discard of the log."""
        opened = self._dirty.get(ino)
        if opened is not None:
            for chunk in [n for n in opened.chunks if first <= n < end]:
                self._drop_chunk(ino, chunk)

    def replay_inline(self, ino: int) -> None:
        """The content went into its inode, or out of it: what earlier commits wrote of it is there,
        or was given up, or is written by this commit once more, whole."""
        self.replay_discard(ino, 0, END)

    def replay_drop(self, ino: int) -> None:
        """The inode is gone. Logs of before format.md said so name no discard with it."""
        self.replay_discard(ino, 0, END)
        group = self._extents.drop(ino)
        while group != END:
            group = self._extents.drop(ino, group)

    def replay_extents(self, ino: int, group: int, value: bytes) -> None:
        """Apply an extent item of the log, with its effect on the use of segments."""
        check_group(ino, value, self._segments.version)
        for index in range(ks.GROUP):
            chunk = group * ks.GROUP + index
            pointer = value[index * POINTER_BYTES : (index + 1) * POINTER_BYTES] or ABSENT
            if pointer == self._pointer(ino, chunk):
                continue
            self._drop_chunk(ino, chunk)
            self.references.appear(pointer)
            self._set_pointer(ino, chunk, pointer)

    def replay_write(self, inode: Inode, offset: int, raw: bytes) -> None:
        """Apply a small write of the log; replay writes nothing to the host.

        The size is the inode's already.
        """
        size = self.chunk_size(inode)
        chunk, skip = divmod(offset, size)
        if skip + len(raw) > size or not 0 <= offset < self._largest(size):
            raise FormatError("log write across chunks", subject=f"inode {inode.ino}")
        with memoryview(raw) as view:
            self._place(inode, chunk, skip, view)


def _copy(source: bytes | bytearray, skip: int, out: memoryview) -> None:
    part = source[skip : skip + len(out)]
    out[: len(part)] = part
    if len(part) < len(out):
        out[len(part) :] = bytes(len(out) - len(part))
