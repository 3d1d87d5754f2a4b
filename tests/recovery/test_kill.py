# SPDX-License-Identifier: Apache-2.0
"""kill -9 of each process of an instance, at random: what was acknowledged is there, and whole."""

from __future__ import annotations

import os
import time
from typing import Final

import pytest

from tests.recovery.kills import VICTIMS, kill_round
from tests.recovery.rounds import Ward

pytestmark = [pytest.mark.fuse, pytest.mark.userns, pytest.mark.root]

SOAK_ROUNDS: Final = int(os.environ.get("SERDAB_SOAK_KILLS", "1000")) // 2
SOAK_SECONDS: Final = float(os.environ.get("SERDAB_SOAK_SECONDS", "3600")) / 2


@pytest.mark.slow
def test_everything_acknowledged_survives_kills_of_every_process(ward: Ward) -> None:
    rounds = [(victim, at_once) for victim in VICTIMS for at_once in (False, True)]
    ward.random.shuffle(rounds)
    for victim, at_once in rounds:
        kill_round(ward, victim, at_once=at_once)
    ward.check_whole()


@pytest.mark.soak
def test_a_thousand_kills(ward: Ward, capsys: pytest.CaptureFixture[str]) -> None:
    victims, started, rounds = list(VICTIMS), time.monotonic(), 0
    while rounds < SOAK_ROUNDS and time.monotonic() - started < SOAK_SECONDS:
        kill_round(ward, ward.random.choice(victims), at_once=ward.random.random() < 0.5)
        rounds += 1
    ward.check_whole()
    with capsys.disabled():
        print(
            f"\nkills: {rounds} rounds, {ward.acknowledged} records acknowledged, all there, "
            f"{time.monotonic() - started:.0f} s"
        )
