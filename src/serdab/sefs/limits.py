# SPDX-License-Identifier: Apache-2.0
"""When a writable volume flushes, checkpoints and begins new files. Nothing of it is format.

Above: ``volume``, ``segment``, ``content``.
"""

from __future__ import annotations

from typing import Final

from serdab.structs import frozen, replace


@frozen
class VolumeLimits:
    """Sizes in bytes, times in seconds. Tests choose small ones."""

    segment_bytes: int = 64 << 20
    """A segment is ended before it grows beyond this."""
    buffer_bytes: int = 1 << 20
    """Sealed records wait in memory up to this much."""
    dirty_bytes: int = 32 << 20
    """Dirty chunks are sealed when they are more."""
    items: int = 60_000
    """A checkpoint is due after so many changed items."""
    ahead_items: int = 36_000
    """So many are written into the tree before that, where it can be done between requests."""
    items_bytes: int = 24 << 20
    """A checkpoint is due when what is changed, other than content, takes so much memory."""
    commit_bytes: int = 8 << 20
    """A commit that would be longer is a checkpoint."""
    log_bytes: int = 32 << 20
    """A checkpoint is due when the log is longer."""
    log_growth_bytes: int = 1 << 20
    """The log is written ahead by this much, and twice as much each time."""
    max_bytes: int = 0
    """The most that live data may take; 0: no limit but the host's."""
    scattered_bytes: int = 16 << 20
    """The reserve covers two checkpoints that rewrite pages of this size in all."""
    tight_bytes: int = 256 << 20
    """With less room than this on the host, checkpoints come before they outgrow the reserve."""
    inline_commit_bytes: int = 64 << 10
    """A commit carries up to this much content in the log instead of flushing it."""
    beside_bytes: int = 1 << 20
    """A commit flushes more than this while others are served, before it begins."""
    commit_s: float = 0.0
    """A change waits no longer for a commit; 0: until something asks for one."""
    checkpoint_s: float = 30.0
    """A change waits no longer for a checkpoint."""
    reclaim_s: float = 1.0
    """As long as there is space to give back, a checkpoint comes this soon."""
    reclaim_bytes: int = 32 << 20
    """A checkpoint moves no more live bytes than this."""


DEFAULT_LIMITS = VolumeLimits()

_LEAST_SEGMENT: Final = 4 << 20
_SEGMENTS_PER_HOST: Final = 32


def fitted(limits: VolumeLimits, host_bytes: int) -> VolumeLimits:
    """Return limits for a host file system of this size.

    A segment gives its room back as a whole, after what is alive in it was moved: on a small host
    that is nearly full, there is no room to move the half of a large one.
    """
    most = max(_LEAST_SEGMENT, host_bytes // _SEGMENTS_PER_HOST)
    return replace(limits, segment_bytes=min(limits.segment_bytes, most))
