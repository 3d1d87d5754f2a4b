# SPDX-License-Identifier: Apache-2.0
"""kill -9 of each process of an instance, at random: what was acknowledged is there, and whole."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

import pytest

from tests.recovery.processes import Family, Process
from tests.recovery.rounds import Ward

pytestmark = [pytest.mark.fuse, pytest.mark.userns, pytest.mark.root]

SOAK_ROUNDS: Final = int(os.environ.get("SERDAB_SOAK_KILLS", "1000")) // 2
SOAK_SECONDS: Final = float(os.environ.get("SERDAB_SOAK_SECONDS", "3600")) / 2

_VICTIMS: Final[dict[str, Callable[[Family], tuple[Process, ...]]]] = {
    "the command": lambda family: (family.cli,),
    "the kernel process": lambda family: (family.kernel,),
    "the fs server": lambda family: (family.volume,),
    "all fs servers": lambda family: family.servers,
    "the launcher": lambda family: (family.launcher,),
    "the program": lambda family: family.inside,
    "all at once": lambda family: family.everybody(),
}


def kill_round(ward: Ward, victim: str, *, at_once: bool) -> None:
    """Start, let it promise, kill one, start again; ``at_once``: without waiting for its end."""
    run = ward.start_recorder()
    for _ in range(ward.random.randrange(40)):
        run.expect("ack")
    family = run.find_family()
    victims = list(_VICTIMS[victim](family))
    ward.random.shuffle(victims)
    time.sleep(ward.random.random() * 0.03)
    for process in victims:
        process.kill()
    if at_once:
        next_one = ward.start("/bin/probe", "verify", "/data")
        ward.settle(run)
        ward.expect_all(next_one)
        ward.settle(next_one)
        ward.check_gone(next_one)
    else:
        ward.settle(run)
    ward.check_gone(run)


@pytest.mark.slow
def test_everything_acknowledged_survives_kills_of_every_process(ward: Ward) -> None:
    rounds = [(victim, at_once) for victim in _VICTIMS for at_once in (False, True)]
    ward.random.shuffle(rounds)
    for victim, at_once in rounds:
        kill_round(ward, victim, at_once=at_once)
    ward.check_whole()


@pytest.mark.soak
def test_a_thousand_kills(ward: Ward, capsys: pytest.CaptureFixture[str]) -> None:
    victims, started, rounds = list(_VICTIMS), time.monotonic(), 0
    while rounds < SOAK_ROUNDS and time.monotonic() - started < SOAK_SECONDS:
        kill_round(ward, ward.random.choice(victims), at_once=ward.random.random() < 0.5)
        rounds += 1
    ward.check_whole()
    with capsys.disabled():
        print(
            f"\nkills: {rounds} rounds, {ward.acknowledged} records acknowledged, all there, "
            f"{time.monotonic() - started:.0f} s"
        )
