# SPDX-License-Identifier: Apache-2.0
"""Workloads that stay at the borders of the format: files that cross them again and again, with
commits that carry just below, just as much as, and just above what a commit carries in the log.

A few files, so that what is done to one meets what was done to it before; sizes of the inline limit
and of a chunk, one below and one above. What makes a commit large is a file of its own.
"""

from __future__ import annotations

import random
from typing import Final

from serdab.sefs import keyspace as ks
from serdab.structs import replace
from tests.crash.actor import CHUNK, Operation, Step
from tests.crash.storm import TINY

LIMITS: Final = replace(
    TINY, items=300, log_bytes=160 << 10, dirty_bytes=12 << 10, segment_bytes=256 << 10
)
"""More goes to the log between two checkpoints, and more into records between two commits."""

FILES = ((b"a",), (b"b",), (b"A", b"c"))
BULK = (b"bulk",)
SETUP: list[Step] = [
    ("mkdir", (b"A",), (), 0, 0, 0, 0),
    *[("create", path, (), 0, 0, 0, 0o600) for path in (*FILES, BULK)],
    ("write", BULK, (), 0, 8 * CHUNK, 1, 0),  # what is there already is not sealed at once
    "syncfs",
]


OPENING: list[Step] = [("chmod", (b"a",), (), 0, 0, 0, 0o600), "fsync"]
"""The first commit of a session is a checkpoint; those after it go to the log."""


def around(*limits: int) -> tuple[int, ...]:
    """Return each limit, one below and one above."""
    return tuple(limit + by for limit in limits for by in (-1, 0, 1))


SIZES = (0, 1, 700, *around(ks.INLINE_MAX, CHUNK, 2 * CHUNK))
_CARRIED = LIMITS.inline_commit_bytes
_BULK = (0, 0, *around(_CARRIED - ks.INLINE_MAX, _CARRIED), 2 * _CARRIED)
EVICT: Final[list[Step]] = [
    ("write", BULK, (), chunk * CHUNK + 1, CHUNK - 2, 8, 0)
    for chunk in range(LIMITS.dirty_bytes // CHUNK + 2)
]
"""So much is dirty then that it is put into records and inline items before the next write."""
_COMMITS: tuple[Step, ...] = ("fsync", "fsync", "fsync", "syncfs", "tick")


def _change(rng: random.Random) -> Operation:
    path, other = rng.choice(FILES), rng.choice(FILES)
    offset, size, byte = rng.choice(SIZES), rng.choice(SIZES), rng.randrange(256)
    kinds: dict[str, tuple[int, Operation]] = {
        "grow": (8, ("write", path, (), 0, size, byte, 0)),
        "change": (3, ("write", path, (), offset, rng.choice((1, 100, size)), byte, 0)),
        "empty": (4, ("truncate", path, (), 0, 0, 0, 0)),
        "resize": (5, ("truncate", path, (), size, 0, 0, 0)),
        "punch": (2, ("punch", path, (), offset, size, 0, 0)),
        "zero": (1, ("falloc", path, 17, offset, size + 1)),
        "copy": (2, ("copy", path, other, 0, size)),
        "over": (2, ("rename", path, other, 0, 0, 0, 0)),
        "unlink": (3, ("unlink", path, (), 0, 0, 0, 0)),
        "create": (4, ("create", path, (), 0, 0, 0, 0o600)),
        "hold": (1, ("hold", path)),
        "held": (1, ("held write", path, offset, size, byte)),
        "let go": (1, ("let go", path)),
    }
    weights = [weight for weight, _ in kinds.values()]
    return rng.choices([operation for _, operation in kinds.values()], weights)[0]


def border_workload(seed: int, length: int = 40) -> list[Step]:
    """Return changes of a few files, each few of them followed by a commit of some size."""
    rng = random.Random(seed)
    steps = list(OPENING)
    while len(steps) < length:
        steps += [_change(rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        size = rng.choice(_BULK)
        if rng.random() < 0.1:
            steps += [*EVICT, _change(rng)]
        elif size:
            steps.append(("write", BULK, (), rng.choice((1, 2000)), size, rng.randrange(256), 0))
        steps.append(rng.choice(_COMMITS) if rng.random() < 0.97 else "reopen")
    return steps
