# SPDX-License-Identifier: Apache-2.0
"""A build that is killed leaves the old one, or the new one, whole; the next build works."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest

from tests.harness.command import describe
from tests.recovery.conftest import seeded
from tests.sandbox.conftest import Box, Place

pytestmark = [pytest.mark.fuse, pytest.mark.userns, pytest.mark.root]

ROUNDS: Final = 4
SOAK_ROUNDS: Final = int(os.environ.get("SERDAB_SOAK_BUILDS", "200"))
LONGEST_S: Final = 1.0


def write_version(box: Box, version: int) -> None:
    """Give the image another version, in a small file and in one that takes its time."""
    (box.path / "image/version").write_text(f"{version}\n")
    block = f"{version:08d}".encode() * 4096
    with (box.path / "image/bulk").open("wb") as file:
        for number in range(256):
            file.write(block + number.to_bytes(4, "big"))


def read_version(box: Box) -> int:
    out = box.out("/bin/sh", "-c", "cat /version; head -c 8 /bulk")
    version, _, bulk = out.partition("\n")
    assert int(version) == int(bulk), f"an image of two builds: {out!r}"
    return int(version)


def check_killed_builds(box: Box, rounds: int) -> None:
    chance = seeded()
    current = 0
    outcomes = set()
    for version in range(1, rounds + 1):
        write_version(box, version)
        process = subprocess.Popen(
            [*box.command.prefix, "-C", str(box.path), "build"],
            env=box.command.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(chance.random() * LONGEST_S)
        process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]))
        process.wait(60)
        found = read_version(box)
        assert found in (current, version), f"expected {current} or {version}, found {found}"
        outcomes.add(found == version)
        current = found
        if version % 3 == 0:
            box.command.ok("-C", box.path, "build")
            assert read_version(box) == version
            current = version
            check_no_leftovers(box.path)
    box.command.ok("-C", box.path, "build")
    assert read_version(box) == rounds
    check_no_leftovers(box.path)


def check_no_leftovers(instance: Path) -> None:
    expected = {"Occlum.json", "build", "image", "initfs", "run"}
    found = {path.name for path in instance.iterdir()} - {".serdab", ".gitignore"}
    assert {name for name in found if "staging" in name} == set(), found
    assert expected <= found


@pytest.fixture
def built(place: Place, recorder: Path) -> Box:
    box = place.build(recorder, files={"/version": b"0\n", "/bulk": b"00000000"})
    for name in ("head",):
        link = box.path / "image/bin" / name
        link.symlink_to("busybox")
    box.command.ok("-C", box.path, "build")
    return box


@pytest.mark.slow
def test_a_killed_build_leaves_one_that_boots(built: Box) -> None:
    check_killed_builds(built, ROUNDS)


@pytest.mark.soak
def test_two_hundred_killed_builds(built: Box) -> None:
    check_killed_builds(built, SOAK_ROUNDS)


def test_a_build_whose_files_belong_to_a_running_instance_is_of_no_harm(built: Box) -> None:
    process = built.command.popen(
        "-C", built.path, "run", "/bin/sh", "-c", "echo up; cat; cat /version",
        stdin=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        write_version(built, 5)
        build = built.command.run("-C", built.path, "build")
        assert build.returncode == 0, describe(build)
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, b"0\n"), errors
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert read_version(built) == 5
