# SPDX-License-Identifier: Apache-2.0
"""Room set aside on the host, so that what was admitted can be made durable when the host is full.

Above: ``volume``. Below: ``hostdir``.

Before a change is admitted the file ``reserve`` is grown, with space that the host has really
allocated (posix_fallocate(3)), to cover what is dirty and two worst checkpoints. When a commit or
checkpoint meets a full host the reserve is given up and the write done again; afterwards it is
taken back as far as the host allows. So a program is told ENOSPC when it writes, never when it
syncs what was accepted; and removing files always works. On copy-on-write or thinly provisioned
host file systems an allocation is no promise: there a flush can fail, the program that asked for it
gets the error and the volume turns read-only.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator
from typing import Final, final

from serdab.errors import FsError
from serdab.sefs.hostdir import Dir, File
from serdab.sefs.segment import FULL

RESERVE_NAME: Final = "reserve"
_LEAST: Final = 1 << 20
_STEP: Final = 16 << 20
LAST_ROOM: Final = 64 << 10
"""The part that only what gives room back may take: a checkpoint of nothing new, and a quarter less
a checkpoint that found no room without."""

log = logging.getLogger("serdab.sefs")


class FlushError(OSError):
    """The host failed to make something durable: what it held of it is lost or unknown."""


def is_full(exc: OSError) -> bool:
    """Return whether the host has no room."""
    return exc.errno in FULL


def is_full_only(exc: BaseException) -> bool:
    """Return whether the host had no room, and lost nothing."""
    return isinstance(exc, OSError) and is_full(exc) and not isinstance(exc, FlushError)


@final
class HostErrors:
    """Within it records go to the host while a program writes: a full host is its ENOSPC."""

    __slots__ = ("_fail",)

    def __init__(self, fail: Callable[[str], None]) -> None:
        self._fail = fail

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> None:
        if exc is None or isinstance(exc, FsError) or not isinstance(exc, OSError):
            return
        if is_full(exc):
            raise FsError(errno.ENOSPC) from None
        self._fail(os.strerror(exc.errno or errno.EIO))
        raise FsError(errno.EIO) from None


@final
class Reserve:
    """The file that holds the room."""

    def __init__(self, directory: Dir) -> None:
        self._directory = directory
        self._file: File | None = None
        self.size = 0
        self._spent = 0
        self._spending = False
        self._kept = LAST_ROOM

    @contextlib.contextmanager
    def spending(self, kept: int) -> Iterator[None]:
        """Within this, writes may use the reserve but for ``kept`` bytes: what they store was
        admitted before."""
        before = self._spending, self._kept
        self._spending, self._kept = True, kept
        try:
            yield
        finally:
            self._spending, self._kept = before

    def ensure(self, size: int, *, no_more: bool = False) -> None:
        """Hold at least ``size`` bytes; ``no_more``: not what would come next either.

        Raises:
            OSError: ENOSPC or EDQUOT; what was held is still held.
        """
        if size <= self.size:
            return
        wanted = -(-size // LAST_ROOM) * LAST_ROOM
        if not no_more:
            wanted = _LEAST
            while wanted < min(size, _STEP):
                wanted *= 2
            wanted = max(wanted, -(-size // _STEP) * _STEP if size > _STEP else 0)
        if self._file is None:
            self._file = self._open()
        try:
            self._file.allocate(wanted)
        except OSError as exc:
            if not is_full(exc) or wanted == size:
                raise
            wanted = size
            self._file.allocate(wanted)
        self.size = wanted

    def clear(self) -> None:
        """Give back what a killed session had set aside: on a full host it is all there is."""
        try:
            self._directory.unlink(RESERVE_NAME)
        except FileNotFoundError:
            pass
        except OSError as exc:
            log.warning("%s/%s: not removed: %s", self._directory.label, RESERVE_NAME, exc)

    def _open(self) -> File:
        self.clear()
        return self._directory.open(RESERVE_NAME, create=True)

    def release(self) -> bool:
        """Give the room back to the host; return whether there was any to be spent."""
        if self._file is None or self.size <= self._kept or not self._spending:
            return False
        self._file.truncate(self._kept)
        self._spent = max(self._spent, self.size)
        self.size = self._kept
        return True

    def restore(self) -> None:
        """Take back what was spent, as far as the host has it; without it nothing is admitted."""
        size, self._spent = self._spent, 0
        if not size or self._file is None:
            return
        while size > self.size:
            try:
                self._file.allocate(size)
            except OSError as exc:
                if not is_full(exc):
                    raise
                self._file.truncate(self.size)  # of what does not fit a host may keep a part
                size -= max(size // 8, LAST_ROOM)
            else:
                self.size = size
                return

    def close(self) -> None:
        """Give the room back and remove the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self.size = 0
            try:
                self._directory.unlink(RESERVE_NAME)
            except OSError as exc:
                # The next session removes it.
                log.warning("%s/%s: not removed: %s", self._directory.label, RESERVE_NAME, exc)


@final
class RoomyFile:
    """A file whose writes fall back on the reserve, and whose failed flushes are told apart."""

    __slots__ = ("_file", "_label", "_reserve")

    def __init__(self, file: File, reserve: Reserve, label: str) -> None:
        self._file = file
        self._reserve = reserve
        self._label = label

    def pread_into(self, buf: memoryview, offset: int) -> int:
        try:
            return self._file.pread_into(buf, offset)
        except OSError as exc:
            log.error("%s, offset %d: the host cannot read: %s", self._label, offset, exc)  # noqa: TRY400 - one line
            raise FsError(errno.EIO) from None

    def pwrite(self, raw: bytes | bytearray | memoryview, offset: int) -> None:
        try:
            self._file.pwrite(raw, offset)
        except OSError as exc:
            if not is_full(exc) or not self._reserve.release():
                raise
            self._file.pwrite(raw, offset)

    def sync(self) -> None:
        try:
            self._file.sync()
        except OSError as exc:
            raise FlushError(exc.errno, exc.strerror) from exc

    def flusher(self) -> Callable[[], None]:
        return self._file.flusher()

    def size(self) -> int:
        return self._file.size()

    def truncate(self, size: int) -> None:
        self._file.truncate(size)

    def allocate(self, size: int) -> None:
        self._file.allocate(size)

    def close(self) -> None:
        self._file.close()


@final
class RoomyDir:
    """A directory whose files are :class:`RoomyFile`."""

    def __init__(self, directory: Dir, reserve: Reserve) -> None:
        self._directory = directory
        self._reserve = reserve
        self.label = directory.label

    def open(self, name: str, *, write: bool = False, create: bool = False) -> RoomyFile:
        try:
            file = self._directory.open(name, write=write, create=create)
        except OSError as exc:
            if not is_full(exc) or not self._reserve.release():
                raise
            file = self._directory.open(name, write=write, create=create)
        return RoomyFile(file, self._reserve, f"{self.label}/{name}")

    def subdir(self, name: str, *, create: bool = False) -> RoomyDir:
        return RoomyDir(self._directory.subdir(name, create=create), self._reserve)

    def names(self) -> list[str]:
        return self._directory.names()

    def unlink(self, name: str) -> None:
        self._directory.unlink(name)

    def rename(self, old: str, new: str) -> None:
        self._directory.rename(old, new)

    def sync(self) -> None:
        try:
            self._directory.sync()
        except OSError as exc:
            raise FlushError(exc.errno, exc.strerror) from exc

    def lock(self, *, exclusive: bool) -> None:
        self._directory.lock(exclusive=exclusive)

    def free_bytes(self) -> tuple[int, int]:
        return self._directory.free_bytes()

    def close(self) -> None:
        self._directory.close()
