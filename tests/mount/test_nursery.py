# SPDX-License-Identifier: Apache-2.0
"""kill -9 of what makes fs servers, while a service runs: its programs go on mounting."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import serdab
from tests.harness.command import describe
from tests.mount.conftest import Mounter
from tests.recovery.processes import descendants, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

MOUNT = ("mount", "none", "/mnt", "sefs", "0", "dir=s")


@dataclass(frozen=True, slots=True)
class Running:
    """A service whose programs mount; ``env`` is what its commands get besides."""

    mounter: Mounter
    env: dict[str, str]

    def verb(self, *words: str) -> str:
        command = self.mounter.instance.command
        done = command.run("-C", self.mounter.path, *words, env=self.env)
        assert done.returncode == 0, describe(done)
        return done.stdout.decode()

    def start(self) -> int:
        self.mounter.folder("s")
        self.verb("start")
        return int(self.status()["pid"])

    def status(self) -> dict[str, str]:
        command = self.mounter.instance.command
        done = command.run("--json", "-C", self.mounter.path, "status", env=self.env)
        found: dict[str, str] = json.loads(done.stdout)
        return found

    def calls(self, *words: str) -> list[str]:
        lines = self.verb("exec", "/bin/mounter", *words).splitlines()
        return [line.partition(" ")[2] for line in lines]


@pytest.fixture
def running(mounter: Mounter) -> Iterator[Running]:
    service = Running(mounter, {})
    yield service
    mounter.instance.command.run("-C", mounter.path, "stop", "-t", "0")


def kill_nursery(daemon: int) -> None:
    """Kill it, and wait until it has let go of its socket."""
    (nursery,) = (process for process in descendants(daemon) if process.name() == "serdab-nursery")
    nursery.kill()
    wait_until(lambda: not nursery.is_alive(), "the end of the nursery")


def test_programs_mount_after_the_nursery_was_killed(running: Running) -> None:
    daemon = running.start()
    log = Path(running.status()["log"])
    assert running.calls(*MOUNT, "write", "/mnt/f", "text", "umount", "/mnt", "0") == ["ok"] * 3
    for count in (1, 2):
        kill_nursery(daemon)
        for _ in range(2):
            out = running.calls(*MOUNT, "read", "/mnt/f", "umount", "/mnt", "0")
            assert out == ["ok", "text", "ok"], log.read_text()
        said = log.read_text()
        assert said.count("the nursery of fs servers was killed: another one was started") == count
    everybody = descendants(daemon)
    running.verb("stop", "-t", "0")
    wait_until(lambda: not any(p.is_alive() for p in everybody), "the end of all processes")


@pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
def test_no_other_code_than_the_measured_is_started(mounter: Mounter, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(Path(serdab.__file__).parent, other / "serdab")
    running = Running(mounter, {"PYTHONPATH": str(other)})
    try:
        running.verb("build", "-f")
        daemon = running.start()
        with (other / "serdab/version.py").open("a") as file:
            file.write("# another\n")
        kill_nursery(daemon)
        assert running.calls(*MOUNT) == ["EIO"]
        said = Path(running.status()["log"]).read_text()
        assert "no other starts" in said
        assert "has changed since the boot" in said
        # What is mounted is served on.
        assert running.calls("read", "/file") == ["a file", ""]
    finally:
        mounter.instance.command.run("-C", mounter.path, "stop", "-t", "0", env=running.env)
