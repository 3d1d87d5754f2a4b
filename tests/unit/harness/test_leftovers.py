# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.command import Started
from tests.harness.leftovers import (
    SESSION_VARIABLE,
    end_processes,
    find_mounts,
    find_processes,
    now_ticks,
)
from tests.recovery.processes import find_marked, wait_until


def start_sleeper(cwd: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "300"], cwd=cwd, env={"PATH": os.environ["PATH"], **env})


def test_a_process_that_carries_the_mark_is_found_until_it_ends(tmp_path: Path) -> None:
    with start_sleeper(Path("/"), {SESSION_VARIABLE: "some-mark"}) as process:
        try:
            found = find_processes("some-mark", tmp_path, patience_s=0)
            assert f"{process.pid}: sleep 300" in found
        finally:
            process.kill()
    # The sleeper is gone, and whoever else runs on this machine has another mark.
    assert not any(
        "sleep 300" in line for line in find_processes("some-mark", tmp_path, patience_s=5)
    )


def test_a_grandchild_that_works_below_the_directory_is_found(tmp_path: Path) -> None:
    shell = subprocess.run(
        ["sh", "-c", "sleep 300 >/dev/null 2>&1 & echo $!"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        check=True,
    )
    pid = int(shell.stdout)
    try:
        # Until it has executed sleep(1) it is a copy of the shell.
        wait_until(
            lambda: f"{pid}: sleep 300" in find_processes("no-mark", tmp_path, patience_s=0),
            "the sleeper",
        )
        shorter = tmp_path.with_name(tmp_path.name[:-1])
        assert not any(
            line.startswith(f"{pid}:") for line in find_processes("no-mark", shorter, patience_s=0)
        )
    finally:
        os.kill(pid, 9)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_mount_below_the_directory_is_found_whatever_its_name(tmp_path: Path) -> None:
    target = tmp_path / "with a blank"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", target], check=True)
    try:
        assert find_mounts(tmp_path) == {str(target)}
    finally:
        subprocess.run(["umount", target], check=True)
    assert not find_mounts(tmp_path)


def test_what_started_since_is_ended_and_what_was_there_stays(tmp_path: Path) -> None:
    mark = "another-mark"
    with ExitStack() as stack:
        old = stack.enter_context(start_sleeper(Path("/"), {SESSION_VARIABLE: mark}))
        stack.callback(old.kill)
        # Its environment is there a moment after it has executed sleep(1).
        wait_until(lambda: find_marked(SESSION_VARIABLE, mark) != [], "the sleeper")
        (known,) = find_marked(SESSION_VARIABLE, mark)
        wait_until(lambda: now_ticks() > int(known.started), "the next tick of the clock")
        since = now_ticks()
        new = stack.enter_context(start_sleeper(Path("/"), {SESSION_VARIABLE: mark}))
        stack.callback(new.kill)
        assert end_processes(mark, tmp_path, since=since) == [f"{new.pid}: sleep 300"]
        assert new.wait() == -signal.SIGKILL
        assert old.poll() is None


def test_a_failure_within_a_with_statement_ends_the_process() -> None:
    with pytest.raises(AssertionError), Started(["sleep", "300"]) as process:
        raise AssertionError
    assert process.returncode == -signal.SIGKILL


def test_what_a_failed_test_leaves_is_gone_before_the_next(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text(
        "import subprocess\n"
        "left = []\n"
        "def test_one(tmp_path):\n"
        '    left.append(subprocess.Popen(["sleep", "300"], cwd=tmp_path))\n'
        "    assert False\n"
        "def test_two():\n"
        "    assert left[0].poll() == -9\n"
    )
    env = {name: value for name, value in os.environ.items() if name != SESSION_VARIABLE}
    plugins = [f"-p{name}" for name in ("tests.conftest", "no:randomly", "no:cacheprovider")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, *plugins,
         "--basetemp", tmp_path / "base", tmp_path / "test_two.py"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "ended after the failure" in done.stdout
    assert ": sleep 300" in done.stdout
