# SPDX-License-Identifier: Apache-2.0
"""Whom a kill -9 hits, one round of it, and who may come next."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from tests.harness.instances import wait_until_unused
from tests.recovery.processes import Family, Process
from tests.recovery.rounds import Run, Ward

VICTIMS: Final[dict[str, Callable[[Family], tuple[Process, ...]]]] = {
    "the command": lambda family: (family.cli,),
    "the kernel process": lambda family: (family.kernel,),
    "the fs server": lambda family: (family.volume,),
    "all fs servers": lambda family: family.servers,
    "the launcher": lambda family: (family.launcher,),
    "the program": lambda family: family.inside,
    "all at once": lambda family: family.everybody(),
}


def start_next(ward: Ward) -> Run:
    """Start a run at once, while the last one may still be writing."""
    wait_until_unused(ward.box.path)
    return ward.start(*ward.program, "verify", "/data")


def kill_round(ward: Ward, victim: str, *, at_once: bool) -> None:
    """Start, let it promise, kill one, start again; ``at_once``: without waiting for its end."""
    run = ward.start_recorder()
    for _ in range(ward.random.randrange(40)):
        run.expect("ack")
    family = run.find_family()
    victims = list(VICTIMS[victim](family))
    ward.random.shuffle(victims)
    print(f"kill -9 of {victim}{', and the next run at once' if at_once else ''}")
    time.sleep(ward.random.random() * 0.03)
    for process in victims:
        process.kill()
    if at_once:
        next_one = start_next(ward)
        ward.settle(run)
        ward.expect_all(next_one)
        ward.settle(next_one)
        ward.check_gone(next_one)
    else:
        ward.settle(run)
    ward.check_gone(run)
