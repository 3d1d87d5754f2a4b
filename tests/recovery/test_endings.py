# SPDX-License-Identifier: Apache-2.0
"""Ends that nobody planned, short of kill -9: signals, children that go on, a boot cut short."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from typing import Final

import pytest

from tests.harness.command import describe
from tests.recovery.kills import start_next
from tests.recovery.processes import PATIENCE_S, Family, Process, wait_until
from tests.recovery.rounds import Ward

pytestmark = [pytest.mark.fuse, pytest.mark.userns, pytest.mark.root]

BOOT_KILLS: Final = 4
SOAK_BOOT_KILLS: Final = int(os.environ.get("SERDAB_SOAK_BOOT_KILLS", "300"))


def test_what_children_wrote_before_the_end_does_not_hurt(ward: Ward) -> None:
    for _ in range(2):
        run = ward.start_recorder("linger")
        ward.settle(run)
        assert run.process.returncode == 0
        assert run.last_number("ack") == ward.acknowledged
        ward.check_gone(run)
    assert ward.acknowledged == 80
    ward.check_whole()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_command_ends_everything_in_order(
    ward: Ward, number: signal.Signals
) -> None:
    run = ward.start_recorder()
    for _ in range(10):
        run.expect("ack")
    run.find_family()
    run.process.send_signal(number)
    errors = ward.settle(run)
    # Of what keys send it dies, whoever did: a shell tells the two apart.
    expected = -number if number == signal.SIGINT else 128 + number
    assert run.process.returncode == expected, errors
    ward.check_gone(run)
    ward.check_whole()


def test_a_program_that_ignores_signals_ends_after_the_command_was_killed(ward: Ward) -> None:
    script = "trap '' TERM HUP INT; exec /bin/probe run /data"
    run = ward.start("/bin/sh", "-c", script)
    run.expect("have")
    run.expect("ack")
    family = run.find_family()
    # Its five seconds of patience with the program begin once somebody waits for their end.
    family.kernel.kill(signal.SIGSTOP)
    family.cli.kill()
    next_one = start_next(ward)
    try:
        assert next_one.process.stderr is not None
        assert b"waiting for the last run" in next_one.process.stderr.readline()
    finally:
        family.kernel.kill(signal.SIGCONT)
    ward.settle(run)
    ward.expect_all(next_one)
    ward.settle(next_one)
    ward.check_gone(run)
    ward.check_gone(next_one)
    ward.check_whole()


def test_the_second_of_two_runs_is_told_who_holds_the_instance(ward: Ward) -> None:
    run = ward.start_recorder()
    family = run.find_family()
    second = ward.box.run("/bin/probe", "verify", "/data")
    assert second.returncode == 125, describe(second)
    assert b"[busy]" in second.stderr, describe(second)
    assert f"process {family.cli.pid}".encode() in second.stderr, describe(second)
    family.cli.kill()
    third = start_next(ward)
    ward.settle(run)
    ward.expect_all(third)
    ward.settle(third)
    ward.check_gone(third)
    ward.check_gone(run)
    ward.check_whole()


def test_a_command_that_waits_for_the_last_one_can_be_ended(ward: Ward) -> None:
    ward.check_whole()
    # As an fs server does that still writes: locked, and by nobody who uses it.
    closing = os.open(ward.box.path / "run", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(closing, fcntl.LOCK_EX)
        run = ward.start("/bin/probe", "verify", "/data")
        assert run.process.stderr is not None
        assert b"waiting for the last run" in run.process.stderr.readline()
        run.process.terminate()
        assert run.process.wait(PATIENCE_S / 2) == 128 + signal.SIGTERM
    finally:
        os.close(closing)
    ward.settle(run)
    ward.check_gone(run)
    ward.check_whole()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_what_keys_send_before_the_boot_is_died_of(ward: Ward, number: signal.Signals) -> None:
    ward.check_whole()
    closing = os.open(ward.box.path / "run", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(closing, fcntl.LOCK_EX)
        run = ward.start("/bin/probe", "verify", "/data")
        assert run.process.stderr is not None
        assert b"waiting for the last run" in run.process.stderr.readline()
        run.process.send_signal(number)
        assert run.process.wait(PATIENCE_S / 2) == -number
    finally:
        os.close(closing)
    ward.settle(run)
    ward.check_gone(run)


def boot_round(ward: Ward, ending: signal.Signals, delay_s: float) -> None:
    """End the command some time after its start, and let the next run begin at once."""
    run = ward.start("/bin/probe", "run", "/data")
    time.sleep(delay_s)
    run.process.send_signal(ending)
    if ending != signal.SIGKILL:
        # It ends in order, and is in use until then.
        assert run.process.wait(PATIENCE_S) in (-ending, 128 + ending)
    next_one = start_next(ward)
    ward.settle(run)
    ward.expect_all(next_one)
    ward.settle(next_one)
    ward.check_gone(next_one)
    ward.check_gone(run)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_that_ends_while_it_boots_leaves_nothing(
    ward: Ward, ending: signal.Signals
) -> None:
    for number in range(BOOT_KILLS):
        boot_round(ward, ending, (number + ward.random.random()) * 0.4 / BOOT_KILLS)
    ward.check_whole()


@pytest.mark.soak
def test_three_hundred_commands_that_end_while_they_boot(ward: Ward) -> None:
    for _ in range(SOAK_BOOT_KILLS):
        ending = ward.random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
        boot_round(ward, ending, ward.random.random() * 0.5)
    ward.check_whole()


@pytest.mark.slow
def test_a_kernel_process_that_is_killed_while_it_boots_leaves_nothing(ward: Ward) -> None:
    for number in range(BOOT_KILLS):
        run = ward.start("/bin/probe", "run", "/data")
        kernel: list[Process] = []

        def started(kernel: list[Process] = kernel, pid: int = run.process.pid) -> bool:
            kernel[:] = Family.find_kernel(pid)
            return bool(kernel)

        wait_until(started, "the kernel process")
        time.sleep(number * 0.25 / BOOT_KILLS)
        kernel[0].kill()
        errors = ward.settle(run)
        assert run.process.returncode == 125 or run.last_number("have") is not None, errors
        # Who notices first, the caller or a server, is a race; that somebody says so is not.
        assert "ended unexpectedly" in errors
        ward.check_gone(run)
    ward.check_whole()
