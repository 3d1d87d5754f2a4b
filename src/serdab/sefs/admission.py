# SPDX-License-Identifier: Apache-2.0
"""Whether a change is admitted: there is room on the host to make it durable, and memory for it.

Above: ``journal``. Below: ``room`` (what is changed), ``reserve`` (what is set aside), ``segment``.

A full host is told here, before anything is changed. What only removes is never refused: it is kept
small enough for what is set aside, and what it frees is given back as soon as anybody needs it.
"""

from __future__ import annotations

import errno
from typing import Final, Protocol, final

from serdab.errors import FsError
from serdab.sefs.hostdir import Dir
from serdab.sefs.leftovers import Leftovers
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.reserve import LAST_ROOM, Reserve, is_full
from serdab.sefs.room import Changes
from serdab.sefs.segment import SegmentStore

_WORTH: Final = 16
"""So many changes may have freed something."""
_TRY_AGAIN: Final = 256
"""So many changes later a checkpoint is tried again that a full host ended."""


class Writing(Protocol):
    """What admission asks of the journal. Each call raises FsError if the host refuses."""

    @property
    def has_anchor(self) -> bool: ...

    def ensure_anchor(self) -> None: ...

    def write_checkpoint(self) -> None: ...

    def holds_back(self) -> bool:
        """Return whether a checkpoint that is due had better come after some steps."""
        ...

    def sweep(self) -> bool:
        """Delete what a killed session left; return whether that had not been done yet."""
        ...

    def free_rest(self) -> bool:
        """Free what is freed in pieces; return whether there was anything.

        Raises:
            Unfinished: where others are served meanwhile.
        """
        ...

    def fail(self, exc: OSError) -> FsError:
        """The host failed: be read-only; return what the program is told."""
        ...


