# SPDX-License-Identifier: Apache-2.0
"""Segments: append-only host files of sealed records, one derived key each.

Above: ``volume``, ``content``. Below: ``crypto``, ``hostdir``.

On-disk format of ``seg/<n>``::

    0     salt, 32 bytes, then random bytes to 4096
    4096  records: ciphertext || 16-byte tag, no header; a new one begins on a fresh page of
          4 KiB after each flush, so a torn write never touches what was durable

    pointer  segment u32 | offset u32 | stored u32 | number u32 | tag 16      (32 bytes)

Security:
    1. The key comes from the segment's number and its salt; a segment that an earlier process
       wrote is never appended to, and a new one gets a fresh salt. So no (key, nonce) repeats,
       even when the host directory is rolled back and written again.
    2. The parent holds the tag: an older or another authentic record does not pass.
    3. Authenticated beside the record: its kind, and of file data where it lies (segment, number),
       in version 1 whose it is (inode, chunk). So it is the pointer alone, with its tag, that ties
       a record to a file, and several files may name one.
"""

from __future__ import annotations

import errno
import hmac
import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import Final, final

from serdab.crypto.aead import TAG_BYTES, RecordCipher
from serdab.crypto.kdf import KeySchedule
from serdab.errors import AuthenticationError, FormatError, FsError
from serdab.sefs.hostdir import Dir, File, read_exact
from serdab.sefs.keyspace import V1
from serdab.sefs.limits import DEFAULT_LIMITS, VolumeLimits
from serdab.structs import frozen, mutable

HEADER_BYTES: Final = 4096
SALT_BYTES: Final = 32
ALIGN: Final = 4096
FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
"""What a host without room answers."""
RETIRE_BYTES: Final = 1 << 20
_MAX_OPEN: Final = 96
"""So many segments are kept open for reading."""
POINTER: Final = struct.Struct("<IIII16s")
POINTER_BYTES: Final = POINTER.size
Record = tuple[int, int, int, int, bytes]
"""An unpacked pointer."""
ABSENT: Final = bytes(POINTER_BYTES)
HOLE: Final = b"\xff\xff\xff\xff" + bytes(POINTER_BYTES - 4)
"""Stands for zeros that hide the lower layer."""

S_RESERVED: Final = 0xFFFFFFFD
"""As the segment of a slot: room for a record that is not written (see ``slots``)."""

MAX_STORED: Final = 1 << 24
"""A record takes less."""
MAX_SEGMENT: Final = (1 << 32) - (1 << 20)
"""The number of a segment is below, and that of the one after it."""
MAX_SEGMENTS: Final = (MAX_STORED - TAG_BYTES) // 12 - 1
"""So many find room in the record that is their table."""

R_DATA: Final = 1
R_PAGE: Final = 2
R_TABLE: Final = 3
_AAD: Final = struct.Struct("<BQQ")

log = logging.getLogger("serdab.sefs")


def data_aads(
    version: int, ino: int, chunk: int, segment: int, numbers: Sequence[int]
) -> Iterator[bytes]:
    """Yield what is authenticated beside the records of successive chunks, of one segment."""
    if version == V1:
        chunks = range(chunk, chunk + len(numbers))
        return map(_AAD.pack, repeat(R_DATA), repeat(ino), chunks)
    return map(_AAD.pack, repeat(R_DATA), repeat(segment), numbers)


def page_aad(level: int) -> bytes:
    """Return what is authenticated beside a tree page."""
    return _AAD.pack(R_PAGE, level, 0)


TABLE_AAD: Final = _AAD.pack(R_TABLE, 0, 0)


def file_name(number: int) -> str:
    """Return the host file name of a segment or log."""
    return f"{number:08x}"


def file_number(name: str) -> int | None:
    """Return the number of a host file name, or None if it is not one of ours."""
    try:
        number = int(name, 16)
    except ValueError:
        return None
    return number if name == file_name(number) and number else None


def segment_cipher(keys: KeySchedule, number: int, salt: bytes) -> RecordCipher:
    """Return the cipher of a segment."""
    return keys.cipher(b"segment", number.to_bytes(8, "little") + salt)


@mutable
class Usage:
    """Of one segment: bytes appended, and bytes that the newest state refers to."""

    used: int
    live: int


