# SPDX-License-Identifier: Apache-2.0
"""A backup of the host directory under a running mount: the anchor first, then logs, then segments.

Within one checkpoint such a copy opens as a prefix that holds everything acknowledged before the
copy began. Any other copy is that too, or is refused: it is never a tree that never was.
``make soak`` takes 200 of each kind, CI some.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from serdab.errors import Error
from serdab.sefs.anchor import load_anchor
from serdab.sefs.memorydir import MemoryDir
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union
from tests.crash.actor import Actor
from tests.crash.borders import LIMITS, SETUP, border_workload
from tests.crash.storm import KEY, Ground, Picture, bare_ground
from tests.property.fsops import picture

ORDER = ("anchor", "log", "seg")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    log = logging.getLogger("serdab.sefs")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


@dataclass
class Backup:
    """A copy that is under way, part by part."""

    order: tuple[str, ...]
    first: int
    """The operations that were acknowledged when it began."""
    epoch: int
    host: MemoryDir = field(default_factory=lambda: MemoryDir("copy"))
    done: int = 0

    def go_on(self, source: MemoryDir) -> bool:
        """Copy one more part; return whether that was the last one."""
        name = self.order[self.done]
        self.done += 1
        if name in source.dirs:
            self.host.dirs[name] = copy.deepcopy(source.dirs[name])
        elif name in source.files:
            self.host.files[name] = copy.deepcopy(source.files[name])
        return self.done == len(self.order)


def epoch_of(host: MemoryDir) -> int:
    """Return the number of the newest checkpoint."""
    return load_anchor(host.open("anchor"), KEY, "host")[0].state.epoch


@dataclass
class Tally:
    """What became of the copies."""

    opened: int = 0
    within: int = 0
    refused: int = 0


def back_up(seed: int, order: tuple[str, ...], tally: Tally, *, length: int = 60) -> None:
    """Run a workload and copy its host all the while; open each copy."""
    rng = random.Random(seed)
    ground = bare_ground(SETUP, LIMITS)
    fs = ground.open(ground.host)
    actor, model = Actor(fs), copy.deepcopy(ground.model)
    model_actor = Actor(model)
    pictures = [picture(model)]
    acknowledged = 0
    backup: Backup | None = None
    fs.syncfs()
    for step in border_workload(seed, length):
        if step == "reopen":
            continue
        if isinstance(step, str):
            fs.tick() if step == "tick" else fs.fsync(ROOT_INO, datasync=False)
            acknowledged = len(pictures) - 1 if step != "tick" else acknowledged
        else:
            assert actor.act(step) == model_actor.act(step)
            pictures.append(picture(model))
        if backup is None:
            backup = Backup(order, acknowledged, epoch_of(ground.host))
        if rng.random() < 0.5 and backup.go_on(ground.host):
            whole = backup.epoch == epoch_of(ground.host) and order == ORDER
            _expect_prefix(ground, backup, pictures, tally, whole=whole)
            backup = None
    fs.close()


def _expect_prefix(
    ground: Ground, backup: Backup, pictures: list[Picture], tally: Tally, *, whole: bool
) -> None:
    try:
        found = _twice(ground, backup.host)
    except Error:
        assert not whole, "a copy within one checkpoint was refused"
        tally.refused += 1
        return
    tally.opened += 1
    tally.within += whole
    allowed = pictures[backup.first :] if whole else pictures
    assert found in allowed, f"a tree that {'was too old or ' if whole else ''}never was"


def _twice(ground: Ground, host: MemoryDir) -> Picture:
    """Return what a copy shows, in two sessions."""
    fs: Union = ground.open(host)
    found = picture(fs)
    fs.syncfs()
    fs.close()
    fs = ground.open(host)
    assert picture(fs) == found
    fs.close()
    return found


def test_copies_in_the_right_order_open_as_what_was_acknowledged() -> None:
    tally = Tally()
    for seed in range(20):
        back_up(seed, ORDER, tally)
    assert tally.within > 60


def test_copies_in_any_other_order_are_refused_or_right() -> None:
    tally = Tally()
    for seed, order in enumerate((("seg", "log", "anchor"), ("log", "seg", "anchor"),
                                  ("seg", "anchor", "log"))):  # fmt: skip
        back_up(seed, order, tally)
    assert tally.refused + tally.opened > 15


@pytest.mark.soak
def test_two_hundred_copies() -> None:
    tally, seed = Tally(), 100
    while tally.within < 200:
        back_up(seed, ORDER, tally, length=120)
        seed += 1
    others = Tally()
    while others.opened + others.refused < 200:
        order = random.Random(seed).sample(ORDER, 3)
        back_up(seed, tuple(order), others, length=120)
        seed += 1
