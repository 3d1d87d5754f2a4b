# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint does that can be done before it, in steps between requests.

A checkpoint of much holds everybody up. So what is dirty is sealed before it, what is alive is
moved out of segments that are emptied, changed items are written into the tree, and what was
written is flushed beside the loop. What is left is little.

Security and durability: nothing of it counts before the anchor of that checkpoint. The tree in
memory is another one after each step; the durable one is that of the anchor, its pages stay until
no anchor names them (``leftovers``), and the log is replayed on it. An item that no commit has may
be written too, but a log record takes such items from memory, so then the log ends: what is
acknowledged next is a checkpoint.

Above: ``journal``. Below: ``items``, ``content``, ``treewriter``, ``beside``, ``room``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, Protocol, final

from serdab.errors import FsError
from serdab.sefs import keyspace as ks
from serdab.sefs.beside import SlowCommits
from serdab.sefs.content import Content
from serdab.sefs.items import Items
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.room import Changes
from serdab.sefs.treewriter import TreeWriter
from serdab.vfs.api import Inode
from serdab.vfs.steps import Chores

AHEAD_S: Final = 0.01
"""So soon a checkpoint is tried again that comes after some steps."""
_INODES: Final = 256
"""So many changed inodes become items in one step."""
_LITTLE: Final = 1024
"""So many changed items are no work for a checkpoint."""
_LITTLE_BYTES: Final = 1 << 20
"""So many that it moves are none, either."""
_KEPT: Final = 4096
"""So many may be left to a checkpoint: that no commit has, for the log's sake, or that are new."""
_ROUNDS: Final = 4
"""Others change more meanwhile: so often that is written, too."""
_DONE: Final = object()
_LEAST_ITEMS: Final = 32
_MOST_ITEMS: Final = 1024
_SHORT_S: Final = 0.004
_LONG_S: Final = 0.010


class Writing(Protocol):
    """What is asked of the journal."""

    @property
    def version(self) -> int: ...

    @property
    def has_log(self) -> bool:
        """Whether the next commit goes to a log."""
        ...

    @property
    def has_failed(self) -> bool: ...

    def reclaim_budget(self) -> int: ...

    def save_items(self) -> None: ...

    def end_log(self) -> None:
        """Let the next commit be a checkpoint."""
        ...

    def guarded(self, step: Callable[[], None]) -> None:
        """Run a step that writes to the host.

        Raises:
            FsError: the host refused.
        """
        ...


