# SPDX-License-Identifier: Apache-2.0
"""The intent log: what was committed since the last checkpoint, one sealed record per commit.

Above: ``volume``. Below: ``crypto``, ``hostdir``.

On-disk format of ``log/<n>``: commits, each on a fresh page of 4 KiB; p is the number of its first
page, so (key, nonce) pairs are (log key, 2p) and (log key, 2p + 1)::

    0    header, 64 bytes sealed, nonce 2p:
         sequence u64 | body_len u32 | zero u32 | previous 16 | flushed_upto u64 |
         pages u32 | zero u32 (48 bytes), then the tag
    64   body sealed, nonce 2p + 1, AAD = the header's tag

The body is a MessagePack array, see :class:`Commit`. ``previous`` is the tag of the body before,
or the anchor's ``chain``. A log is written by one process only; its salt stands in the anchor.

Security:
    1. Replay stops at the first record that does not verify. If a later record verifies and says
       that the missing one was durable (``flushed_upto``), the log was tampered with and the
       volume is refused; otherwise it is the torn tail of a crash and is cut.
    2. After a failed write the log is never written again: a new log and anchor come first.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable, Iterator
from typing import Final, final

import msgspec

from serdab.crypto.aead import TAG_BYTES, RecordCipher
from serdab.crypto.kdf import KeySchedule
from serdab.errors import AuthenticationError, FormatError
from serdab.sefs.hostdir import Dir, File, read_exact
from serdab.sefs.segment import SALT_BYTES, file_name

PAGE: Final = 4096
_HEADER: Final = struct.Struct("<QII16sQII")
_SEALED_HEADER: Final = _HEADER.size + TAG_BYTES
MAX_BODY: Final = 1 << 30
"""A commit's body is not longer. Today's are by far (``limits.commit_bytes``)."""
MAX_PAGES: Final = (MAX_BODY + (64 << 20)) // PAGE
"""A log is not longer, whatever its file claims."""
_CUT: Final = "a commit that is not whole was cut: it was in flight when the last session ended"
_GROW: Final = 1 << 20
_GROW_MOST: Final = 16 << 20

log = logging.getLogger("serdab.sefs")


class Commit(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What one commit changed, as final values: replaying it twice changes nothing more."""

    items: list[tuple[bytes, bytes | None]]
    """Tree items; None deletes."""
    discards: list[tuple[int, int, int]]
    """(ino, first, end): these chunks are no longer held in memory. Applied before items."""
    writes: list[tuple[int, int, bytes]]
    """(ino, offset, content): small writes that have no record of their own. Applied last."""
    next_ino: int


def size_of(commit: Commit) -> int:
    """Return about how long the body of a commit is, and not less."""
    items = sum(len(key) + len(value or b"") for key, value in commit.items)
    writes = sum(len(raw) for _, _, raw in commit.writes)
    count = len(commit.items) + len(commit.discards) + len(commit.writes)
    return items + writes + 32 * (count + 1)


def log_cipher(keys: KeySchedule, number: int, salt: bytes) -> RecordCipher:
    """Return the cipher of a log."""
    return keys.cipher(b"log", number.to_bytes(8, "little") + salt)


def begin_log(
    directory: Dir, keys: KeySchedule, number: int
) -> tuple[int, bytes, File, RecordCipher]:
    """Make a new log file, ``number`` or the first free one after it.

    Return its number, its salt, the file and its cipher.
    """
    while True:
        try:
            file = directory.open(file_name(number), create=True)
            break
        except FileExistsError:
            number += 1
    directory.sync()
    salt = os.urandom(SALT_BYTES)
    return number, salt, file, log_cipher(keys, number, salt)


