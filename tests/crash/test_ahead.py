# SPDX-License-Identifier: Apache-2.0
"""The power fails while the work of the next checkpoint is done ahead of it, in steps.

Changed items stand in a tree that no anchor names, and in the log or nowhere; others come in
between, and are made durable.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import pytest

from serdab.sefs import ahead
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.tree import Change
from serdab.sefs.treewriter import TreeWriter
from serdab.structs import replace
from serdab.testing.crashes import CrashStates
from tests.crash import borders
from tests.crash.actor import Step
from tests.crash.borders import border_workload
from tests.crash.storm import TINY, Ground, Tally, bare_ground, either_version, run, storm
from tests.crash.workloads import SETUP, random_workload
from tests.property.fsops import picture

LIMITS = replace(TINY, items=1000, log_bytes=1 << 20, ahead_items=2, beside_bytes=1 << 10)


class Seen:
    """What was written ahead: items, by whether the log goes on."""

    def __init__(self) -> None:
        self.beside_a_log = 0
        self.at_all = 0


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Small steps, which are counted."""
    monkeypatch.setattr(ahead, "_INODES", 2)
    monkeypatch.setattr(ahead, "_LEAST_ITEMS", 1)
    monkeypatch.setattr(ahead, "_MOST_ITEMS", 4)
    found = Seen()
    write_some, write = TreeWriter.write_some, ahead.Ahead._write

    def counted(writer: TreeWriter, changes: Sequence[Change]) -> None:
        write_some(writer, changes)
        found.at_all += len(changes)

    def looked(one: ahead.Ahead, keys: list[bytes]) -> None:
        before = found.at_all
        write(one, keys)
        if one._journal.has_log:
            found.beside_a_log += found.at_all - before

    monkeypatch.setattr(TreeWriter, "write_some", counted)
    monkeypatch.setattr(ahead.Ahead, "_write", looked)
    log = logging.getLogger("serdab.sefs")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield found
    log.setLevel(level)


def _served(ground: Ground, limits: VolumeLimits = LIMITS) -> Ground:
    ground.limits, ground.is_served = limits, True
    return ground


def _with_pauses(steps: list[Step]) -> list[Step]:
    """Return the steps, the session at rest after each, and no checkpoint that clears it all."""
    out: list[Step] = []
    for step in steps:
        if step not in ("tick", "reopen"):
            out += [step, "pause"]
    return out


@pytest.mark.parametrize("seed", range(5))
def test_a_long_random_workload(seen: Seen, seed: int) -> None:
    ground = _served(bare_ground(SETUP, version=either_version(seed)))
    tally = Tally()
    storm(
        run(ground, _with_pauses(random_workload(seed, 150))),
        tally, per_point=3, again_every=60, seed=seed,
    )  # fmt: skip
    assert tally.states > 50
    assert seen.at_all > 10


@pytest.mark.parametrize("seed", range(2))
def test_files_around_each_limit_of_the_format(seen: Seen, seed: int) -> None:
    limits = replace(borders.LIMITS, ahead_items=2, beside_bytes=1 << 10)
    ground = _served(bare_ground(borders.SETUP, version=either_version(seed)), limits)
    steps = _with_pauses(border_workload(seed, 60))
    storm(run(ground, steps), Tally(), per_point=4, again_every=60, seed=seed)
    assert seen.at_all > 10


def test_what_a_commit_has_is_written_while_the_log_goes_on(seen: Seen) -> None:
    for seed in range(20, 24):
        often: list[Step] = []
        for step in _with_pauses(random_workload(seed, 80)):
            often += [step, "fsync"] if step != "pause" else [step]
        storm(run(_served(bare_ground(SETUP)), often), Tally(), per_point=2, seed=seed)
    assert seen.beside_a_log > 20


def _in_steps(steps: list[Step]) -> list[Step]:
    """Return the operations, with syncs in steps, and one operation within each."""
    out: list[Step] = []
    for count, step in enumerate(step for step in steps if isinstance(step, tuple)):
        out += ["fsync begins", step, "fsync ends"] if count % 6 == 5 else [step]
    return out


def _sync_in_steps(seed: int, tally: Tally) -> None:
    """Sync in steps where a record of the log holds little: most commits are checkpoints."""
    limits = replace(LIMITS, commit_bytes=100, beside_bytes=1 << 10)
    ground = _served(bare_ground(SETUP, version=either_version(seed)), limits)
    steps = _in_steps(random_workload(seed, 100))
    storm(run(ground, steps), tally, per_point=3, again_every=60, seed=seed)


@pytest.mark.parametrize("seed", range(4))
def test_a_sync_in_steps_that_becomes_a_checkpoint(
    seen: Seen, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_KEPT", 1)
    tally = Tally()
    _sync_in_steps(seed, tally)
    assert tally.states > 50
    assert seen.at_all > 10


@pytest.mark.soak
def test_many_seeds(seen: Seen) -> None:
    tally = Tally()
    for seed in range(1000, 1150):
        _sync_in_steps(seed, tally)
        ground = _served(bare_ground(SETUP, version=either_version(seed)))
        steps = _with_pauses(random_workload(seed, 150))
        storm(run(ground, steps), tally, per_point=4, again_every=100, seed=seed)
    assert tally.states > 10_000
    assert seen.beside_a_log > 100


@pytest.mark.parametrize("seed", range(3))
def test_what_was_never_synced_is_never_shown(seen: Seen, seed: int) -> None:
    limits = replace(
        VolumeLimits(), ahead_items=2, beside_bytes=1 << 10, dirty_bytes=8 << 10,
        buffer_bytes=4 << 10, inline_commit_bytes=1 << 10, log_growth_bytes=8 << 10,
    )  # fmt: skip
    ground = _served(bare_ground(SETUP), limits)
    steps = _with_pauses(random_workload(seed, 150))
    record = run(ground, steps)
    synced, count = [record.pictures[0]], 0
    for step in steps:
        count += isinstance(step, tuple)
        if step in ("fsync", "syncfs"):
            synced.append(record.pictures[count])
    for state in CrashStates(record.trace, seed=seed, per_point=6):
        fs = record.check(state)
        assert picture(fs) in synced, f"after event {state.point}, {state.kind}"
    assert seen.at_all > 10


def test_a_write_ahead_that_forgets_something_is_found_out(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that cannot fail shows nothing: here what was written passes for not committed."""
    monkeypatch.setattr(ahead.Ahead, "_written", _forgetful)
    for seed in range(20):
        steps: list[Step] = []
        for step in _with_pauses(random_workload(seed, 80)):
            steps += [step, "fsync"] if step != "pause" else [step]
        try:
            storm(run(_served(bare_ground(SETUP)), steps), Tally(), per_point=2, seed=seed)
        except Exception:  # refused, or another tree: either is found out
            return
    pytest.fail("it was not found out")


def _forgetful(self: ahead.Ahead) -> Iterator[None]:
    items = self._items
    keys = sorted(items.mem)
    items.pending.clear()
    if keys:
        self._journal.guarded(lambda: self._write(keys))
    yield