@final
class SegmentStore:
    """All segments of a volume: reads any record, appends to the writers' own."""

    def __init__(
        self,
        directory: Callable[[], Dir],
        keys: KeySchedule,
        next_number: int,
        version: int,
        limits: VolumeLimits = DEFAULT_LIMITS,
    ) -> None:
        """``keys`` are those of ``version``."""
        self.version = version
        self.limits = limits
        self._directory = directory
        self._keys = keys
        self.next_number = next_number
        self.usage: dict[int, Usage] = {}
        self._writers: dict[int, Writer] = {}
        self._open: dict[int, tuple[File, RecordCipher]] = {}
        self._scratch = bytearray((1 << 20) + TAG_BYTES)
        self.unsynced_dir = False
        self.reserved_bytes = 0
        """What extents that are reserved and not written will take."""
        self.appended_bytes = 0
        self.churn_bytes = 0
        """What was appended and what was freed, in all."""

    def writer(self) -> Writer:
        """Return a new writer; it makes its first segment when something is appended."""
        return Writer(self)

    def begin(self, writer: Writer) -> tuple[int, File, RecordCipher]:
        """Make a new segment for a writer."""
        directory = self._directory()
        taken = {file_number(name) for name in directory.names()} if not self.usage else set()
        while True:
            number = self.next_number
            if number + 1 >= MAX_SEGMENT or len(self.usage) >= MAX_SEGMENTS:
                log.error("the volume has as many segments as the format can number")
                raise FsError(errno.ENOSPC)
            self.next_number += 1
            if number in taken:
                continue
            try:
                file = directory.open(file_name(number), create=True)
            except FileExistsError:
                continue  # left by a process that was killed
            break
        head = os.urandom(HEADER_BYTES)
        try:
            file.pwrite(head, 0)
        except OSError:
            # On a full host what was begun in vain would be all that keeps it full.
            file.close()
            directory.unlink(file_name(number))
            raise
        self.unsynced_dir = True
        self.usage[number] = Usage(HEADER_BYTES, 0)
        self._writers[number] = writer
        return number, file, segment_cipher(self._keys, number, head[:SALT_BYTES])

    @property
    def used_bytes(self) -> int:
        """Bytes that all segments take."""
        return sum(usage.used for usage in self.usage.values())

    @property
    def live_bytes(self) -> int:
        """Bytes that the newest state refers to."""
        return sum(max(usage.live, 0) for usage in self.usage.values())

    def take_back(self, writer: Writer, number: int, used: int) -> None:
        """A segment goes on from an earlier end."""
        self._writers[number] = writer
        self.usage[number].used = used

    def end(self, number: int) -> None:
        """A writer is done with its segment."""
        self._writers.pop(number, None)

    def is_open(self, number: int) -> bool:
        """Return whether a writer still appends to the segment."""
        return number in self._writers

    def sync_dir(self) -> None:
        """Make the names of new segments durable."""
        if self.unsynced_dir:
            self._directory().sync()
            self.unsynced_dir = False

    def free(self, pointer: bytes) -> None:
        """The newest state no longer refers to a record."""
        segment, _, stored, _, _ = POINTER.unpack(pointer)
        usage = self.usage.get(segment)
        if usage is not None:
            usage.live -= stored
            self.churn_bytes += stored

    def free_all(self, pointers: bytes | bytearray) -> None:
        """The newest state no longer refers to any of these records."""
        usage = self.usage
        for segment, _, stored, _, _ in POINTER.iter_unpack(pointers):
            # Other slots name segments that never are.
            if segment in usage:
                usage[segment].live -= stored
                self.churn_bytes += stored
            elif segment == S_RESERVED:
                self.reserved_bytes -= stored

    def reserve(self, slot: bytes, *, freed: bool = False) -> None:
        """The newest state has a slot that holds room for a record; ``freed``: no longer."""
        stored = POINTER.unpack(slot)[2]
        self.reserved_bytes += -stored if freed else stored

    def claim(self, pointer: bytes) -> None:
        """The newest state refers to a record (again)."""
        segment, offset, stored, _, _ = POINTER.unpack(pointer)
        usage = self.usage.setdefault(segment, Usage(0, 0))
        usage.live += stored
        usage.used = max(usage.used, offset + stored)

    def remove(self, number: int) -> None:
        """Delete a segment that no durable anchor refers to."""
        self.usage.pop(number, None)
        self.forget_file(number)
        try:
            self._directory().unlink(file_name(number))
        except FileNotFoundError:
            return

    def forget_file(self, number: int) -> None:
        """Close the cached descriptor of a segment."""
        cached = self._open.pop(number, None)
        if cached is not None:
            cached[0].close()

    def _reader(self, segment: int) -> tuple[File, RecordCipher]:
        cached = self._open.get(segment)
        if cached is None:
            try:
                file = self._directory().open(file_name(segment))
            except FileNotFoundError:
                raise AuthenticationError(
                    "a segment is missing", found=file_name(segment)
                ) from None
            salt = read_exact(file, SALT_BYTES, 0)
            if len(self._open) >= _MAX_OPEN:
                self.forget_file(next(iter(self._open)))
            cached = self._open[segment] = file, segment_cipher(self._keys, segment, salt)
        return cached

    def _sealed(self, pointer: bytes, limit: int) -> tuple[memoryview, RecordCipher, int]:
        segment, offset, stored, number, tag = POINTER.unpack(pointer)
        if not TAG_BYTES < stored <= min(limit + TAG_BYTES, MAX_STORED - 1):
            raise FormatError("record of an impossible length", found=str(stored))
        writer = self._writers.get(segment)
        if writer is not None and offset >= writer.written:
            view = writer.buffered(offset, stored)
            cipher = writer.cipher
        else:
            if stored > len(self._scratch):
                self._scratch = bytearray(stored)
            view = memoryview(self._scratch)[:stored]
            file, cipher = (
                (writer.file, writer.cipher) if writer is not None else self._reader(segment)
            )
            if file.pread_into(view, offset) != stored:
                raise AuthenticationError("the segment ends before the record does")
        if not hmac.compare_digest(view[stored - TAG_BYTES :], tag):
            raise AuthenticationError("the record is not the one its parent names")
        return view, cipher, number

    def read(self, pointer: bytes, aad: bytes, limit: int) -> bytes:
        """Return a record of at most ``limit`` bytes, verified."""
        view, cipher, number = self._sealed(pointer, limit)
        return cipher.open_(number, view, aad)

    def _data_aad(self, pointer: bytes, ino: int, chunk: int) -> bytes:
        if self.version == V1:
            return _AAD.pack(R_DATA, ino, chunk)
        segment, _, _, number, _ = POINTER.unpack(pointer)
        return _AAD.pack(R_DATA, segment, number)

    def read_data(self, pointer: bytes, ino: int, chunk: int, limit: int) -> bytes:
        """Return the record of a chunk of a file, of at most ``limit`` bytes, verified."""
        return self.read(pointer, self._data_aad(pointer, ino, chunk), limit)

    def read_into(self, pointer: bytes, ino: int, chunk: int, out: memoryview) -> None:
        """Open the record of a chunk straight into ``out``, whose length is the record's."""
        view, cipher, number = self._sealed(pointer, len(out))
        cipher.open_into(number, view, self._data_aad(pointer, ino, chunk), out)

    def read_run(self, records: list[Record], ino: int, chunk: int, out: memoryview) -> None:
        """Open equally long records that lie one after another: one host read for all of them.

        Preconditions: the records are contiguous in one segment, are those of successive chunks
        from ``chunk`` on, and fill ``out``.
        """
        segment, start, stored, _, _ = records[0]
        writer = self._writers.get(segment)
        length = stored - TAG_BYTES
        total = stored * len(records)
        if writer is not None and start + total > writer.written:
            for index, record in enumerate(records):
                part = out[index * length : (index + 1) * length]
                self.read_into(POINTER.pack(*record), ino, chunk + index, part)
            return
        aads = data_aads(self.version, ino, chunk, segment, [record[3] for record in records])
        if total > len(self._scratch):
            self._scratch = bytearray(total)
        view = memoryview(self._scratch)[:total]
        file, cipher = (writer.file, writer.cipher) if writer is not None else self._reader(segment)
        if file.pread_into(view, start) != total:
            raise AuthenticationError("the segment ends before the record does")
        open_into, compare = cipher.open_into, hmac.compare_digest
        at = low = 0
        for (_, _, _, number, tag), aad in zip(records, aads, strict=True):
            sealed = view[at : at + stored]
            if not compare(sealed[length:], tag):
                raise AuthenticationError("the record is not the one its parent names")
            open_into(number, sealed, aad, out[low : low + length])
            at += stored
            low += length

    def close(self) -> None:
        """Close all descriptors."""
        for number in list(self._open):
            self.forget_file(number)