@final
class LogWriter:
    """Appends commits to a new log file."""

    def __init__(
        self,
        file: File,
        cipher: RecordCipher,
        sequence: int,
        chain: bytes,
        growth_bytes: int = _GROW,
        is_roomy: Callable[[], bool] = lambda: True,
    ) -> None:
        """``is_roomy`` says whether the host has room to write far ahead."""
        self._file = file
        self._is_roomy = is_roomy
        self._growth_bytes = growth_bytes
        self._cipher = cipher
        self._page = 0
        self._allocated = 0
        self.sequence = sequence
        self.chain = chain

    def append(self, commit: Commit) -> int:
        """Write a commit and make it durable; return the bytes it took.

        Raises:
            FormatError: no reader would take it for one; nothing was written.
            OSError: the host failed. The log must not be used again.
        """
        body = msgspec.msgpack.encode(commit)
        pages = -(-(_SEALED_HEADER + len(body) + TAG_BYTES) // PAGE)
        if len(body) > MAX_BODY or self._page + pages > MAX_PAGES:
            raise FormatError("a commit longer than the log may be", found=str(len(body)))
        header = self._cipher.seal(
            2 * self._page,
            _HEADER.pack(self.sequence + 1, len(body), 0, self.chain, self.sequence, pages, 0),
            b"",
        )
        tag = header[-TAG_BYTES:]
        raw = bytearray(pages * PAGE)
        raw[:_SEALED_HEADER] = header
        end = _SEALED_HEADER + len(body) + TAG_BYTES
        with memoryview(raw) as view:
            self._cipher.seal_into(2 * self._page + 1, body, tag, view[_SEALED_HEADER:end])
        start = self._page * PAGE
        if start + len(raw) > self._allocated:
            # Written ahead once, so that later flushes carry data only and no new size.
            most = _GROW_MOST if self._is_roomy() else self._growth_bytes
            room = max(self._growth_bytes, min(2 * self._allocated, most), len(raw))
            self._file.pwrite(bytes(room - len(raw)), start + len(raw))
            self._allocated = start + room
        self._file.pwrite(raw, start)
        self._file.sync()
        self._page += pages
        self.sequence += 1
        self.chain = bytes(raw[end - TAG_BYTES : end])
        return len(raw)

    def cut(self) -> None:
        """Give back to the host all after the last commit. The log must not be used again."""
        self._file.truncate(self._page * PAGE)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(
    file: File, cipher: RecordCipher, sequence: int, chain: bytes
) -> Iterator[tuple[int, bytes, Commit]]:
    """Yield (sequence, chain, commit) of each commit after ``sequence``, in order.

    Raises:
        AuthenticationError: a commit that was durable is missing or changed.
        FormatError: an authentic record that cannot be read.
    """
    page = 0
    total = min(-(-file.size() // PAGE), MAX_PAGES)
    while page < total:
        head = _read_header(file, cipher, page)
        if head is None or head[0] != sequence + 1 or head[3] != chain:
            _check_tail(file, cipher, page, total, sequence + 1)
            if any(read_exact(file, _SEALED_HEADER, page * PAGE)):
                log.info("intent log, page %d: %s", page, _CUT)
            return
        found, body_len, _, _, _, pages, _ = head
        body = _read_body(file, cipher, page, body_len)
        if body is None:
            _check_tail(file, cipher, page + 1, total, sequence + 1)
            log.info("intent log, page %d: %s", page, _CUT)
            return
        raw, chain = body
        sequence = found
        try:
            commit = msgspec.msgpack.decode(raw, type=Commit)
        except msgspec.DecodeError as exc:
            raise FormatError("log record cannot be read", found=str(exc)) from None
        yield sequence, chain, commit
        if pages == 0:
            raise FormatError("log record of no pages")
        page += pages


def _read_header(
    file: File, cipher: RecordCipher, page: int
) -> tuple[int, int, int, bytes, int, int, int] | None:
    sealed = read_exact(file, _SEALED_HEADER, page * PAGE)
    if len(sealed) < _SEALED_HEADER or not any(sealed):
        return None
    try:
        plain = cipher.open_(2 * page, sealed, b"")
    except AuthenticationError:
        return None
    head: tuple[int, int, int, bytes, int, int, int] = _HEADER.unpack(plain)
    return head


def _read_body(
    file: File, cipher: RecordCipher, page: int, body_len: int
) -> tuple[bytes, bytes] | None:
    if body_len > MAX_BODY or body_len > file.size():
        return None
    start = page * PAGE
    sealed = read_exact(file, body_len + TAG_BYTES, start + _SEALED_HEADER)
    tag = read_exact(file, TAG_BYTES, start + _SEALED_HEADER - TAG_BYTES)
    if len(sealed) < body_len + TAG_BYTES:
        return None
    try:
        return cipher.open_(2 * page + 1, sealed, tag), sealed[-TAG_BYTES:]
    except AuthenticationError:
        return None


def _check_tail(file: File, cipher: RecordCipher, page: int, total: int, missing: int) -> None:
    """Refuse if a later record shows that the missing one was durable."""
    for later in range(page, total):
        head = _read_header(file, cipher, later)
        if head is not None and head[4] >= missing:
            raise AuthenticationError(
                "the intent log has a gap before a later commit",
                expected=f"commit {missing}",
                found=f"commit {head[0]}",
                hint="the storage lost a flush, or somebody changed the log; restore a backup, "
                "or `serdab fsck --repair` salvages what verifies",
            )
