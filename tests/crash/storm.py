# SPDX-License-Identifier: Apache-2.0
"""Runs a workload on a recorded host and asks of every crash state: is it a prefix of history?

What recovery shows may rest on memory alone, so no state is judged by that: each is asked again
after the checkpoint that follows, and in a second session after a clean close.

A workload is a list of steps: operations (``tests.crash.actor``), and the words

* ``fsync``, ``syncfs``   everything before is acknowledged as durable
* ``fsync begins``        the same in steps; what stands before ``fsync ends`` comes in between
* ``tick``                the timer of the session went off; acknowledges nothing
* ``chore``               the session did a step of what is left to do; acknowledges nothing
* ``pause``               the session did some steps of that, if anything is left to do
* ``reopen``              unmounted and mounted again: acknowledges everything
"""

from __future__ import annotations

import copy
import hashlib
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serdab.keys import Key
from serdab.sefs import fsck
from serdab.sefs import keyspace as ks
from serdab.sefs.hostdir import Dir
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.volume import Volume, open_volume_in
from serdab.testing.crashes import CrashState, CrashStates
from serdab.testing.memfs import MemFs
from serdab.testing.recording import RecordingDir, Trace
from serdab.vfs.api import ROOT_INO
from serdab.vfs.layer import Layer
from serdab.vfs.steps import Steps, after, finish
from serdab.vfs.union import Union
from tests.crash.actor import CHUNK, Actor, Step
from tests.property.fsops import picture

KEY = Key(b"crash state key!")
TINY = VolumeLimits(
    dirty_bytes=24 << 10,
    items=48,
    inline_commit_bytes=3 << 10,
    log_bytes=40 << 10,
    log_growth_bytes=8 << 10,
    segment_bytes=24 << 10,
    buffer_bytes=8 << 10,
    checkpoint_s=0.0,
    reclaim_s=0.0,
    reclaim_bytes=16 << 10,
)
"""A few operations cross every border: commits in line and not, checkpoints, new logs, segments."""

Picture = dict[bytes, tuple[Any, ...]]
PAUSE_CHORES = 2
CHECK_EVERY = 50
"""So many crash states are seen for each one that fsck looks at too, in both sessions."""


@dataclass(slots=True)
class Ground:
    """What a workload starts from: the host's content, the lower layer, a model of both."""

    host: MemoryDir
    lower: Callable[[], Layer | None]
    model: MemFs
    limits: VolumeLimits = TINY
    version: int = ks.V2
    is_served: bool = False
    """Whether what can be done ahead is a chore, as where a session does them."""

    def open(self, directory: Dir) -> Union:
        """Mount what a host directory holds."""
        lower = self.lower()
        volume = open_volume_in(
            directory, key=KEY, lower=lower, create=True, chunk_size=CHUNK, page_size=1024,
            limits=self.limits, version=self.version,
        )  # fmt: skip
        if self.is_served:
            volume.let_be_served()
        return Union(volume, lower)


def _do_chore(fs: Union) -> None:
    chore = fs.chores.popleft()
    if next(chore, "done") is None:
        fs.chores.append(chore)


def no_lower() -> Layer | None:
    """A volume alone."""
    return None


def either_version(seed: int) -> int:
    """Return a format version: random work is done in both."""
    return ks.V1 if seed % 2 else ks.V2


def bare_ground(
    setup: Sequence[Step] = (), limits: VolumeLimits = TINY, version: int = ks.V2
) -> Ground:
    """A volume alone, after some operations, unmounted."""
    ground = Ground(MemoryDir("host"), no_lower, MemFs(), limits, version)
    prepare(ground, setup)
    return ground


def prepare(ground: Ground, setup: Sequence[Step]) -> None:
    """Apply operations to the ground itself."""
    if not setup:
        return
    fs = ground.open(ground.host)
    actor, model = Actor(fs), Actor(ground.model)
    for step in setup:
        if isinstance(step, tuple):
            assert actor.act(step) == model.act(step), step
        else:
            fs.syncfs()
    fs.close()
    model.let_go()


@dataclass(slots=True)
class Record:
    """A workload that ran: its trace, and what the tree looked like after each operation."""

    ground: Ground
    trace: Trace
    steps: Sequence[Step]
    pictures: list[Picture] = field(default_factory=list)

    def check(self, state: CrashState) -> Union:
        """Mount a crash state and compare; return it mounted."""
        fs = self.ground.open(state.host)
        self.expect_prefix(state, picture(fs), "after recovery")
        return fs

    def expect_prefix(self, state: CrashState, found: Picture, when: str) -> None:
        """Compare a tree with those that this crash may leave."""
        low, high = state.mark.acknowledged, state.mark.issued
        if found not in self.pictures[low : high + 1]:
            raise AssertionError(self._explain(state, found, when))

    def outlive(self, state: CrashState, *, look: bool = False) -> Picture:
        """Recover, write the checkpoint, close, open again: it is one and the same prefix.

        ``look``: have fsck see both sessions. Return the tree.
        """
        fs = self.check(state)
        found = picture(fs)
        if look:
            expect_clean(fs, state)
        fs.syncfs()  # the first commit of a session is a checkpoint
        self._expect_same(state, found, picture(fs), "after the checkpoint that followed")
        fs.close()
        fs = self.ground.open(state.host)
        self._expect_same(state, found, picture(fs), "in the second session")
        if look:
            expect_clean(fs, state)
        fs.close()
        return found

    def _expect_same(self, state: CrashState, found: Picture, now: Picture, when: str) -> None:
        if now != found:
            changed = sorted(path for path in {*now, *found} if now.get(path) != found.get(path))
            raise AssertionError(
                f"{changed} changed after recovery\n{self._explain(state, now, when)}"
            )

    def _explain(self, state: CrashState, found: Picture, when: str) -> str:
        older = [i for i, seen in enumerate(self.pictures) if seen == found]
        event = state.point - 1
        lines = [
            f"after event {event} ({_name(self.trace, event)}), {state.kind}, {when}:",
            f"expected the tree after {state.mark.acknowledged} to {state.mark.issued} operations,",
            f"found that after {older}" if older else "found a tree that never was:",
        ]
        if not older:
            nearest = self.pictures[state.mark.issued]
            lines += [
                f"  {path!r}: {_brief(nearest.get(path))} -> {_brief(found.get(path))}"
                for path in sorted({*nearest, *found})
                if nearest.get(path) != found.get(path)
            ]
        lines.append(f"steps: {self.steps}")
        return "\n".join(lines)


