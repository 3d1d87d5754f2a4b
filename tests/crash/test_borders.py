# SPDX-License-Identifier: Apache-2.0
"""What was acknowledged stays while files cross the limits of the format, and commits the log's.

Each crash state is taken through recovery, a checkpoint, a clean close and a second session.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from serdab.sefs import extents
from serdab.sefs import keyspace as ks
from serdab.sefs.content import Content
from tests.crash.actor import CHUNK, Step
from tests.crash.borders import BULK, EVICT, LIMITS, OPENING, SETUP, border_workload
from tests.crash.storm import Tally, bare_ground, either_version, run, storm

FILE = (b"a",)
LARGE: Step = ("write", BULK, (), 1, 2 * LIMITS.inline_commit_bytes, 9, 0)
"""So much that the next commit puts what is dirty into records and inline items."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    log = logging.getLogger("serdab.sefs")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


def _write(size: int, byte: int, offset: int = 0) -> Step:
    return ("write", FILE, (), offset, size, byte, 0)


def _truncate(size: int) -> Step:
    return ("truncate", FILE, (), size, 0, 0, 0)


_UNLINK: Step = ("unlink", FILE, (), 0, 0, 0, 0)


CASES: dict[str, list[Step]] = {
    "rewritten": [_write(500, 1), "fsync", _write(500, 2), LARGE, "fsync"],
    "emptied later": [
        _write(500, 1), "fsync", LARGE, "fsync", _truncate(0), "fsync", _truncate(800), "fsync",
    ],
    "emptied at once": [
        _write(500, 1), "fsync", *EVICT, _truncate(0), "fsync", _truncate(800), "fsync",
    ],
    "unlinked": [_write(500, 1), "fsync", *EVICT, _UNLINK, "fsync"],
    "unlinked, of chunks": [_write(CHUNK + 5, 1), "fsync", *EVICT, _UNLINK, "fsync"],
    "replaced": [_write(500, 1), "fsync", *EVICT, ("rename", BULK, FILE, 0, 0, 0, 0), "fsync"],
    "held": [
        _write(500, 1), "fsync", *EVICT,
        ("hold", FILE), _UNLINK, "fsync", ("let go", FILE), "fsync",
    ],
}  # fmt: skip


@pytest.mark.parametrize("steps", CASES.values(), ids=CASES)
@pytest.mark.parametrize("logged", ["now", "by older versions"])
def test_a_small_file_that_moved_in_a_large_commit_stays_as_it_is(
    steps: list[Step], logged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older versions logged no discard of any of these: replay must do without."""
    if logged != "now":
        monkeypatch.setattr(Content, "discards", lambda _: [])
    tally = Tally()
    ground = bare_ground(SETUP, LIMITS, ks.V2 if logged == "now" else ks.V1)
    record = run(ground, [*OPENING, *steps])
    storm(record, tally, per_point=4, look_every=1)
    assert tally.states > 10


def test_a_file_that_shrank_into_its_inode_and_grew_out_of_it_stays_as_it_is() -> None:
    tally = Tally()
    steps = [_write(3000, 1), "fsync", _truncate(100), LARGE, "fsync", _write(3000, 3, 50), "fsync"]
    storm(run(bare_ground(SETUP, LIMITS), [*OPENING, *steps]), tally, per_point=4, look_every=1)
    assert tally.states > 10


def test_a_file_that_goes_in_pieces_is_whole_or_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents, "STEP_GROUPS", 2)
    tally = Tally()
    far = 64 * CHUNK
    other: Step = ("write", BULK, (), 1, 100, 7, 0)
    steps = [_write(CHUNK, 1 + number, number * far) for number in range(5)]
    steps += [_write(10, 9, 5), "fsync", _UNLINK, "fsync", "chore", other, "fsync", "chore"]
    steps += ["reopen", other, "fsync", _write(10, 9), "fsync"]
    storm(run(bare_ground(SETUP, LIMITS), [*OPENING, *steps]), tally, per_point=2, look_every=1)
    assert tally.states > 20


@pytest.mark.parametrize("seed", range(10))
def test_files_at_the_borders(seed: int) -> None:
    tally = Tally()
    ground = bare_ground(SETUP, LIMITS, either_version(seed))
    storm(run(ground, border_workload(seed)), tally, per_point=3, seed=seed)
    assert tally.states > 50
