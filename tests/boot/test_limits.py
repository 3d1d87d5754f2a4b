# SPDX-License-Identifier: Apache-2.0
"""A fork bomb and a memory hog are stopped, and the host does not notice."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.boot.test_programs import finish, start, wait_for_line
from tests.harness.command import describe
from tests.recovery.processes import control_groups, find_family
from tests.sandbox.conftest import Box

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


@pytest.fixture(scope="module")
def limited(configured: Callable[..., Box]) -> Box:
    return configured(
        resource_limits={"max_num_of_threads": 40, "user_space_size": "200MB"},
        process={"default_stack_size": "4MB"},
    )


def test_a_fork_bomb_is_stopped(limited: Box) -> None:
    born = int(limited.probe("forks", "2000"))
    assert 30 <= born <= 40


def test_children_that_fork_on_count_too(limited: Box) -> None:
    script = "i=0; while [ $i -lt 8 ]; do /bin/probe forks 20 & i=$((i+1)); done; wait; echo end"
    result = limited.run("/bin/sh", "-c", script)
    born = sum(int(word) for word in result.stdout.split() if word.isdigit())
    assert born <= 40, describe(result)


def test_a_memory_hog_is_stopped(limited: Box) -> None:
    result = limited.run("/bin/probe", "eat", str(1 << 30))
    if result.returncode == 0:
        assert int(result.stdout) < 300 << 20  # told by malloc
    else:
        assert result.returncode == 128 + signal.SIGKILL, describe(result)
        assert b"memory limit" in result.stderr, describe(result)


def test_what_stays_within_the_limit_runs(limited: Box) -> None:
    assert int(limited.probe("eat", str(64 << 20))) == 64 << 20


def test_the_stack_is_limited(limited: Box) -> None:
    assert limited.out("/bin/sh", "-c", "ulimit -s") == "4096"


def test_no_control_group_is_left(limited: Box) -> None:
    process = start(limited, "/bin/sh", "-c", "echo on; read line")
    assert wait_for_line(process) == b"on"
    makers = {find_family(process.pid, limited.path).kernel.pid}
    assert control_groups(makers) or not limited.is_root
    assert finish(process)[0] == 1  # the end of the input
    assert not control_groups(makers)