@final
class Ahead:
    """The steps before the next checkpoint of one volume."""

    def __init__(
        self,
        journal: Writing,
        items: Items,
        content: Content,
        inodes: dict[int, Inode],
        changes: Changes,
        tree_writer: TreeWriter,
        slow: SlowCommits,
        has_garbage: Callable[[], bool],
        limits: VolumeLimits,
    ) -> None:
        self.chores: Chores = deque()
        self.is_served = False
        """Whether somebody does the chores between requests."""
        self._journal = journal
        self._items = items
        self._content = content
        self._inodes = inodes
        self._changes = changes
        self._tree_writer = tree_writer
        self._slow = slow
        self._has_garbage = has_garbage
        self._limits = limits
        self._current: Iterator[None] | None = None
        #: A checkpoint that was held back comes before more than this is changed, and dirty.
        self._ready = (-1, -1)
        self._begins_at = limits.ahead_items
        self._begins_at_bytes = limits.dirty_bytes // 2

    def look(self) -> None:
        """Begin if much is changed, or dirty, by now; called before each change."""
        is_much = (
            self._changes.count() >= self._begins_at
            or self._content.dirty_bytes >= self._begins_at_bytes
        )
        if is_much and self.is_served and self._current is None:
            self._begin(for_checkpoint=False)

    def holds_back(self) -> bool:
        """Return whether a checkpoint that is due had better come after some steps; begin them."""
        if self._current is not None or self._slow.is_flushing:
            return True
        return self._begin_for_checkpoint()

    def steps(self) -> Iterator[None]:
        """Do what there is to do before a checkpoint that somebody waits for."""
        self._begin_for_checkpoint()
        while self._current is not None:
            self._step()
            yield

    def _begin_for_checkpoint(self) -> bool:
        if not self.is_served or self._is_ready() or not self._has_much():
            return False
        if self._current is None:
            self._begin(for_checkpoint=True)
        return True

    def left_to_move(self) -> int:
        """Return how much a checkpoint may move that was not moved ahead of it."""
        return _LITTLE_BYTES if self._is_ready() else 1 << 62

    def checkpoint_written(self) -> None:
        """Nothing is changed any more."""
        self._ready = (-1, -1)

    def _is_ready(self) -> bool:
        count, dirty_bytes = self._ready
        return self._changes.count() <= count and self._content.dirty_bytes <= dirty_bytes

    def _has_much(self) -> bool:
        return (
            self._has_many()
            or self._content.dirty_bytes > self._limits.beside_bytes
            or self._has_garbage()
        )

    def _has_many(self) -> bool:
        return self._changes.count() > min(_LITTLE, self._limits.ahead_items)

    def _begin(self, *, for_checkpoint: bool) -> None:
        self._current = self._steps(for_checkpoint=for_checkpoint)
        self.chores.append(self._chore())

    def _chore(self) -> Iterator[None]:
        while self._current is not None:
            self._step()
            yield

    def _step(self) -> None:
        steps, self._current = self._current, None
        if steps is not None and next(steps, _DONE) is not _DONE:
            self._current = steps

    def _steps(self, *, for_checkpoint: bool) -> Iterator[None]:
        try:
            if self._content.dirty_bytes > self._limits.beside_bytes:
                yield from self._slow.sealing()
            if for_checkpoint:
                budget = self._journal.reclaim_budget()
                yield from self._guarded(self._tree_writer.move_steps(budget))
            for _ in range(_ROUNDS if for_checkpoint else 1):
                yield from self._inodes_saved()
                yield from self._written(_KEPT if for_checkpoint else None)
                if not self._has_many():
                    break
            if for_checkpoint:
                yield from self._guarded(self._tree_writer.move_page_steps())
            self._slow.flush_beside()
        except FsError:
            pass  # full: the checkpoint has its reserve; or it failed, which was said
        finally:
            limits, count, dirty = self._limits, self._changes.count(), self._content.dirty_bytes
            if for_checkpoint:
                self._ready = count + _KEPT, dirty + limits.dirty_bytes // 8
            # Of what is left after an attempt that failed, as much again is another reason.
            self._begins_at = max(limits.ahead_items, count * 2)
            self._begins_at_bytes = max(limits.dirty_bytes // 2, dirty * 2)

    def _guarded(self, steps: Iterator[None]) -> Iterator[None]:
        """Do steps that write to the host, until it fails."""
        done = False

        def step() -> None:
            nonlocal done
            done = next(steps, done_mark) is done_mark

        done_mark = object()
        while not self._journal.has_failed:
            self._journal.guarded(step)
            if done:
                return
            yield

    def _inodes_saved(self) -> Iterator[None]:
        while len(self._inodes) > _INODES:
            for ino in list(islice(self._inodes, _INODES)):
                raw = ks.dump_inode(self._inodes.pop(ino), self._journal.version)
                self._items.put(ks.key(ino, ks.T_INODE), raw)
            yield
        self._journal.save_items()
        yield

    def _written(self, kept: int | None) -> Iterator[None]:
        """Write the changed items into the tree, in the order of their keys.

        More than ``kept`` that no commit has are written as well, and the log ends; None: half.
        """
        items, journal = self._items, self._journal
        keys = sorted(items.mem.keys() - items.pending)
        most = len(items.mem) // 2 if kept is None else kept
        if len(items.mem) - len(keys) > most and not journal.has_failed:
            journal.end_log()
            keys = sorted(items.mem)
        start, size = 0, _LEAST_ITEMS * 4
        while start < len(keys) and not journal.has_failed:
            part = keys[start : start + size]
            start += size
            began_s = time.perf_counter()
            journal.guarded(lambda: self._write(part))  # noqa: B023 - called at once
            took_s = time.perf_counter() - began_s
            if took_s < _SHORT_S:
                size = min(size * 2, _MOST_ITEMS)
            elif took_s > _LONG_S:
                size = max(size // 2, _LEAST_ITEMS)
            yield

    def _write(self, keys: list[bytes]) -> None:
        items = self._items
        # A commit needs what it does not have yet; the end of the log may have come since.
        kept = items.pending if self._journal.has_log else ()
        changes = [(key, items.mem[key]) for key in keys if key in items.mem and key not in kept]
        self._tree_writer.write_some(changes)