def plain_length(pointer: bytes) -> int:
    """Return the length of the record that a pointer names."""
    stored: int = POINTER.unpack(pointer)[2]
    return stored - TAG_BYTES


@frozen
class _Ended:
    """A segment that is written and not flushed, and how many records it has."""

    number: int
    file: File
    cipher: RecordCipher
    count: int


@final
class Writer:
    """Appends records to a segment of its own, through a buffer."""

    def __init__(self, store: SegmentStore) -> None:
        self._store = store
        self._number = 0
        self.written = 0
        self._limits = store.limits
        self._buffer = bytearray()
        self.waiting_bytes = 0
        """Sealed bytes that the host does not have yet."""
        self.unsynced_bytes = 0
        """Sealed bytes that are not durable."""
        self._count = 0
        self._unsynced: list[_Ended] = []
        self._dirty = False

    file: File
    cipher: RecordCipher

    def append(self, plain: bytes | bytearray | memoryview, aad: bytes) -> bytes:
        """Seal a record; return its pointer. It is durable after :meth:`sync`.

        Raises:
            FormatError: it is longer than a pointer may say.
        """
        stored = len(plain) + TAG_BYTES
        if stored >= MAX_STORED:
            raise FormatError("record longer than a pointer may say", found=str(stored))
        self.make_room(stored)
        return self._seal(plain, len(plain), (aad,))

    def append_data(self, plain: bytes | bytearray | memoryview, ino: int, chunk: int) -> bytes:
        """Seal a chunk of a file, as :meth:`append` does.

        Preconditions: it is no longer than any chunk may be.
        """
        self.make_room(len(plain) + TAG_BYTES)
        return self._seal(plain, len(plain), self._data_aads(ino, chunk, 1))

    def append_run(self, plain: memoryview, size: int, ino: int, chunk: int) -> bytes:
        """Seal successive chunks of ``size`` bytes; return the pointers, joined.

        Preconditions: :meth:`make_room` has just said that so many fit.
        """
        return self._seal(plain, size, self._data_aads(ino, chunk, len(plain) // size))

    def _data_aads(self, ino: int, chunk: int, count: int) -> Iterator[bytes]:
        """Yield what goes beside the next records of this segment."""
        numbers = range(self._count, self._count + count)
        return data_aads(self._store.version, ino, chunk, self._number, numbers)

    def make_room(self, stored: int) -> int:
        """Have room for a record in the buffer; return how many of its length there is room for.

        Whatever the host refuses, it refuses here, before anything is sealed.
        """
        limit = self._limits.segment_bytes
        if self._number and self.written + self.waiting_bytes + stored > limit:
            self.finish()
        if not self._number:
            self._number, self.file, self.cipher = self._store.begin(self)
            self.written, self.waiting_bytes, self._count = HEADER_BYTES, 0, 0
        if self.waiting_bytes + stored > len(self._buffer):
            self.flush()
            if stored > len(self._buffer):
                room = self._limits.buffer_bytes
                self._buffer = bytearray(max(stored, room + room // 8))
        end = min(len(self._buffer), limit - self.written)
        return max((end - self.waiting_bytes) // stored, 1)

    def _seal(
        self, plain: bytes | bytearray | memoryview, size: int, aads: Iterable[bytes]
    ) -> bytes:
        stored = size + TAG_BYTES
        buffer, at, number, count = self._buffer, self.waiting_bytes, self._number, self._count
        view = memoryview(buffer)
        seal_into, written = self.cipher.seal_into, self.written
        whole = len(plain) == size
        pointers = []
        low = 0
        for aad in aads:
            part = plain if whole else plain[low : low + size]
            self._count = count + 1  # never back, whatever becomes of this one
            seal_into(count, part, aad, view[at : at + stored])
            tag = buffer[at + size : at + stored]
            pointers.append(POINTER.pack(number, written + at, stored, count, tag))
            low += size
            at += stored
            count += 1
        self._appended(at - self.waiting_bytes)
        return pointers[0] if whole else b"".join(pointers)

    def _appended(self, size: int) -> None:
        """So many bytes of records were sealed into the buffer."""
        store = self._store
        self.waiting_bytes += size
        self.unsynced_bytes += size
        usage = store.usage[self._number]
        usage.used = self.written + self.waiting_bytes
        usage.live += size
        store.appended_bytes += size
        store.churn_bytes += size
        self._dirty = True
        if self.waiting_bytes >= self._limits.buffer_bytes:
            try:
                self.flush()
            except OSError as exc:
                # The records are safe in the buffer; the next one meets the full host first.
                if exc.errno not in FULL:
                    raise

    def buffered(self, offset: int, stored: int) -> memoryview:
        """Return sealed bytes that are not in the file yet."""
        start = offset - self.written
        if start + stored > self.waiting_bytes:
            raise FormatError("record beyond the end of its segment")
        return memoryview(self._buffer)[start : start + stored]

    def flush(self) -> None:
        """Hand the buffer to the host."""
        if self.waiting_bytes:
            self.file.pwrite(memoryview(self._buffer)[: self.waiting_bytes], self.written)
            self.written += self.waiting_bytes
            self.waiting_bytes = 0

    def sync(self) -> bool:
        """Make everything appended durable; return whether there was anything."""
        if not self._dirty:
            return False
        self.flush()
        for ended in self._unsynced:
            ended.file.sync()
            ended.file.close()
        self._unsynced.clear()
        if self._number:
            self.file.sync()
            self.written = -(-self.written // ALIGN) * ALIGN
        self._dirty = False
        self.unsynced_bytes = 0
        return True

    def flushers(self) -> list[Callable[[], None]]:
        """Return what makes durable all that the host was handed; :meth:`sync` is still due."""
        files = [ended.file for ended in self._unsynced]
        if self._number:
            files.append(self.file)
        return [file.flusher() for file in files]

    def finish(self) -> None:
        """Leave the segment; the next record begins a new one."""
        if self._number:
            self.flush()
            self._unsynced.append(self._as_ended())
            self._store.end(self._number)
            self._number = 0

    def mark(self) -> tuple[int, int]:
        """Return where the next record goes, for :meth:`cut`. Nothing waits when this is asked."""
        return self._number, self.written

    def cut(self, mark: tuple[int, int]) -> None:
        """Give back to the host what was appended since, to which nothing refers.

        The counter of each segment goes on from where it is: what is written at these offsets next
        has other nonces. Nothing that was durable is touched.

        Raises:
            OSError: the host refused.
        """
        number, written = mark
        begun = [*self._unsynced, self._as_ended()] if self._number else self._unsynced
        self._unsynced, self._number, self.waiting_bytes = [], 0, 0
        # All is in order here before the host is asked: what it refuses costs nothing but room.
        steps: list[Callable[[], None]] = []
        for ended in begun:
            self._store.end(ended.number)
            if ended.number != number:
                ended.file.close()
                steps.append(partial(self._store.remove, ended.number))
                continue
            self._number, self.file, self.cipher = number, ended.file, ended.cipher
            self.written, self._count = written, ended.count
            self._store.take_back(self, number, written)
            steps.append(partial(ended.file.truncate, written))
        refusals = []
        for step in steps:
            try:
                step()
            except OSError as exc:
                refusals.append(exc)
        if refusals:
            raise refusals[0]

    def _as_ended(self) -> _Ended:
        return _Ended(self._number, self.file, self.cipher, self._count)

    def retire(self) -> None:
        """Leave a segment of which most is dead already, so that it can be given back."""
        usage = self._store.usage.get(self._number)
        if usage is not None and usage.used > RETIRE_BYTES and usage.live < usage.used // 2:
            self.finish()

    def close(self) -> None:
        """Close descriptors without writing anything more."""
        if self._number:
            self._store.end(self._number)
            self.file.close()
            self._number = 0
        for ended in self._unsynced:
            ended.file.close()
        self._unsynced.clear()
