# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness.leftovers import SESSION_VARIABLE, find_mounts, find_processes
from tests.recovery.processes import wait_until


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
