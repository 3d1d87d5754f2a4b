# SPDX-License-Identifier: Apache-2.0
"""What was told to a pin is true after any power cut: no honest history looks like a rollback.

The pin is told of each durable state. After a cut at any instant, whatever the host lost or tore of
what was not flushed, the volume must stand where the pin says, or further along the same history.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.position import Order, Position
from serdab.sefs.volume import Volume, open_volume_in
from serdab.testing.crashes import CrashState, CrashStates
from serdab.testing.recording import Event, RecordingDir, SyncFile, Trace, Truncate, Write
from serdab.vfs.union import Union
from tests.crash.actor import CHUNK, Actor, Step
from tests.crash.storm import KEY, TINY
from tests.crash.workloads import SETUP, random_workload


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A torn anchor is reported on each opening; here that is thousands of lines."""
    log = logging.getLogger("serdab.sefs")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


class Killed(BaseException):
    """The process is gone; the host's memory is not."""


class Deadly(list[Event]):
    """A list of events that ends the process after so many of them.

    Changes of files are written down before they are done, those of names afterwards: what is in
    the list and what is in the host's memory stay the same.
    """

    def __init__(self, events: list[Event], last: int) -> None:
        super().__init__(events)
        self._last = last

    def append(self, event: Event) -> None:
        is_over = len(self) >= self._last
        if is_over:
            self._last = 1 << 60
        if not is_over or not isinstance(event, Write | Truncate | SyncFile):
            super().append(event)
        if is_over:
            raise Killed


@dataclass(slots=True)
class Pinned:
    """A host, and a pin: what it was told, and how many acts on the host came before."""

    host: RecordingDir
    told: list[tuple[int, Position]] = field(default_factory=list)

    @property
    def trace(self) -> Trace:
        return self.host.trace

    def open(self, directory: RecordingDir | MemoryDir) -> Volume:
        return open_volume_in(
            directory, key=KEY, create=True, chunk_size=CHUNK, page_size=1024, limits=TINY
        )

    def mount(self) -> Union:
        """Open as a session does (``trust.freshness``): what is new is made durable, then told."""
        volume = self.open(self.host)
        position = volume.position
        if position is not None and (not self.told or position != self.told[-1][1]):
            volume.commit()
            position = volume.position
            assert position is not None
            self.tell(position)
        volume.history.on_durable = self.tell
        return Union(volume, None)

    def tell(self, position: Position) -> None:
        self.told.append((len(self.trace.events), position))

    def run(self, steps: list[Step]) -> None:
        fs = self.mount()
        actor = Actor(fs)
        for step in steps:
            match step:
                case "fsync" | "syncfs":
                    fs.syncfs()
                case "tick":
                    fs.tick()
                case "reopen":
                    fs.close()
                    fs = self.mount()
                    actor = Actor(fs)
                case str():
                    raise ValueError(step)
                case _:
                    actor.act(step)
        fs.close()

    def check(self, state: CrashState) -> None:
        volume = self.open(state.host)
        position = volume.position
        for when, told in self.told:
            if when > state.point:
                break
            assert position is not None, f"point {state.point}, {state.kind}: nothing is left"
            order = position.order(told)
            where = f"point {state.point}, {state.kind}: found {position}, told {told}"
            assert order in (Order.SAME, Order.NEWER), f"{order.value}, {where}"
            assert order is Order.SAME or not volume.contradicts(told), where


def fresh() -> Pinned:
    return Pinned(RecordingDir.over(MemoryDir("host")))


SESSIONS: list[Step] = [*SETUP, "reopen", "reopen", ("create", (b"x",), (), 0, 0, 0, 0), "tick"]


@pytest.mark.parametrize("make", [lambda: SESSIONS, lambda: [*random_workload(7, 150)]])
def test_a_power_cut_never_looks_like_a_rollback(make: Callable[[], list[Step]]) -> None:
    pinned = fresh()
    pinned.run(make())
    assert len(pinned.told) > 3
    states = 0
    for state in CrashStates(pinned.trace, per_point=6):
        pinned.check(state)
        states += 1
    assert states > 100


def test_a_power_cut_after_a_kill_never_looks_like_a_rollback() -> None:
    """The next session finds in the host's memory what was never flushed."""
    whole = fresh()
    whole.run(SESSIONS)
    for last in range(2, len(whole.trace.events) - 1):
        pinned = fresh()
        pinned.trace.events = Deadly(pinned.trace.events, last)
        with pytest.raises(Killed):
            pinned.run(SESSIONS)
        pinned.host.close()
        pinned.run([("create", (b"after",), (), 0, 0, 0, 0), "fsync"])
        for state in CrashStates(pinned.trace, per_point=3, first=last):
            pinned.check(state)


def test_going_on_from_a_crash_never_looks_like_a_rollback() -> None:
    first = fresh()
    first.run(SESSIONS)
    for number, state in enumerate(CrashStates(first.trace, per_point=2)):
        if number % 5:
            continue
        known = [told for when, told in first.told if when <= state.point]
        again = Pinned(RecordingDir.over(copy.deepcopy(state.host)), [(0, told) for told in known])
        again.run([("create", (b"again",), (), 0, 0, 0, 0), "fsync"])
        for later in CrashStates(again.trace, per_point=2):
            again.check(later)
