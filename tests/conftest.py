# SPDX-License-Identifier: Apache-2.0
"""What every test shares: the fixtures of ``tests/harness``, skips that count, nothing left behind.

* ``serdab``       the real command, with state, runtime and cache directories of its own
* ``as_user``      the same machine seen by an ordinary user
* ``compile_c``    small C programs, linked statically
* ``make_instance`` instances built by the real verbs

In CI (``CI=true``) a skipped test fails unless ``tests/allowed-skips.txt`` names it with a reason.
At the end of the session a mount or a process that a test left behind fails the run; what a test
that failed leaves is ended before the next one.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.harness.leftovers import (
    SESSION_VARIABLE,
    end_mounts,
    end_processes,
    find_mounts,
    find_processes,
    now_ticks,
)
from tests.harness.sampling import WHOLE
from tests.harness.skips import is_allowed, load_allowed
from tests.harness.surroundings import make_plain

pytest_plugins = [
    "tests.harness.ownmounts",
    "tests.harness.prepared",
    "tests.harness.command",
    "tests.harness.cprogram",
    "tests.harness.user",
    "tests.harness.instances",
    "tests.harness.nonces",
    "tests.harness.times",
]

# How long an example takes says something about the machine, and nothing about us.
settings.register_profile("serdab", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("serdab")

make_plain()

_FAILED = pytest.StashKey[bool]()
_ALLOWED_SKIPS = load_allowed(Path(__file__).parent / "allowed-skips.txt")


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport, nodeid: str) -> None:
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    if is_allowed(nodeid, _ALLOWED_SKIPS):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = (
        f"{nodeid} was skipped in CI, and tests/allowed-skips.txt does not name it: {reason}"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report, item.nodeid)
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report, collector.nodeid)
    return report


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the session if a mount or a process of ours outlives it."""
    mark = os.environ.setdefault(SESSION_VARIABLE, f"{os.getpid()}-{os.urandom(4).hex()}")
    base = tmp_path_factory.getbasetemp()
    mounts_before = find_mounts(base)
    yield
    mounts = find_mounts(base) - mounts_before
    patience_s = float(os.environ.get("SERDAB_TEST_PATIENCE_S", "60"))
    processes = find_processes(mark, base, patience_s=patience_s)
    problems = [f"mount left behind: {where}" for where in sorted(mounts)]
    problems += [f"process left behind: {process}" for process in processes]
    assert not problems, "\n".join(problems)


@pytest.fixture(autouse=True)
def _a_failure_stays_alone(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """End what a test that failed left behind, or those after it would fail with it."""
    base = tmp_path_factory.getbasetemp()
    since, mounts_before = now_ticks(), find_mounts(base)
    yield
    if request.node.stash.get(_FAILED, False):
        ended = end_processes(os.environ[SESSION_VARIABLE], base, since=since)
        ended += end_mounts(find_mounts(base) - mounts_before)
        request.node.add_report_section("teardown", "ended after the failure", "\n".join(ended))


@pytest.fixture(autouse=True)
def _long_runs_are_no_hangs(request: pytest.FixtureRequest) -> None:
    """The deadline of a test (``faulthandler_timeout``) is not meant for soak and fuzz runs.

    Nor for a test that takes all of its cases.
    """
    long = ("soak", "fuzz", "sampled") if WHOLE else ("soak", "fuzz")
    if any(request.node.get_closest_marker(name) for name in long):
        faulthandler.cancel_dump_traceback_later()