def _brief(entry: tuple[Any, ...] | None) -> object:
    if entry is None:
        return None
    return tuple(f"{len(v)} bytes" if isinstance(v, bytes) and len(v) > 60 else v for v in entry)


def _name(trace: Trace, index: int) -> str:
    return type(trace.events[index]).__name__ if 0 <= index < len(trace.events) else "none"


def run(ground: Ground, steps: Sequence[Step]) -> Record:
    """Run a workload on a copy of the ground."""
    host = RecordingDir.over(copy.deepcopy(ground.host))
    model = copy.deepcopy(ground.model)
    trace = host.trace
    record = Record(ground, trace, steps, [picture(model)])
    fs = ground.open(host)
    actor, model_actor = Actor(fs), Actor(model)
    issued = acknowledged = asked = 0
    slow: Steps[None] = after(iter(()))
    for step in steps:
        match step:
            case "fsync":
                fs.fsync(ROOT_INO, datasync=False)
                acknowledged = issued
            case "syncfs":
                fs.syncfs()
                acknowledged = issued
            case "fsync begins":
                slow, asked = fs.fsync_steps(ROOT_INO, datasync=False), issued
                while (descriptor := next(slow, -1)) is None:
                    pass
                if descriptor >= 0:
                    select.select((descriptor,), (), ())  # the same trace each time
            case "fsync ends":
                finish(slow)
                acknowledged = max(acknowledged, asked)
            case "tick":
                fs.tick()
            case "chore":
                _do_chore(fs)
            case "pause":
                for _ in range(PAUSE_CHORES):
                    if fs.chores:
                        _do_chore(fs)
            case "reopen":
                fs.close()
                acknowledged = issued
                model_actor.let_go()
                fs = ground.open(host)
                actor = Actor(fs)
            case str():
                raise ValueError(step)
            case _:
                issued += 1
                trace.mark(issued, acknowledged)
                result = actor.act(step)
                assert result == model_actor.act(step), step
                record.pictures.append(picture(model))
        trace.mark(issued, acknowledged)
    assert picture(fs) == picture(model)
    return record


@dataclass(slots=True)
class Tally:
    """What a storm went through."""

    workloads: int = 0
    states: int = 0
    again: int = 0

    def __str__(self) -> str:
        return (
            f"{self.workloads} workloads, {self.states} crash states, "
            f"{self.again} more in and after recovery"
        )


AGAIN: tuple[Step, ...] = (
    ("create", (b"again",), (), 0, 0, 0, 0),
    ("write", (b"again",), (), 0, 5000, 7, 0),
    "fsync",
    ("write", (b"again",), (), 100, 300, 9, 0),
    "tick",
)
"""What is done on a recovered volume before the power fails once more."""


def expect_clean(fs: Union, state: CrashState) -> None:
    """Have fsck look at what is mounted."""
    volume = fs._upper
    assert isinstance(volume, Volume)
    report = fsck.check(lambda: fs, [volume.tree], upper=volume)
    assert report.is_clean(), f"{report.damaged} after {state.point}, {state.kind}"


def digest(directory: MemoryDir) -> bytes:
    """Return what tells two states of a host apart."""
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(directory.files):
        content = directory.files[name].content
        whole.update(b"%s %d\0" % (name.encode(), len(content)))
        whole.update(content)
    for name in sorted(directory.dirs):
        whole.update(b"%s/\0" % name.encode() + digest(directory.dirs[name]))
    return whole.digest()


def storm(
    record: Record,
    tally: Tally,
    *,
    per_point: int | None,
    again_every: int = 0,
    look_every: int = CHECK_EVERY,
    seed: int = 0,
) -> None:
    """Check the crash states of a record; of every ``again_every``-th, those of its recovery."""
    tally.workloads += 1
    seen: dict[bytes, Picture] = {}
    for state in CrashStates(record.trace, seed=seed, per_point=per_point):
        tally.states += 1
        # Many cuts leave the same bytes: these are taken through recovery once.
        mark = digest(state.host)
        if mark in seen:
            record.expect_prefix(state, seen[mark], "after recovery")
            continue
        again = again_every and tally.states % again_every == 0
        pristine = copy.deepcopy(state.host) if again else None
        found = seen[mark] = record.outlive(state, look=tally.states % look_every == 0)
        if pristine is None:
            continue
        low, high = state.mark.acknowledged, state.mark.issued
        at = next(i for i in range(low, high + 1) if record.pictures[i] == found)
        second = run(Ground(pristine, record.ground.lower, _replayed(record, at)), AGAIN)
        for later in CrashStates(second.trace, seed=seed, per_point=3):
            second.outlive(later)
            tally.again += 1


def _replayed(record: Record, count: int) -> MemFs:
    """Return the model after ``count`` operations."""
    model = copy.deepcopy(record.ground.model)
    operations = [step for step in record.steps if isinstance(step, tuple)]
    actor = Actor(model)
    for operation in operations[:count]:
        actor.act(operation)
    actor.let_go()
    return model
