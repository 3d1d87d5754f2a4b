# SPDX-License-Identifier: Apache-2.0
"""What a volume says of the use of its segments is what its tree refers to: after crashes, replays
and failed checkpoints too. A segment counted too low would be deleted with content in it."""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from serdab.errors import FsError
from serdab.sefs import keyspace as ks
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.segment import ABSENT, HOLE, POINTER, POINTER_BYTES
from serdab.sefs.volume import Volume
from serdab.testing.faults import SPACE, CrashStates, Fault, FaultyDir, Host
from tests.crash.actor import Actor
from tests.crash.storm import Ground, bare_ground, either_version, run
from tests.crash.workloads import random_workload


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    log = logging.getLogger("serdab.sefs")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


def referred(volume: Volume) -> Counter[int]:
    """Return the bytes of each segment that the tree refers to."""
    live: Counter[int] = Counter()

    def count(pointer: bytes) -> None:
        segment, _, stored, _, _ = POINTER.unpack(pointer)
        live[segment] += stored

    for pointer, page in volume.tree.pages():
        count(pointer)
        for key, value in page.items() if page.level == 0 else ():
            if key[8] == ks.T_EXTENTS and key[:8] != bytes(8):
                for start in range(0, len(value), POINTER_BYTES):
                    slot = value[start : start + POINTER_BYTES]
                    if slot not in (ABSENT, HOLE):
                        count(slot)
    return live


def expect_true_accounts(ground: Ground, host: MemoryDir) -> None:
    """Compare, on a volume that was closed."""
    volume = ground.open(host)._upper
    assert isinstance(volume, Volume)
    live = referred(volume)
    told = {number: usage.live for number, usage in volume._journal.segments.usage.items()}
    assert {number: count for number, count in told.items() if count} == dict(live)
    for number in live:
        assert f"{number:08x}" in host.dirs["seg"].files
    volume.close()


@pytest.mark.parametrize("seed", range(8))
def test_after_crashes(seed: int) -> None:
    record = run(bare_ground(version=either_version(seed)), random_workload(seed, 80))
    for number, state in enumerate(CrashStates(record.trace, seed=seed, per_point=3)):
        if number % 12 == 0:
            fs = record.check(state)
            fs.fsync(fs.mknod(1, b"new", 0o100600, 0, 0, 0).ino, datasync=False)
            fs.close()
            expect_true_accounts(record.ground, state.host)


@pytest.mark.parametrize("seed", range(4))
def test_after_a_host_that_was_full_for_a_while(seed: int) -> None:
    steps = random_workload(seed, 60)
    for first in range(seed, 90, 8):
        ground = bare_ground(version=either_version(seed))
        memory = MemoryDir("host")
        host = Host()
        fs = ground.open(FaultyDir(host, memory))
        host.fault, host.calls = Fault(first, errno.ENOSPC, times=6, acts=SPACE), 0
        actor = Actor(fs)
        for step in steps:
            try:
                if isinstance(step, tuple):
                    actor.act(step)
                elif step == "tick":
                    fs.tick()
                else:
                    fs.syncfs()
            except FsError as exc:
                if exc.errno != errno.ENOSPC:
                    raise
        host.fault = None
        actor.let_go()
        fs.syncfs()
        fs.close()
        expect_true_accounts(ground, memory)
