# SPDX-License-Identifier: Apache-2.0
"""A writable sealed volume: commits, checkpoints, recovery.

Above: ``vfs.union`` (as the upper layer, or alone), ``fsck``. Below: ``items``, ``content``,
``segment``, ``intentlog``, ``anchor``, ``hostdir``.

State = tree of the newest checkpoint + the commits of its log, in order. A **commit** makes the
whole prefix of history durable: data records first, then one log record that names them. A
**checkpoint** writes the changed part of the tree and an anchor that names it. Uncommitted
records are referred to by nothing. The first commit of a session is a checkpoint, since the anchor
must name the new log before anything in it counts.

On-disk format of the directory::

    anchor        two slots (see ``anchor``); appears by rename, whole, before anything else
    log/<n>       the log that the newest anchor names, and the one before
    seg/<n>       segments (see ``segment``)

Threads: one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, final

from serdab.errors import AuthenticationError, Error, FormatError, FsError, MeasurementMismatch
from serdab.keys import Key
from serdab.sefs import keyspace as ks
from serdab.sefs.anchor import (
    ANCHOR_NAME,
    SLOT_BYTES,
    Anchor,
    AnchorState,
    dump_slot,
    load_anchor,
    volume_keys,
)
from serdab.sefs.content import Content
from serdab.sefs.hostdir import Dir, HostDir
from serdab.sefs.intentlog import Commit, LogWriter, log_cipher, read_log
from serdab.sefs.items import Items
from serdab.sefs.limits import DEFAULT_LIMITS, VolumeLimits
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.page import Item
from serdab.sefs.pagestore import VolumePages, dump_table, parse_table
from serdab.sefs.position import History, Position, logged_mac
from serdab.sefs.reclaim import choose_victims, forget_owners, move_data, move_pages
from serdab.sefs.reserve import FlushError, Reserve, RoomyDir, is_full
from serdab.sefs.segment import TABLE_AAD, SegmentStore, file_name, file_number, plain_length
from serdab.sefs.tree import Root, Tree, apply_changes
from serdab.vfs.api import ROOT_INO, Inode, StatFs
from serdab.vfs.layer import Dirent, Layer

CHUNK_SIZE: Final = 32 << 10
PAGE_SIZE: Final = 8 << 10
_NEW: Final = "anchor.new"
_BASE_ROOM: Final = 256 << 10
"""New segments, their table, a log: what a checkpoint takes however little changed."""
_MAC_LABEL: Final = b"serdab sefs volume v1\0"

log = logging.getLogger("serdab.sefs")


@final
class Volume:
    """Implements :class:`serdab.vfs.layer.WritableLayer`."""

    def __init__(
        self,
        directory: Dir,
        key: Key,
        anchor: Anchor | None,
        *,
        source: bytes,
        lower: Layer | None,
        read_only: bool,
        chunk_size: int = CHUNK_SIZE,
        page_size: int = PAGE_SIZE,
        limits: VolumeLimits = DEFAULT_LIMITS,
    ) -> None:
        self._reserve = Reserve(directory)
        # Reads need no room; everything that is written goes through the reserve.
        self._dir = directory = RoomyDir(directory, self._reserve)
        self._limits = limits
        self.lower = lower
        self.read_only = read_only
        self._exists = anchor is not None
        if anchor is None:
            self.uuid = os.urandom(16)
            self._source = source
            first = lower.max_ino + 1 if lower is not None else ROOT_INO
            state = AnchorState(
                epoch=0, sequence=0, chain=bytes(16), root=b"", root_level=0, table=b"",
                next_ino=first, next_segment=1, next_log=1, log=0, log_salt=b"",
                lower=(lower.root_mac,) if lower is not None else (),
                chunk_size=chunk_size, page_size=page_size, live_bytes=0,
                previous=bytes(16),
            )  # fmt: skip
            self._tag = bytes(16)
        else:
            self.uuid = anchor.uuid
            self._source = anchor.source
            state = anchor.state
            self._tag = anchor.tag
        self.state = state
        self._keys = volume_keys(key, self.uuid)
        self._segments = SegmentStore(
            lambda: self._subdir("seg"), self._keys, state.next_segment, limits
        )
        self._subdirs: dict[str, Dir] = {}
        self._pages = VolumePages(self._segments)
        self._load_table()
        self._items = Items(Tree(self._pages, Root(state.root, state.root_level)))
        self._content = Content(
            self._items, self._segments, state.chunk_size, lower, self.put_inode
        )
        self._inodes: dict[int, Inode] = {}
        self._next_ino = state.next_ino
        self._log: LogWriter | None = None
        self._log_bytes = 0
        self._sequence = state.sequence
        self._chain = state.chain
        self._changed = False
        self._uncommitted = False
        self._dead: dict[int, int] = {}
        self._old_logs: list[int] = []
        self._oldest_change = 0.0
        self._last_checkpoint = 0.0
        self._appended_before = 0
        self._failed: str = ""
        self._closed = False
        self._first_checkpoint = True
        self.history = History()
        self._unmovable: set[int] = set()

    # Opening ------------------------------------------------------------------------------

    def _load_table(self) -> None:
        if not self.state.table:
            return
        try:
            raw = self._segments.read(self.state.table, TABLE_AAD, plain_length(self.state.table))
            self._segments.usage = parse_table(raw)
        except (AuthenticationError, FormatError) as exc:
            raise self._refusal(exc, "segment table") from None

    def _refusal(self, exc: AuthenticationError | FormatError, what: str) -> Error:
        return type(exc)(
            exc.message,
            stage="mount",
            subject=f"{self._dir.label}, {what}",
            expected=exc.expected,
            found=exc.found,
            hint=exc.hint or "the storage changed it; restore the volume from a backup",
        )

    def recover(self, *, tolerant: bool = False) -> None:
        """Check the root and replay the log. ``tolerant``: leave damage for fsck to report."""
        state = self.state
        if tolerant:
            with contextlib.suppress(AuthenticationError, FormatError):
                self._replay()
            return
        try:
            if state.root:
                self._pages.load_page(state.root, level=state.root_level)
            self._replay()
        except (AuthenticationError, FormatError) as exc:
            raise self._refusal(exc, "tree root" if not state.log else "intent log") from None
        self._free_orphans()

    def _replay(self) -> None:
        if not self.state.log:
            return
        try:
            file = self._subdir("log").open(file_name(self.state.log))
        except FileNotFoundError:
            raise AuthenticationError(
                "the intent log is missing", expected=file_name(self.state.log), found="no file"
            ) from None
        cipher = log_cipher(self._keys, self.state.log, self.state.log_salt)
        count = 0
        try:
            for sequence, chain, commit in read_log(file, cipher, self._sequence, self._chain):
                self._apply(commit)
                self._sequence, self._chain = sequence, chain
                self.history.replayed(sequence, chain)
                count += 1
        finally:
            file.close()
        if count:
            self._changed = True
            log.info("%s: replayed %d commits", self._dir.label, count)

    def _apply(self, commit: Commit) -> None:
        for ino, first, end in commit.discards:
            self._content.replay_discard(ino, first, end)
        for key, value in commit.items:
            if len(key) < 9:
                raise FormatError("log item with an impossible key")
            if key[8] == ks.T_EXTENTS:
                ino, group = int.from_bytes(key[:8], "big"), int.from_bytes(key[9:], "big")
                self._content.replay_extents(ino, group, value or b"")
            else:
                self._items.put(key, value)
                if key[8] == ks.T_INODE and value is not None:
                    # An inode with dirty content is one object: it takes the newer record.
                    live = self._content.live_inode(int.from_bytes(key[:8], "big"))
                    if live is not None:
                        ks.copy_inode(ks.parse_inode(live.ino, value), live)
        for ino, offset, raw in commit.writes:
            inode = self._content.live_inode(ino) or self.inode(ino)
            if inode is None:
                raise FormatError("log write to no inode", subject=f"inode {ino}")
            self._content.replay_write(inode, offset, raw)
        self._next_ino = max(self._next_ino, commit.next_ino)
        self._content.save_extents()
        self._items.pending.clear()

    def _free_orphans(self) -> None:
        """Free inodes that were in use without a name when the last session ended."""
        prefix = ks.key(0, ks.T_ORPHAN)
        orphans = [int.from_bytes(key[9:17], "big") for key, _ in self._items.scan(prefix)]
        for ino in orphans:
            inode = self.inode(ino)
            if self.read_only:
                continue
            if inode is not None:
                self.drop_inode(inode)
            else:
                self._items.put(self._orphan_key(ino), None)

    # Layer: reading -----------------------------------------------------------------------

    @property
    def max_ino(self) -> int:
        return self._next_ino - 1

    @property
    def root_mac(self) -> bytes:
        """The MAC of the last checkpoint."""
        state = self.state
        return hashlib.sha256(
            _MAC_LABEL + self.uuid + bytes((state.root_level,)) + state.root + b"".join(state.lower)
        ).digest()

    @property
    def position(self) -> Position | None:
        """Where the durable state stands; None while nothing of the volume is on the host."""
        if not self._exists:
            return None
        state = self.state
        chain = self._tag if self._sequence == state.sequence else self._chain
        return Position(self.uuid, state.epoch, self._sequence, chain)

    @property
    def durable_mac(self) -> bytes:
        """The MAC of the last durable state: that of its checkpoint, unless commits followed."""
        position = self.position
        if position is None or position.sequence == self.state.sequence:
            return self.root_mac
        return logged_mac(self.root_mac, position)

    def contradicts(self, earlier: Position) -> bool:
        """Return whether the history of this volume shows another state at an earlier position."""
        return self.history.contradicts(earlier, self.uuid, self.state, self._tag)

    def inode(self, ino: int) -> Inode | None:
        raw = self._items.get(ks.key(ino, ks.T_INODE))
        return None if raw is None else ks.parse_inode(ino, raw)

    def dirent(self, parent: int, name: bytes) -> Dirent | None:
        raw = self._items.get(ks.dirent_key(parent, name))
        return None if raw is None else ks.parse_dirent(raw)

    def dirents(self, parent: int, position: int) -> Iterator[tuple[int, bytes, Dirent]]:
        start = ks.dirent_start(parent, position)
        for key, value in self._items.scan(ks.key(parent, ks.T_DIRENT), start):
            yield *ks.parse_dirent_key(key), ks.parse_dirent(value)

    def target(self, ino: int) -> bytes:
        return self._items.get(ks.key(ino, ks.T_INLINE)) or b""

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        return self._items.get(ks.xattr_key(ino, name))

    def xattrs(self, ino: int) -> Iterator[tuple[bytes, bytes]]:
        for key, value in self._items.scan(ks.key(ino, ks.T_XATTR)):
            yield key[9:], value

    def read_into(self, ino: int, offset: int, buf: memoryview) -> int:
        inode = self.live_inode(ino) or self.inode(ino)
        return 0 if inode is None else self._content.read(inode, offset, buf)

    def data_ranges(self, ino: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        inode = self.live_inode(ino) or self.inode(ino)
        return iter(()) if inode is None else self._content.ranges(inode, start, end)

    def read(self, inode: Inode, offset: int, buf: memoryview) -> int:
        return self._content.read(inode, offset, buf)

    def ranges(self, inode: Inode, start: int, end: int) -> Iterator[tuple[int, int]]:
        return self._content.ranges(inode, start, end)

    def stored_bytes(self) -> int:
        return self._segments.used_bytes

    def statfs(self) -> StatFs:
        total, free = self._dir.free_bytes()
        unit = self.state.chunk_size // 16
        return StatFs(unit, total // unit, free // unit, 1 << 32, (1 << 32) - self._next_ino)

    # WritableLayer: changing --------------------------------------------------------------

    def admit(self, growth: int = 0) -> None:
        if self.read_only or self._failed:
            raise FsError(errno.EROFS)
        limits = self._limits
        if growth and self._content.dirty_bytes > limits.dirty_bytes:
            with self._host_errors():
                self._content.flush()
        items = len(self._items.mem) + len(self._inodes)
        wasteful = self._is_wasteful()
        if wasteful or items > limits.items or self._log_bytes > limits.log_bytes:
            try:
                self._guarded(self._checkpoint)
                if wasteful and self._dead:
                    # What one checkpoint empties the next one deletes: both anchors left it then.
                    self._guarded(self._checkpoint)
                items = 0
            except FsError as exc:
                # Removing must work on a full host; adding is refused below.
                if exc.errno != errno.ENOSPC or growth:
                    raise
        if growth:
            self._make_room(growth, items)

    def _make_room(self, growth: int, items: int) -> None:
        """Have room set aside for a change, or refuse it.

        Raises:
            FsError: ENOSPC.
        """
        limits = self._limits
        growth += self._content.dirty_bytes + self._content.writer.waiting_bytes
        if limits.max_bytes and self._segments.live_bytes + growth > limits.max_bytes:
            raise FsError(errno.ENOSPC)
        scattered = items * self.state.page_size
        if scattered > limits.scattered_bytes:
            if self._dir.free_bytes()[1] < limits.tight_bytes:
                self._guarded(self._checkpoint)
            scattered = limits.scattered_bytes
        needed = growth + 2 * scattered + limits.log_growth_bytes + _BASE_ROOM
        if needed <= self._reserve.size:
            return
        self._guarded(self._ensure_anchor)
        for _ in range(3):
            try:
                self._reserve.ensure(needed)
            except OSError as exc:
                if not is_full(exc):
                    raise
                if not (self._dead or self._has_garbage()):
                    break
                # Two checkpoints give back what was removed before.
                self._guarded(self._checkpoint)
            else:
                return
        raise FsError(errno.ENOSPC)

    def _is_wasteful(self) -> bool:
        """Return whether dead bytes alone are reason for a checkpoint now."""
        segments, unit = self._segments, self._limits.segment_bytes
        if segments.appended_bytes - self._appended_before < unit // 2:
            return False  # the last checkpoint gave back what it could
        live = segments.live_bytes
        return segments.used_bytes - live > live // 4 + unit // 2

    def live_inode(self, ino: int) -> Inode | None:
        return self._inodes.get(ino) or self._content.live_inode(ino)

    def new_ino(self) -> int:
        ino = self._next_ino
        self._next_ino += 1
        self._items.young.add(ino.to_bytes(8, "big"))
        return ino

    def _touch(self) -> None:
        if not self._uncommitted:
            self._uncommitted = True
            if not self._changed:
                self._changed = True
                self._oldest_change = time.monotonic()

    def put_inode(self, inode: Inode) -> None:
        self._inodes[inode.ino] = inode
        self._touch()

    def drop_inode(self, inode: Inode) -> None:
        ino = inode.ino
        self._content.drop(inode)
        for name, _ in list(self.xattrs(ino)):
            self._items.put(ks.xattr_key(ino, name), None)
        self._inodes.pop(ino, None)
        self._items.put(ks.key(ino, ks.T_INODE), None)
        orphan = self._orphan_key(ino)
        if self._items.get(orphan) is not None:
            self._items.put(orphan, None)
        self._touch()

    @staticmethod
    def _orphan_key(ino: int) -> bytes:
        return ks.key(0, ks.T_ORPHAN) + ino.to_bytes(8, "big")

    def put_orphan(self, ino: int) -> None:
        self._items.put(self._orphan_key(ino), b"")
        self._touch()

    def clear_orphan(self, ino: int) -> None:
        self._items.put(self._orphan_key(ino), None)
        self._touch()

    def put_dirent(self, parent: int, name: bytes, entry: Dirent) -> None:
        self._items.put(ks.dirent_key(parent, name), ks.dump_dirent(entry))
        self._touch()

    def remove_dirent(self, parent: int, name: bytes) -> None:
        self._items.put(ks.dirent_key(parent, name), None)
        self._touch()

    def clear_dirents(self, parent: int) -> None:
        prefix = ks.key(parent, ks.T_DIRENT)
        for key, _ in list(self._items.scan(prefix)):
            self._items.put(key, None)
        self._touch()

    def put_target(self, ino: int, target: bytes) -> None:
        self._items.put(ks.key(ino, ks.T_INLINE), target)
        self._touch()

    def put_xattr(self, ino: int, name: bytes, marked: bytes) -> None:
        self._items.put(ks.xattr_key(ino, name), marked)
        self._touch()

    def remove_xattr(self, ino: int, name: bytes) -> None:
        self._items.put(ks.xattr_key(ino, name), None)
        self._touch()

    def write(self, inode: Inode, offset: int, data: memoryview) -> None:
        with self._host_errors():
            self._content.write(inode, offset, data)
        self._touch()

    def truncate(self, inode: Inode, size: int) -> None:
        with self._host_errors():
            self._content.truncate(inode, size)
        self._touch()

    def punch(self, inode: Inode, offset: int, length: int) -> None:
        with self._host_errors():
            self._content.punch(inode, offset, length)
        self._touch()

    @contextlib.contextmanager
    def _host_errors(self) -> Iterator[None]:
        """Records go to the host while a program writes: a full host is the program's ENOSPC."""
        try:
            yield
        except FsError:
            raise
        except OSError as exc:
            if not is_full(exc):
                self._fail(os.strerror(exc.errno or errno.EIO))
                raise FsError(errno.EIO) from None
            raise FsError(errno.ENOSPC) from None

    # Durability ---------------------------------------------------------------------------

    def commit(self) -> None:
        if self._failed:
            raise FsError(errno.EROFS)
        # What this session found may be in the host's memory only (the last one was killed before
        # its flush): nothing is acknowledged before an anchor of this session is durable.
        unannounced = self._first_checkpoint and self._exists
        if not self._uncommitted and not unannounced:
            return
        if self._log is None:
            self._guarded(self._checkpoint)
        else:
            self._guarded(self._append_commit)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a step that writes to the host; a host that fails turns the volume read-only."""
        try:
            with self._reserve.spending():
                step()
            self._reserve.restore()
        except FsError:
            raise
        except OSError as exc:
            if is_full(exc) and not isinstance(exc, FlushError):
                # Nothing is lost: it stays in memory, and the next commit tries anew.
                self._end_log()
                raise FsError(errno.ENOSPC) from None
            self._fail(os.strerror(exc.errno or errno.EIO))
            raise FsError(errno.ENOSPC if is_full(exc) else errno.EIO) from None
        except (AuthenticationError, FormatError) as exc:
            self._fail(str(exc))
            raise FsError(errno.EIO) from None
        self._announce()

    def _fail(self, reason: str) -> None:
        self._failed = reason
        log.error(
            "%s: read-only from here on, what was synced is safe: %s", self._dir.label, reason
        )

    def _announce(self) -> None:
        try:
            self.history.announce(self.position)
        except (OSError, Error) as exc:
            self._fail(f"a durable state was not pinned and is not acknowledged: {exc}")
            raise FsError(errno.EIO) from None

    def _save_items(self) -> None:
        for ino, inode in self._inodes.items():
            self._items.put(ks.key(ino, ks.T_INODE), ks.dump_inode(inode))
        self._inodes.clear()
        self._content.save_extents()
        self._content.save_owners()

    def _append_commit(self) -> None:
        content, items = self._content, self._items
        if content.uncommitted_bytes() > self._limits.inline_commit_bytes:
            content.flush()
        writes = content.uncommitted()
        self._save_items()
        content.writer.sync()
        self._segments.sync_dir()
        commit = Commit(
            [(key, items.mem[key]) for key in sorted(items.pending)],
            list(content.discards),
            writes,
            self._next_ino,
        )
        assert self._log is not None  # noqa: S101 - the caller looked
        try:
            self._log_bytes += self._log.append(commit)
        except OSError:
            # What reached the host is unknown: this log is never written again.
            self._end_log()
            raise
        self._sequence, self._chain = self._log.sequence, self._log.chain
        items.pending.clear()
        content.committed()
        self._uncommitted = False

    def _end_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
            self._uncommitted = True

    def _checkpoint(self, *, final_one: bool = False) -> None:
        """Write the tree and an anchor. Afterwards nothing older is needed."""
        content, items, state = self._content, self._items, self.state
        self._ensure_anchor()
        content.flush()
        content.save_owners()
        try:
            root = self._write_tree(self._choose_victims())
            content.writer.sync()
            content.writer.retire()
            self._pages.writer.retire()
            table = self._pages.writer.append(dump_table(self._segments.usage), TABLE_AAD)
            self._segments.free(table)  # the table does not count itself
            self._pages.writer.sync()
            self._segments.sync_dir()
            number, salt, writer = (0, b"", None) if final_one else self._begin_log()
            self._write_anchor(
                AnchorState(
                    epoch=self.history.next_epoch(state.epoch),
                    sequence=self._sequence,
                    chain=self._chain,
                    root=root.pointer,
                    root_level=root.level,
                    table=table,
                    next_ino=self._next_ino,
                    next_segment=self._segments.next_number,
                    next_log=max(state.next_log, number + 1),
                    log=number,
                    log_salt=salt,
                    lower=state.lower,
                    chunk_size=state.chunk_size,
                    page_size=state.page_size,
                    live_bytes=self._segments.live_bytes,
                    previous=self._tag,
                )
            )
        except BaseException:
            self._pages.undo()
            raise
        self._pages.keep()
        self._end_log()
        self._log, self._log_bytes = writer, 0
        items.settle(Tree(self._pages, root))
        content.settle()
        content.committed()
        self._changed = self._uncommitted = False
        self._last_checkpoint = time.monotonic()
        self._appended_before = self._segments.appended_bytes
        self._bury()
        self._sweep()

    def _choose_victims(self) -> set[int]:
        """Return the segments to be emptied; their live data is moved already."""
        spare = self._unmovable | self._dead.keys()
        victims = choose_victims(self._segments, self._limits.reclaim_bytes, spare)
        try:
            move_data(self._items, self._content, victims)
        except (AuthenticationError, FormatError) as exc:
            self._leave(victims, exc)
            return set()
        return victims

    def _leave(self, victims: set[int], exc: Error) -> None:
        """Something in these segments does not verify: they stay, for fsck to look at."""
        log.error("%s: space is not reclaimed: %s", self._dir.label, exc)
        self._unmovable |= victims

    def _write_tree(self, victims: set[int]) -> Root:
        self._save_items()
        forget_owners(self._items, self._segments)
        root = apply_changes(
            self._pages,
            self._items.tree.root,
            self._items.changes(),
            page_size=self.state.page_size,
        )
        try:
            return move_pages(self._pages, root, victims)
        except (AuthenticationError, FormatError) as exc:
            self._leave(victims, exc)
            self._pages.undo()
            return self._write_tree(set())

    def _begin_log(self) -> tuple[int, bytes, LogWriter]:
        directory = self._subdir("log")
        number = self.state.next_log
        while True:
            try:
                file = directory.open(file_name(number), create=True)
                break
            except FileExistsError:
                number += 1
        directory.sync()
        salt = os.urandom(32)
        cipher = log_cipher(self._keys, number, salt)
        growth = self._limits.log_growth_bytes
        return number, salt, LogWriter(file, cipher, self._sequence, self._chain, growth)

    def _ensure_anchor(self) -> None:
        """Make the anchor file before anything else exists: it appears whole, by rename."""
        if self._exists:
            return
        if _NEW in self._dir.names():
            self._dir.unlink(_NEW)
        raw, tag = dump_slot(self._keys, self.uuid, self._source, self.state)
        file = self._dir.open(_NEW, create=True)
        try:
            file.pwrite(raw + bytes(SLOT_BYTES), 0)
            file.sync()
        finally:
            file.close()
        self._dir.rename(_NEW, ANCHOR_NAME)
        self._dir.sync()
        self._tag = tag
        self._exists = True

    def _write_anchor(self, state: AnchorState) -> None:
        raw, tag = dump_slot(self._keys, self.uuid, self._source, state)
        file = self._dir.open(ANCHOR_NAME, write=True)
        try:
            file.pwrite(raw, state.epoch % 2 * SLOT_BYTES)
            file.sync()
        finally:
            file.close()
        if self.state.log:
            self._old_logs.append(self.state.log)
        self.state, self._tag = state, tag

    def _subdir(self, name: str) -> Dir:
        directory = self._subdirs.get(name)
        if directory is None:
            if not self.read_only:
                self._ensure_anchor()
            directory = self._dir.subdir(name, create=not self.read_only)
            self._subdirs[name] = directory
        return directory

    # Salvage ------------------------------------------------------------------------------

    @property
    def source(self) -> bytes:
        """Where the key comes from, as the volume remembers it."""
        return self._source

    @property
    def tree(self) -> Tree:
        """The tree of the newest checkpoint."""
        return self._items.tree

    def items_now(self, stored: Callable[[Tree], Iterator[Item]]) -> Iterator[Item]:
        """Yield all items as they are now; ``stored`` reads those of the tree."""
        changed = self._items.mem
        for key, value in stored(self._items.tree):
            if key not in changed:
                yield key, value
        for key, newer in self._items.changes():
            if newer is not None:
                yield key, newer

    def restore_item(self, key: bytes, value: bytes) -> None:
        """Put an item of another volume as it is."""
        self._items.put(key, value)
        self._touch()

    def restore_counter(self, next_ino: int) -> None:
        """Number new inodes from here on."""
        self._next_ino = max(self._next_ino, next_ino)

    def copy_group(self, into: Volume, ino: int, group: int) -> Iterator[tuple[int, str]]:
        """Copy the chunks of an extent item; yield (chunk, problem) of those that do not verify."""
        yield from self._content.copy_group(into._content, ino, group)
        into._touch()

    # Space --------------------------------------------------------------------------------

    def _bury(self) -> None:
        """Note the segments that the new state does not refer to, and forget their records."""
        for number, usage in self._segments.usage.items():
            if usage.live <= 0 and not self._segments.is_open(number) and number not in self._dead:
                self._dead[number] = self.state.epoch

    def _sweep(self) -> None:
        """Delete what neither durable anchor refers to."""
        epoch = self.state.epoch
        for number, buried in list(self._dead.items()):
            if buried < epoch:
                self._segments.remove(number)
                del self._dead[number]
        keep = {self.state.log, *self._old_logs[-1:]}
        for number in self._old_logs[:-1]:
            if number not in keep:
                self._unlink_log(number)
        self._old_logs = self._old_logs[-1:]
        if self._first_checkpoint:
            self._first_checkpoint = False
            self._sweep_strays(keep)

    def _unlink_log(self, number: int) -> None:
        try:
            self._subdir("log").unlink(file_name(number))
        except FileNotFoundError:
            return

    def _sweep_strays(self, logs: set[int]) -> None:
        """Delete what a killed session left: files that no state refers to."""
        segments = self._subdir("seg")
        for name in segments.names():
            number = file_number(name)
            if number is not None and number not in self._segments.usage:
                segments.unlink(name)
        if "log" not in self._dir.names():
            return
        directory = self._subdir("log")
        for name in directory.names():
            number = file_number(name)
            if number is not None and number not in logs:
                directory.unlink(name)

    def tick(self) -> float | None:
        if self._failed or self.read_only or not (self._changed or self._dead):
            return None
        wait = self._limits.reclaim_s if self._has_garbage() else self._limits.checkpoint_s
        left = max(self._oldest_change, self._last_checkpoint) + wait - time.monotonic()
        if left > 0:
            return left
        try:
            self._guarded(self._checkpoint)
        except FsError as exc:
            if exc.errno != errno.ENOSPC:
                return None  # read-only now, and said so
            return self._limits.checkpoint_s
        return self._limits.reclaim_s if self._has_garbage() else None

    def _has_garbage(self) -> bool:
        """Return whether a checkpoint would give space back to the host."""
        return bool(self._dead) or any(
            usage.live < usage.used // 2 and not self._segments.is_open(number)
            for number, usage in self._segments.usage.items()
        )

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if not self.read_only and not self._failed and (self._changed or self.state.log):
                self._guarded(lambda: self._checkpoint(final_one=True))
        finally:
            self._end_log()
            self._content.writer.close()
            self._pages.writer.close()
            self._segments.close()
            for directory in self._subdirs.values():
                directory.close()
            self._reserve.close()
            self._dir.close()

    def abandon(self) -> None:
        """Close without writing: the host keeps what was found, as after a refusal."""
        self.read_only = True
        self.close()


def open_volume(
    path: Path,
    *,
    key: Key,
    lower: Layer | None = None,
    create: bool = False,
    read_only: bool = False,
    source: bytes = b"{}",
    chunk_size: int = CHUNK_SIZE,
    page_size: int = PAGE_SIZE,
    limits: VolumeLimits = DEFAULT_LIMITS,
    tolerant: bool = False,
) -> Volume:
    """Open the volume in a host directory, under a lock (shared if read-only).

    ``create`` makes a new one of an empty directory; nothing else is ever formatted over.
    ``source`` is stored, authenticated but in clear: where the key comes from. ``tolerant`` opens
    a volume whose tree or log is damaged, for fsck.

    Raises:
        UsageError: no such directory.
        FormatError: not a volume, and not empty.
        WrongKeyError, AuthenticationError, BusyError.
        MeasurementMismatch: the volume belongs to another lower layer.
    """
    return open_volume_in(
        HostDir.at(path), key=key, lower=lower, create=create, read_only=read_only,
        source=source, chunk_size=chunk_size, page_size=page_size, limits=limits,
        tolerant=tolerant,
    )  # fmt: skip


def open_volume_in(
    directory: Dir,
    *,
    key: Key,
    lower: Layer | None = None,
    create: bool = False,
    read_only: bool = False,
    source: bytes = b"{}",
    chunk_size: int = CHUNK_SIZE,
    page_size: int = PAGE_SIZE,
    limits: VolumeLimits = DEFAULT_LIMITS,
    tolerant: bool = False,
) -> Volume:
    """Open the volume in an open directory; see :func:`open_volume`."""
    try:
        directory.lock(exclusive=not read_only)
        names = set(directory.names())
        anchor = None
        if ANCHOR_NAME in names:
            file = directory.open(ANCHOR_NAME)
            try:
                anchor, _, problems = load_anchor(file, key, directory.label)
            finally:
                file.close()
            for problem in problems:
                log.warning("%s/anchor: %s; the other slot is used", directory.label, problem)
            _check_lower(anchor, lower, directory.label)
        elif not create or names - {_NEW}:
            raise FormatError(
                "not a sealed volume",
                subject=directory.label,
                expected="an anchor, or an empty directory",
                found="neither",
                hint="a directory that holds anything is never formatted over",
            )
        volume = Volume(
            directory, key, anchor, source=source, lower=lower, read_only=read_only,
            chunk_size=chunk_size, page_size=page_size, limits=limits,
        )  # fmt: skip
        volume.recover(tolerant=tolerant)
    except BaseException:
        directory.close()
        raise
    return volume


def _check_lower(anchor: Anchor, lower: Layer | None, label: str) -> None:
    expected = anchor.state.lower
    found = (lower.root_mac,) if lower is not None else ()
    if expected != found:
        raise MeasurementMismatch(
            "the writable layer belongs to another image",
            stage="rootfs",
            subject=label,
            expected=", ".join(mac.hex() for mac in expected) or "no lower layer",
            found=", ".join(mac.hex() for mac in found) or "no lower layer",
            hint="`run --previous` opens it over its own image; `serdab reset` throws it away",
        )


def memory_volume(lower: Layer | None) -> Volume:
    """Return a volume that ends with the process, under a random key."""
    return open_volume_in(MemoryDir(), key=Key.generate(), lower=lower, create=True)
