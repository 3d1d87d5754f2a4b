# SPDX-License-Identifier: Apache-2.0
"""After a power cut at any instant the volume opens without repair, as a prefix of its history that
contains every acknowledged sync.

The power is cut after every act on the host; what was not flushed is kept, lost, torn or garbage
(``serdab.testing.crashes``). ``make soak`` goes on until SERDAB_SOAK_CRASHES states were seen.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serdab.sefs.anchorfile import NEW_ANCHOR
from serdab.sefs.image import open_image_in
from serdab.sefs.imagebuild import ImageOptions, build_image
from serdab.sefs.imageformat import IMAGE_NAME
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.memorydir import MemoryDir, MemoryFile
from serdab.testing.crashes import CrashStates
from serdab.testing.memfs import MemFs
from serdab.testing.recording import SyncDir, SyncFile, Trace
from serdab.vfs.layer import Layer
from tests.crash import borders
from tests.crash.actor import Step
from tests.crash.borders import border_workload
from tests.crash.storm import (
    AGAIN,
    KEY,
    Ground,
    Record,
    Tally,
    bare_ground,
    either_version,
    run,
    storm,
)
from tests.crash.workloads import SETUP, bounded, random_workload, sampled
from tests.harness.sampling import some_of
from tests.property.fsops import picture
from tests.property.test_union_model import mirrored

SOAK_STATES = int(os.environ.get("SERDAB_SOAK_CRASHES", "200000"))
SOAK_SECONDS = float(os.environ.get("SERDAB_SOAK_SECONDS", "3600"))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A torn anchor is reported on each opening; here that is thousands of lines."""
    log = logging.getLogger("serdab.sefs")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A volume over an image that holds the tree of the bounded workloads."""
    folder = tmp_path_factory.mktemp("lower")
    source = folder / "source"
    (source / "A").mkdir(parents=True)
    (source / "foo").write_bytes(b"lower" * 1200)
    (source / "A" / "foo").write_bytes(b"A" * 100)
    (source / "dir" / "b").mkdir(parents=True)
    (source / "a").write_bytes(b"content of the image " * 700)
    (source / "dir" / "b" / "e.txt").write_bytes(b"small")
    (source / "c").symlink_to("dir/a")
    (source / "e.txt").hardlink_to(source / "a")
    mac = build_image(
        source, folder / "image", key=KEY, options=ImageOptions(chunk_size=8192, page_size=4096)
    ).root_mac
    host = MemoryDir("image")
    file = host.files[IMAGE_NAME] = MemoryFile()
    file.content[:] = (folder / "image" / IMAGE_NAME).read_bytes()

    def lower() -> Layer | None:
        return open_image_in(host, key=KEY, expected_mac=mac)

    ground = Ground(MemoryDir("host"), lower, MemFs())
    fs = ground.open(MemoryDir())
    ground.model = mirrored(fs)
    fs.close()
    return ground


Grounds = Callable[[str, list[Step]], Ground]


@pytest.fixture
def grounds(layered: Ground) -> Grounds:
    def make(kind: str, setup: list[Step]) -> Ground:
        if kind == "alone":
            return bare_ground(setup)
        return Ground(layered.host, layered.lower, layered.model)

    return make


def _borders(seed: int) -> Ground:
    return bare_ground(borders.SETUP, borders.LIMITS, either_version(seed // 2))


BOTH = pytest.mark.parametrize("kind", ["alone", "over an image"])


@BOTH
def test_one_operation_and_one_sync(grounds: Grounds, kind: str) -> None:
    ground, tally = grounds(kind, SETUP), Tally()
    # All of them in `make soak`. Five, as there are four calls: each has its turn.
    for number, steps in some_of(enumerate(bounded(1)), 5):
        storm(run(ground, steps), tally, per_point=5, again_every=150, seed=number)
    assert tally.states > 200


@BOTH
def test_two_operations_and_one_sync(grounds: Grounds, kind: str) -> None:
    ground, tally = grounds(kind, SETUP), Tally()
    for number, steps in some_of(enumerate(bounded(2)), 131):
        storm(run(ground, steps), tally, per_point=4, seed=number)
    assert tally.states > 200


@BOTH
def test_three_operations_with_syncs_between(grounds: Grounds, kind: str) -> None:
    ground, tally = grounds(kind, SETUP), Tally()
    for number, steps in enumerate(sampled(3, 16, seed=3)):
        storm(run(ground, steps), tally, per_point=6, again_every=150, seed=number)
    assert tally.states > 200


@BOTH
@pytest.mark.parametrize("seed", range(5))
def test_a_long_random_workload(grounds: Grounds, kind: str, seed: int) -> None:
    tally = Tally()
    ground = grounds(kind, [])
    ground.version = either_version(seed)
    record = run(ground, random_workload(seed))
    storm(record, tally, per_point=5, again_every=80, seed=seed)
    assert tally.states > 50


def test_the_default_limits_hold_too(grounds: Grounds) -> None:
    """Nearly everything in memory and in the log, nothing forced out early."""
    ground = bare_ground(SETUP)
    ground.limits = VolumeLimits()
    for seed in range(2):
        storm(run(ground, random_workload(seed, 20)), Tally(), per_point=3, seed=seed)


def test_the_first_anchor_is_whole_whatever_an_earlier_attempt_left() -> None:
    """Cut off before its rename, it leaves a file under the name that the next attempt takes."""
    ground, tally = bare_ground(), Tally()
    ground.host.files[NEW_ANCHOR] = MemoryFile()
    storm(run(ground, AGAIN), tally, per_point=None)
    assert tally.states > 50


@pytest.mark.parametrize("seed", range(4))
def test_what_was_never_synced_is_never_shown(seed: int) -> None:
    """Content that was evicted to the host before its sync is no state of the volume: the host may
    stop at any of its writes and present what it has (CVE-2022-27499 of another file system)."""
    ground = bare_ground(SETUP)
    # Evicts often, but checkpoints only when asked to sync.
    ground.limits = VolumeLimits(
        dirty_bytes=8 << 10, buffer_bytes=4 << 10, inline_commit_bytes=1 << 10,
        log_growth_bytes=8 << 10,
    )  # fmt: skip
    steps = [step for step in random_workload(seed, 50) if step not in ("tick", "reopen")]
    record = run(ground, steps)
    synced, count = [record.pictures[0]], 0
    for step in steps:
        count += isinstance(step, tuple)
        if isinstance(step, str):
            synced.append(record.pictures[count])
    for state in CrashStates(record.trace, seed=seed, per_point=6):
        fs = record.check(state)
        assert picture(fs) in synced, f"after event {state.point}, {state.kind}"


class TestTheOracle:
    """A check that cannot fail shows nothing: here it must."""

    @pytest.mark.parametrize("lost", ["segments", "logs", "anchor", "names"])
    def test_a_host_that_ignores_flushes_is_found_out(self, lost: str) -> None:
        found = 0
        for seed in range(4):
            record = run(bare_ground(), random_workload(seed, 40))
            record.trace = _without_flushes(record, lost)
            try:
                storm(record, Tally(), per_point=None if lost == "names" else 12, seed=seed)
            except Exception:  # refused, or another tree: either is found out
                found += 1
        assert found


def _without_flushes(record: Record, lost: str) -> Trace:
    """Return the trace of a host that answered some flushes and did nothing."""
    old = record.trace
    kinds: dict[int, str] = {}
    directories: dict[int, str] = {}
    for event in old.events:
        match type(event).__name__:
            case "MakeDir":
                directories[event.made] = event.name  # type: ignore[union-attr]
            case "Create":
                place = directories.get(event.directory, "top")  # type: ignore[union-attr]
                kinds[event.file] = {"seg": "segments", "log": "logs"}.get(place, "anchor")  # type: ignore[union-attr]
    new = Trace(old.base)
    for event in old.events:
        if isinstance(event, SyncFile) and kinds.get(event.file) == lost:
            continue
        if isinstance(event, SyncDir) and lost == "names":
            continue
        new.events.append(event)
    return new


@pytest.mark.soak
def test_two_hundred_thousand_crash_states(
    grounds: Grounds, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tally, started = Tally(), time.monotonic()

    def done() -> bool:
        enough = tally.states + tally.again >= SOAK_STATES
        return enough or time.monotonic() - started > SOAK_SECONDS

    places = [grounds("alone", SETUP), grounds("over an image", SETUP)]
    for ground in places:
        for steps in bounded(1):
            storm(run(ground, steps), tally, per_point=None, again_every=40)
    for number, steps in enumerate(bounded(2)):
        if done():
            break
        storm(run(places[number % 2], steps), tally, per_point=8, again_every=200, seed=number)
    three = tally.states
    for number, steps in enumerate(sampled(3, 100_000, seed=11)):
        if done() or tally.states - three > SOAK_STATES // 4:
            break
        storm(run(places[number % 2], steps), tally, per_point=12, again_every=200, seed=number)
    seed = 1000
    while not done():
        if seed % 2:
            record = run(_borders(seed), border_workload(seed, 120))
        else:
            place = bare_ground() if seed % 4 else grounds("over an image", [])
            place.version = either_version(seed // 2 + seed // 4)
            record = run(place, random_workload(seed, 120))
        storm(record, tally, per_point=12, again_every=200, seed=seed)
        seed += 1
    with capsys.disabled():
        print(f"\ncrash simulator: {tally}, {time.monotonic() - started:.0f} s, none out of order")
    assert tally.states + tally.again >= min(SOAK_STATES, 10_000)