@final
class Admission:
    """The one place that may refuse a change."""

    def __init__(
        self,
        journal: Writing,
        changes: Changes,
        segments: SegmentStore,
        leftovers: Leftovers,
        reserve: Reserve,
        directory: Dir,
        limits: VolumeLimits,
    ) -> None:
        self._journal = journal
        self._changes = changes
        self._segments = segments
        self._leftovers = leftovers
        self._reserve = reserve
        self._dir = directory
        self._limits = limits
        self._appended_before = 0
        self._look_at_churn = 0
        self._ask_host_at = 0
        self._try_again_at = 0
        self._to_empty_bytes = 0

    def checkpoint_written(self) -> None:
        """Nothing is changed any more."""
        self._appended_before = self._segments.appended_bytes
        self._try_again_at = 0
        self._ask_host_at = 0

    def admit(self, growth: int, log_bytes: int, rewritten: int = 0) -> None:
        """Admit a change that adds about so many bytes; 0: it only removes or rewrites.

        ``rewritten``: so many bytes of content take the place of as many that are stored. The
        volume becomes no larger, but what is replaced is given back only later: of what is set
        aside these may take what growth leaves.

        Raises:
            FsError: ENOSPC, or EIO if the host failed.
        """
        wasteful = self._segments.churn_bytes >= self._look_at_churn and self._is_wasteful()
        if (wasteful or self._is_much(log_bytes)) and not self._may_wait(log_bytes):
            self._checkpoint_for(growth)
        if growth or rewritten:
            self._make_room(growth, log_bytes, rewritten)
        elif not self._reserve.size:
            self._hold_last()

    def _checkpoint_for(self, growth: int) -> None:
        """Write a checkpoint before a change. On a full host adding is refused, removing is not.

        Raises:
            FsError
        """
        if not growth and self._changes.count() < self._try_again_at:
            return  # it failed just now: it would for each name that is removed
        try:
            self._journal.write_checkpoint()
            self._empty_dead()
        except FsError as exc:
            if exc.errno != errno.ENOSPC or growth:
                raise
            self._try_again_at = self._changes.count() + _TRY_AGAIN

    def _empty_dead(self) -> None:
        """What one checkpoint empties the next one deletes: both anchors left it then."""
        if self._leftovers.dead:
            self._journal.write_checkpoint()

    def _hold_last(self) -> None:
        """Have the last room set aside: without it, on a host that somebody else fills, what
        removing has freed could not be given back."""
        if not self._journal.has_anchor:
            return
        for _ in range(2):
            try:
                self._reserve.ensure(LAST_ROOM, no_more=True)
            except OSError as exc:
                if not is_full(exc):
                    raise self._journal.fail(exc) from None
                if not self._journal.sweep():
                    return
            else:
                return

    def _is_much(self, log_bytes: int, times: int = 1) -> bool:
        """Return whether so much is changed that a checkpoint is due."""
        limits, changes = self._limits, self._changes
        return (
            changes.held_bytes() > limits.items_bytes * times
            or changes.count() > limits.items * times
            or log_bytes > limits.log_bytes * times
        )

    def _may_wait(self, log_bytes: int) -> bool:
        """Return whether what a checkpoint has to do is being done ahead of it."""
        return not self._is_much(log_bytes, 2) and self._journal.holds_back()

    def _make_room(self, growth: int, log_bytes: int, rewritten: int) -> None:
        """Have room set aside for a change, or refuse it.

        Raises:
            FsError: ENOSPC.
        """
        limits, changes = self._limits, self._changes
        most = limits.max_bytes
        if growth and most and self._taken_with(growth) > most:
            self._journal.free_rest()
            if self._taken_with(growth) > most:
                raise FsError(errno.ENOSPC)
        if changes.scattered_bytes() + self._segments.appended_bytes >= self._ask_host_at:
            self._ask_host()
        needed = self._needed(growth, rewritten)
        if needed <= self._reserve.size:
            return
        self._journal.ensure_anchor()
        for _ in range(4):
            try:
                self._reserve.ensure(needed, no_more=bool(self._to_empty_bytes))
            except OSError as exc:
                if not is_full(exc):
                    raise self._journal.fail(exc) from None
                if not self._gave_room_back() and not self._replaced(rewritten, log_bytes):
                    break
                log_bytes = 0
                needed = self._needed(growth, rewritten)
            else:
                return
        raise FsError(errno.ENOSPC)

    def _taken_with(self, growth: int) -> int:
        """Return what a volume of limited size takes, with ``growth`` more."""
        taken = self._segments.live_bytes + self._segments.reserved_bytes
        return taken + self._changes.added_bytes(growth)

    def _needed(self, growth: int, rewritten: int) -> int:
        """Return what must be set aside: what is rewritten may take what moving needs."""
        room = self._changes.room(growth + rewritten, self._limits)
        return room + (self._to_empty_bytes if growth else 0)

    def _replaced(self, rewritten: int, log_bytes: int) -> bool:
        """Give back what was rewritten, and the log of it; return whether there was anything."""
        if not rewritten or log_bytes < self._limits.log_growth_bytes:
            return False
        self._journal.write_checkpoint()
        self._empty_dead()
        return True

    def _gave_room_back(self) -> bool:
        """Give the host what nothing needs; return whether asking it again makes sense."""
        if self._journal.sweep():
            return True
        was_pending = self._journal.free_rest()
        if not was_pending and not self.has_garbage():
            return False
        self._journal.write_checkpoint()
        self._empty_dead()
        return True

    def _ask_host(self) -> None:
        """See whether the host has little room: then more is set aside than what is dirty needs.

        The room to move what is alive out of a segment, since a full host gets none back without;
        and a checkpoint comes before pages outgrow what the reserve covers. The host is asked again
        when a part of what counts as little may have been used.
        """
        limits = self._limits
        scattered = self._changes.scattered_bytes()
        step = min(limits.tight_bytes // 64, limits.scattered_bytes // 2)
        self._ask_host_at = scattered + self._segments.appended_bytes + step
        is_tight = self._dir.free_bytes()[1] + self._reserve.size < limits.tight_bytes
        self._to_empty_bytes = limits.segment_bytes if is_tight else 0
        if is_tight and scattered > limits.scattered_bytes:
            self._journal.write_checkpoint()

    def _is_wasteful(self) -> bool:
        """Return whether dead bytes alone are reason for a checkpoint now.

        The sums are over all segments: they are not made again until something has changed.
        """
        segments, unit = self._segments, self._limits.segment_bytes
        self._look_at_churn = segments.churn_bytes + unit // 64
        if segments.appended_bytes - self._appended_before < unit // 2:
            return False  # the last checkpoint gave back what it could
        live = segments.live_bytes
        return segments.used_bytes - live > live // 4 + unit // 2

    def has_garbage(self) -> bool:
        """Return whether a checkpoint would give space back to the host."""
        if self._to_empty_bytes and self._changes.count() >= _WORTH:
            return True  # perhaps, and on a host with little room that is reason enough
        return bool(self._leftovers.dead) or any(
            usage.live < usage.used // 2 and not self._segments.is_open(number)
            for number, usage in self._segments.usage.items()
        )
