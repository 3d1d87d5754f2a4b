# SPDX-License-Identifier: Apache-2.0
"""SQLite inside, killed while it commits: the database is sound and no committed row is lost."""

from __future__ import annotations

import os
import time
from typing import Final

import pytest

from tests.recovery.kills import VICTIMS, kill_round
from tests.recovery.rounds import Ward

pytestmark = [pytest.mark.fuse, pytest.mark.userns, pytest.mark.root]

ROUNDS: Final = 3
SOAK_ROUNDS: Final = int(os.environ.get("SERDAB_SOAK_SQLITE", "200"))
SOAK_SECONDS: Final = float(os.environ.get("SERDAB_SOAK_SECONDS", "3600")) / 4


@pytest.mark.slow
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_no_committed_row_is_lost(ledger_ward: Ward, journal: str) -> None:
    ledger_ward.program = ("/bin/ledger", journal)
    victims = ["all at once", *VICTIMS]
    for number in range(ROUNDS):
        victim = victims[0] if number == 0 else ledger_ward.random.choice(victims)
        kill_round(ledger_ward, victim, at_once=number % 2 == 1)
    ledger_ward.check_whole()


@pytest.mark.soak
@pytest.mark.parametrize("journal", ["wal", "delete", "truncate", "persist"])
def test_two_hundred_kills_of_sqlite(
    ledger_ward: Ward, journal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger_ward.program = ("/bin/ledger", journal)
    victims, started, rounds = list(VICTIMS), time.monotonic(), 0
    while rounds < SOAK_ROUNDS and time.monotonic() - started < SOAK_SECONDS:
        at_once = ledger_ward.random.random() < 0.5
        kill_round(ledger_ward, ledger_ward.random.choice(victims), at_once=at_once)
        rounds += 1
    ledger_ward.check_whole()
    with capsys.disabled():
        print(
            f"\nsqlite, {journal}: {rounds} kills, {ledger_ward.acknowledged} commits "
            f"acknowledged, all there, {time.monotonic() - started:.0f} s"
        )
