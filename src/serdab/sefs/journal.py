# SPDX-License-Identifier: Apache-2.0
"""How the state of a volume becomes durable: commits, checkpoints, recovery, room, space.

Above: ``volume``. Below: ``items``, ``content``, ``pagestore``, ``reclaim``, ``replay``,
``intentlog``, ``anchor``, ``reserve``, ``hostdir``.

State = tree of the newest checkpoint + the commits of its log, in order. A **commit** makes the
whole prefix of history durable: data records first, then one log record that names them. A
**checkpoint** writes the changed part of the tree and an anchor that names it. Uncommitted
records are referred to by nothing. The first commit of a session is a checkpoint, since the anchor
must name the new log before anything in it counts.

On-disk format of the directory::

    anchor        two slots (see ``anchor``); appears by rename, whole, before anything else
    log/<n>       the log that the newest anchor names, and the one before
    seg/<n>       segments (see ``segment``)
    reserve       room for what is admitted (see ``reserve``); never read

Threads: one, and one that waits for flushes in advance (``beside``).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import time
from collections.abc import Callable
from typing import final

from msgspec import structs

from serdab.crypto.kdf import KeySchedule
from serdab.errors import AuthenticationError, Error, FormatError, FsError
from serdab.sefs import keyspace as ks
from serdab.sefs.admission import Admission
from serdab.sefs.ahead import AHEAD_S, Ahead
from serdab.sefs.anchor import AnchorState
from serdab.sefs.anchorfile import AnchorFile
from serdab.sefs.beside import SlowCommits
from serdab.sefs.content import Content
from serdab.sefs.damage import refusal
from serdab.sefs.hostdir import Dir
from serdab.sefs.intentlog import Commit, LogWriter, begin_log, log_cipher, read_log, size_of
from serdab.sefs.items import Items
from serdab.sefs.leftovers import LOGS, SEGMENTS, Leftovers
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.pagestore import VolumePages, dump_table, parse_table
from serdab.sefs.position import History, Position
from serdab.sefs.replay import replay
from serdab.sefs.reserve import LAST_ROOM, HostErrors, Reserve, RoomyDir, is_full, is_full_only
from serdab.sefs.room import Changes
from serdab.sefs.segment import TABLE_AAD, SegmentStore, file_name, plain_length
from serdab.sefs.tree import Root, Tree
from serdab.sefs.treewriter import TreeWriter
from serdab.vfs.api import Inode
from serdab.vfs.layer import Layer
from serdab.vfs.steps import Steps

log = logging.getLogger("serdab.sefs")


@final
class Journal:
    """The durable side of one volume; owns its host directory."""

    def __init__(
        self,
        directory: Dir,
        keys: KeySchedule,
        state: AnchorState,
        *,
        version: int,
        uuid: bytes,
        source: bytes,
        tag: bytes | None,
        lower: Layer | None,
        read_only: bool,
        limits: VolumeLimits,
    ) -> None:
        """``keys`` are those of ``version``, ``tag`` is that of the anchor on the host, if any."""
        self._reserve = Reserve(directory)
        # Reads need no room; everything that is written goes through the reserve.
        self._dir = RoomyDir(directory, self._reserve)
        self.label = directory.label
        self._limits = limits
        self._keys = keys
        self.anchor = AnchorFile(
            self._dir, keys, state, version=version, uuid=uuid, source=source, tag=tag
        )
        self.version = version
        self.read_only = read_only
        self._subdirs: dict[str, Dir] = {}
        self.segments = SegmentStore(
            lambda: self._subdir(SEGMENTS), keys, state.next_segment, version, limits
        )
        self.segments.reserved_bytes = state.reserved_bytes
        self._pages = VolumePages(self.segments)
        self._load_table()
        self.items = Items(Tree(self._pages, Root(state.root, state.root_level)))
        self.content = Content(self.items, self.segments, state.chunk_size, lower, self.put_inode)
        self.inodes: dict[int, Inode] = {}
        """Inodes whose records changed since the last commit."""
        self.orphans: set[int] = set()
        """Inodes that lost their last name since the last commit and are in use."""
        self.next_ino = state.next_ino
        self._log: LogWriter | None = None
        self.log_bytes = 0
        self.log_problem: Error | None = None
        """What a tolerant recovery found wrong with the log; the commits before it count."""
        self._sequence = state.sequence
        self._chain = state.chain
        self._changed = False
        self._uncommitted = False
        self._uncommitted_since = 0.0
        self.free_rest: Callable[[], bool] = lambda: False
        """See :class:`admission.Writing`; ``removals`` replaces it."""
        self._leftovers = Leftovers(self.segments, self._subdir)
        self._changes = Changes(self.items, self.content, self.inodes, state.page_size)
        self._admission = Admission(
            self, self._changes, self.segments, self._leftovers, self._reserve, self._dir, limits
        )
        self._tree_writer = TreeWriter(
            self.items, self.content, self.segments, self._pages, self._leftovers,
            page_size=state.page_size, label=self.label,
        )  # fmt: skip
        self._oldest_change = self._last_checkpoint = 0.0
        self._failed = ""
        self._slow = SlowCommits(
            self.commit, self.guarded, lambda: (self.has_failed, self.has_log),
            self.content, self._pages.writer, limits,
        )  # fmt: skip
        self.ahead = Ahead(
            self, self.items, self.content, self.inodes, self._changes, self._tree_writer,
            self._slow, self._admission.has_garbage, limits,
        )  # fmt: skip
        self.holds_back = self.ahead.holds_back
        self._closed, self._first_checkpoint = False, True
        self.history = History()
        self.host_errors = HostErrors(self._fail)

    @property
    def has_log(self) -> bool:
        return self._log is not None

    @property
    def has_failed(self) -> bool:
        return bool(self._failed)

    @property
    def state(self) -> AnchorState:
        """What the newest anchor says."""
        return self.anchor.state

    @property
    def tag(self) -> bytes:
        """The tag of the newest anchor; zeros while there is none."""
        return self.anchor.tag

    @property
    def position(self) -> Position | None:
        """Where the durable state stands; None while nothing of the volume is on the host."""
        anchor = self.anchor
        if not anchor.exists:
            return None
        state = anchor.state
        chain = anchor.tag if self._sequence == state.sequence else self._chain
        return Position(anchor.uuid, state.epoch, self._sequence, chain)

    def room(self) -> tuple[int, int]:
        """Return (total, available) bytes: the host's, or those of the volume's own limit."""
        total, free = self._dir.free_bytes()
        limit = self._limits.max_bytes
        if limit:
            total, free = min(total, limit), min(free, max(limit - self.segments.live_bytes, 0))
        return total, max(free - self.segments.reserved_bytes, 0)

    def put_inode(self, inode: Inode) -> None:
        """The record of an inode changed."""
        self.inodes[inode.ino] = inode
        self.touch()

    def touch(self) -> None:
        """Something changed."""
        if not self._uncommitted:
            self._uncommitted = True
            self._uncommitted_since = time.monotonic()
            if not self._changed:
                self._changed = True
                self._oldest_change = self._uncommitted_since

    # Recovery -----------------------------------------------------------------------------

    def _load_table(self) -> None:
        if not self.state.table:
            return
        try:
            raw = self.segments.read(self.state.table, TABLE_AAD, plain_length(self.state.table))
            self.segments.usage = parse_table(raw)
        except (AuthenticationError, FormatError) as exc:
            raise refusal(exc, self.label, "segment table") from None

    def recover(self, *, tolerant: bool = False) -> None:
        """Check the root and replay the log. ``tolerant``: leave damage for fsck to report."""
        state = self.state
        if tolerant:
            try:
                self._replay()
            except (AuthenticationError, FormatError) as exc:
                self.log_problem = refusal(exc, self.label, "intent log")
            return
        try:
            if state.root:
                self._pages.load_page(state.root, level=state.root_level)
            self._replay()
        except (AuthenticationError, FormatError) as exc:
            raise refusal(exc, self.label, "tree root" if not state.log else "intent log") from None
        if not self.read_only:
            self._reserve.clear()

    def _replay(self) -> None:
        if not self.state.log:
            return
        try:
            file = self._subdir(LOGS).open(file_name(self.state.log))
        except FileNotFoundError:
            raise AuthenticationError(
                "the intent log is missing", expected=file_name(self.state.log), found="no file"
            ) from None
        cipher = log_cipher(self._keys, self.state.log, self.state.log_salt)
        count = 0
        try:
            for sequence, chain, commit in read_log(file, cipher, self._sequence, self._chain):
                replay(commit, self.items, self.content, self.version)
                self.next_ino = max(self.next_ino, commit.next_ino)
                self._sequence, self._chain = sequence, chain
                self.history.replayed(sequence, chain)
                count += 1
        finally:
            file.close()
        if count:
            self._changed = True
            log.info("%s: replayed %d commits", self.label, count)

    # Room ---------------------------------------------------------------------------------

    def admit(self, growth: int = 0, rewritten: int = 0) -> None:
        if self.read_only or self._failed:
            raise FsError(errno.EROFS)
        if (growth or rewritten) and self.content.dirty_bytes > self._limits.dirty_bytes:
            with self.host_errors:
                self.content.flush()
        self.ahead.look()
        self._admission.admit(growth, self.log_bytes, rewritten)

    @property
    def has_anchor(self) -> bool:
        """Whether anything of the volume is on the host."""
        return self.anchor.exists

    def ensure_anchor(self) -> None:
        self.guarded(self.anchor.ensure)

    def sweep(self) -> bool:
        if not self._first_checkpoint or self._leftovers.is_swept:
            return False
        self.guarded(lambda: self._leftovers.sweep_unreachable(self._dir, self.state))
        return True

    def fail(self, exc: OSError) -> FsError:
        self._fail(os.strerror(exc.errno or errno.EIO))
        return FsError(errno.EIO)

    # Durability ---------------------------------------------------------------------------

    def commit(self) -> None:
        if self._failed:
            raise FsError(errno.EROFS)
        # What this session found may be in the host's memory only (the last one was killed before
        # its flush): nothing is acknowledged before an anchor of this session is durable.
        unannounced = self._first_checkpoint and self.anchor.exists
        if not self._uncommitted and not unannounced:
            return
        if self._log is None:
            self._checkpoint_now()
            return
        try:
            self.guarded(self._append_commit)
        except FsError as exc:
            if exc.errno != errno.ENOSPC or self._failed:
                raise
            self._checkpoint_now()  # which may take less: of what is gone nothing

    def commit_steps(self) -> Steps[None]:
        """Like ``commit``: much that is dirty is sealed in steps, and flushed beside the loop."""
        if self._log is None or self._is_long():
            yield from self.ahead.steps()
        yield from self._slow.steps()

    def _is_long(self) -> bool:
        """Return whether the next commit is about too long for a record of the log."""
        changes = self._changes
        uncommitted = len(self.items.pending) + len(self.inodes)
        return uncommitted * changes.stored_bytes() > changes.count() * self._limits.commit_bytes

    def write_checkpoint(self) -> None:
        """Write a checkpoint before a change, which one that finds no room does not stop."""
        self.guarded(self._checkpoint, kept=self._kept())

    def _kept(self) -> int:
        """Return what a checkpoint must leave of the reserve; one of nothing new only frees."""
        return LAST_ROOM if self._changes.count() or self.content.dirty_bytes else 0

    def _checkpoint_now(self, *, final_one: bool = False) -> None:
        """Write a checkpoint that somebody waits for: it may take the last room."""

        def step() -> None:
            self._checkpoint(final_one=final_one)

        try:
            self.guarded(step, kept=self._kept())
        except FsError as exc:
            if exc.errno != errno.ENOSPC or self._failed or not self._reserve.size:
                raise
            # Of what was removed nothing is written: it may fit here, and then it gives much back.
            self.guarded(step, kept=LAST_ROOM // 4)

    def guarded(self, step: Callable[[], None], kept: int = LAST_ROOM) -> None:
        """Run a step that writes to the host; a host that fails turns the volume read-only.

        ``kept``: so much of the reserve it must not take.
        """
        try:
            with self._reserve.spending(kept):
                step()
            self._reserve.restore()
        except FsError:
            raise
        except OSError as exc:
            if is_full_only(exc):
                # Nothing is lost: it stays in memory, and the next commit tries anew.
                self.end_log()
                self._reserve.restore()
                raise FsError(errno.ENOSPC) from None
            self._fail(os.strerror(exc.errno or errno.EIO))
            raise FsError(errno.ENOSPC if is_full(exc) else errno.EIO) from None
        except (AuthenticationError, FormatError) as exc:
            self._fail(str(exc))
            raise FsError(errno.EIO) from None
        self._announce()

    def _fail(self, reason: str) -> None:
        self._failed = reason
        log.error("%s: read-only from here on, what was synced is safe: %s", self.label, reason)

    def _announce(self) -> None:
        try:
            self.history.announce(self.position)
        except (OSError, Error) as exc:
            self._fail(f"a durable state was not pinned and is not acknowledged: {exc}")
            raise FsError(errno.EIO) from None

    def save_items(self) -> None:
        """Put what is known of inodes and extents into the items."""
        for ino, inode in self.inodes.items():
            self.items.put(ks.key(ino, ks.T_INODE), ks.dump_inode(inode, self.version))
        self.inodes.clear()
        for ino in self.orphans:
            self.items.put(ks.orphan_key(ino), b"")
        self.orphans.clear()
        self.content.save_extents()
        self.content.records.save_owners()

    def _append_commit(self) -> None:
        self._slow.settle()
        content, items = self.content, self.items
        if content.uncommitted_bytes() > self._limits.inline_commit_bytes:
            content.flush()
        writes = content.uncommitted()
        self.save_items()
        commit = Commit(
            [(key, items.mem[key]) for key in sorted(items.pending)],
            content.discards(),
            writes,
            self.next_ino,
        )
        if size_of(commit) > self._limits.commit_bytes:
            # What is that long is read slowly, and held more than once on the way.
            self._checkpoint()
            return
        content.writer.sync()
        self.segments.sync_dir()
        assert self._log is not None  # noqa: S101 - the caller looked
        try:
            self.log_bytes += self._log.append(commit)
        except OSError as exc:
            # What reached the host is unknown: this log is never written again.
            if is_full_only(exc):
                self._tree_writer.give_up(self._log.cut)
            self.end_log()
            raise
        self._sequence, self._chain = self._log.sequence, self._log.chain
        items.pending.clear()
        content.committed()
        self._uncommitted = False

    def end_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
            self._uncommitted = True

    def checkpoint(self) -> None:
        """Write a checkpoint that nothing follows, unless something else changes."""
        self._checkpoint_now(final_one=True)

    def _checkpoint(self, *, final_one: bool = False) -> None:
        """Write the tree and an anchor. Afterwards nothing older is needed."""
        self._slow.settle()
        content, items, state = self.content, self.items, self.state
        self.anchor.ensure()
        if self._first_checkpoint and not self._leftovers.is_swept:
            self._leftovers.sweep_unreachable(self._dir, state)
        content.flush()
        content.records.save_owners()
        mark = self._pages.writer.mark()
        try:
            more = self.ahead.left_to_move()
            victims = self._tree_writer.choose_victims(self.reclaim_budget(), more)
            self.save_items()
            root = self._tree_writer.write(victims)
            content.writer.sync()
            content.writer.retire()
            self._pages.writer.retire()
            table = b""
            if self.segments.usage:
                table = self._pages.writer.append(dump_table(self.segments.usage), TABLE_AAD)
                self.segments.free(table)  # the table does not count itself
            self._pages.writer.sync()
            self.segments.sync_dir()
            if self._first_checkpoint:
                # A session that was killed may have made names here without flushing them.
                self._dir.sync()
            number, salt, writer = (0, b"", None) if final_one else self._begin_log()
        except BaseException as exc:
            self._pages.undo()
            if is_full_only(exc):
                # No anchor names these pages: what they take is what the next attempt may need.
                self._tree_writer.give_up(lambda: self._pages.writer.cut(mark))
            raise
        try:
            self.anchor.replace(self._next_state(root, table, number, salt))
        except BaseException:
            # Whether the host has the anchor is unknown: all that it names stays.
            self._pages.undo()
            if writer is not None:
                writer.close()
            raise
        self._leftovers.end_log(state.log)
        self._pages.keep()
        self.end_log()
        self._log, self.log_bytes = writer, 0
        items.settle(Tree(self._pages, root))
        content.settle()
        content.committed()
        self._changed = self._uncommitted = False
        self._last_checkpoint = time.monotonic()
        self._admission.checkpoint_written()
        self.ahead.checkpoint_written()
        self._leftovers.bury(self.state.epoch)
        self._leftovers.sweep(self.state.epoch, number)
        if self._first_checkpoint:
            self._first_checkpoint = False
            self._leftovers.sweep_strays(number, has_logs=LOGS in self._dir.names())

    def _next_state(self, root: Root, table: bytes, log_number: int, salt: bytes) -> AnchorState:
        state = self.state
        return structs.replace(
            state,
            epoch=self.history.next_epoch(state.epoch),
            sequence=self._sequence,
            chain=self._chain,
            root=root.pointer,
            root_level=root.level,
            table=table,
            next_ino=self.next_ino,
            next_segment=self.segments.next_number,
            next_log=max(state.next_log, log_number + 1),
            log=log_number,
            log_salt=salt,
            live_bytes=self.segments.live_bytes,
            previous=self.tag,
            reserved_bytes=self.segments.reserved_bytes,
        )

    def reclaim_budget(self) -> int:
        """Return how much may be moved: never the room that this checkpoint and the next need.

        What is moved gives its place back two checkpoints later. On a full host it would take the
        whole reserve, and the checkpoint that frees anything could not be written.
        """
        needed = self._changes.room(self._limits.log_growth_bytes, self._limits)
        room = self._dir.free_bytes()[1] + self._reserve.size - needed
        return max(0, min(self._limits.reclaim_bytes, room))

    def _begin_log(self) -> tuple[int, bytes, LogWriter]:
        number, salt, file, cipher = begin_log(self._subdir(LOGS), self._keys, self.state.next_log)
        growth = self._limits.log_growth_bytes
        writer = LogWriter(file, cipher, self._sequence, self._chain, growth, self._is_roomy)
        return number, salt, writer

    def _is_roomy(self) -> bool:
        return self._dir.free_bytes()[1] >= self._limits.tight_bytes

    def _subdir(self, name: str) -> Dir:
        directory = self._subdirs.get(name)
        if directory is None:
            if not self.read_only:
                self.anchor.ensure()
            directory = self._dir.subdir(name, create=not self.read_only)
            self._subdirs[name] = directory
        return directory

    # Space --------------------------------------------------------------------------------

    def tick(self) -> float | None:
        if self._failed or self.read_only:
            return None
        if not (self._changed or self._leftovers.dead):
            return None
        soon = self._commit_in_time()
        limits, is_wasteful = self._limits, self._admission.has_garbage()
        wait = limits.reclaim_s if is_wasteful else limits.checkpoint_s
        left = max(self._oldest_change, self._last_checkpoint) + wait - time.monotonic()
        if left > 0:
            return min(left, soon)
        if self.holds_back():
            return min(soon, AHEAD_S)
        try:
            self._checkpoint_now()
        except FsError as exc:
            if exc.errno != errno.ENOSPC:
                return None  # read-only now, and said so
            return limits.checkpoint_s
        return limits.reclaim_s if self._admission.has_garbage() else None

    def _commit_in_time(self) -> float:
        """Commit what has waited for ``commit_s``; return the seconds until that is due."""
        most = self._limits.commit_s
        if not most or not self._uncommitted:
            return math.inf
        left = self._uncommitted_since + most - time.monotonic()
        if left > 0:
            return left
        with contextlib.suppress(FsError):  # full, and tried again; or said, and read-only now
            self.commit()
        self._uncommitted_since = time.monotonic()
        return most

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        has_lost = bool(self._failed) and self._uncommitted
        try:
            if not self.read_only and not self._failed and (self._changed or self.state.log):
                self._checkpoint_now(final_one=True)
        finally:
            self._slow.close()
            self.end_log()
            self.content.writer.close()
            self._pages.writer.close()
            self.segments.close()
            for directory in self._subdirs.values():
                directory.close()
            self._reserve.close()
            self._dir.close()
        if has_lost:
            raise FsError(errno.EIO)  # accepted, and lost: who asked for no sync hears it here

    def abandon(self) -> None:
        """Close without writing: the host keeps what was found, as after a refusal."""
        self.read_only = True
        self.close()
