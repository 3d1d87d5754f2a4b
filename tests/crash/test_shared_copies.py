# SPDX-License-Identifier: Apache-2.0
"""Power cuts around files that share records: each copy keeps what it had, whatever became of the
others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serdab.sefs.references import References
from tests.crash.actor import CHUNK, Step
from tests.crash.storm import Tally, bare_ground, run, storm
from tests.crash.workloads import random_workload

SOURCE, COPY, THIRD = (b"a",), (b"b",), (b"c",)
SIZE = 5 * CHUNK + 700
END = 7 * CHUNK


def _file(path: tuple[bytes, ...]) -> Step:
    return ("create", path, (), 0, 0, 0, 0)


def _write(path: tuple[bytes, ...], offset: int, size: int, byte: int) -> Step:
    return ("write", path, (), offset, size, byte, 0)


def _truncate(path: tuple[bytes, ...], size: int) -> Step:
    return ("truncate", path, (), size, 0, 0, 0)


def _copy(source: tuple[bytes, ...], into: tuple[bytes, ...], offset: int = 0) -> Step:
    return ("copy", source, into, offset, END)


def _unlink(path: tuple[bytes, ...]) -> Step:
    return ("unlink", path, (), 0, 0, 0, 0)


SETUP: list[Step] = [_file(SOURCE), _file(COPY), _file(THIRD), _write(SOURCE, 0, SIZE, 1)]
CASES: dict[str, list[Step]] = {
    "copied while it is in memory": [_copy(SOURCE, COPY), "fsync", _write(SOURCE, 9, 50, 2)],
    "the source goes": ["fsync", _copy(SOURCE, COPY), "fsync", _unlink(SOURCE)],
    "the source goes at once": ["fsync", _copy(SOURCE, COPY), _unlink(SOURCE), "fsync"],
    "the copy goes": ["fsync", _copy(SOURCE, COPY), "fsync", _truncate(COPY, 0), "fsync"],
    "each is written to": [
        _copy(SOURCE, COPY), "fsync", _write(SOURCE, CHUNK + 5, 10, 2),
        _write(COPY, CHUNK + 7, CHUNK, 3), "fsync", _write(COPY, 5 * CHUNK + 600, 300, 4),
    ],
    "both end in the last chunk": [
        _copy(SOURCE, COPY), "fsync", _truncate(COPY, SIZE - 100), _truncate(SOURCE, SIZE + CHUNK),
        "fsync", _truncate(COPY, SIZE + 100),
    ],
    "a copy of a copy": [
        _copy(SOURCE, COPY), "fsync", _copy(COPY, THIRD), _unlink(COPY), "fsync",
        _write(SOURCE, 0, SIZE, 5), "fsync",
    ],
    "over what was there": [
        _write(COPY, 0, END, 6), "fsync", _copy(SOURCE, COPY), "fsync", _copy(SOURCE, COPY, CHUNK),
        _write(COPY, 3, 3, 7), "fsync", _copy(SOURCE, COPY), "fsync",
    ],
    "onto itself again": [
        _copy(SOURCE, COPY), "fsync", _write(COPY, 10, 20, 8), "fsync", _copy(SOURCE, COPY),
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the records that came to be shared."""
    counts: list[int] = []
    one, run_of = References.share, References.share_run

    def share(self: References, *args: object) -> None:
        counts.append(1)
        one(self, *args)  # type: ignore[arg-type]

    def share_run(self: References, *args: object) -> int:
        counts.append(done := run_of(self, *args))  # type: ignore[arg-type]
        return done

    monkeypatch.setattr(References, "share", share)
    monkeypatch.setattr(References, "share_run", share_run)
    yield counts
    assert sum(counts) > 3


@pytest.mark.parametrize("steps", CASES.values(), ids=CASES)
def test_each_copy_keeps_what_it_had(steps: list[Step]) -> None:
    tally = Tally()
    record = run(bare_ground(), [*SETUP, *steps, "fsync", "tick", "tick"])
    storm(record, tally, per_point=3, again_every=60, look_every=5)
    assert tally.states > 20


@pytest.mark.parametrize("seed", range(4))
def test_random_workloads_with_many_copies(seed: int) -> None:
    tally = Tally()
    steps = random_workload(seed, 80)
    for at in range(len(steps) - 3, 0, -4):
        paths = (SOURCE, COPY, THIRD)
        first, second = paths[at % 3], paths[(at + 1 + at % 2) % 3]
        steps[at:at] = [_copy(first, second), _write(first, (at % 6) * CHUNK, CHUNK + 10, at % 250)]
    storm(run(bare_ground(), [*SETUP, *steps]), tally, per_point=3, seed=seed, look_every=20)
    assert tally.states > 50
