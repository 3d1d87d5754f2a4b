# SPDX-License-Identifier: Apache-2.0
"""A canary hears of everything that is done to it, whatever it was reached by."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.canaries import Canaries

Act = Callable[[Path], object]


def read_by_descriptor(path: Path) -> None:
    fd = os.open(path, os.O_PATH)
    os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
    os.close(fd)


def read_by_link(path: Path) -> None:
    (path.parent / "lnk").symlink_to(path)
    (path.parent / "lnk/deep/secret").read_bytes()


ACTS: dict[str, tuple[Act, str]] = {
    "read": (lambda path: (path / "deep/secret").read_bytes(), "secret: read"),
    "read by a link": (read_by_link, "secret: read"),
    "opened by a descriptor": (lambda path: read_by_descriptor(path / "secret"), "opened"),
    "listed": (lambda path: os.listdir(path / "mount/__ROOT"), "read, opened"),
    "written": (lambda path: (path / "secret").write_text("x"), "written"),
    "cut": (lambda path: os.truncate(path / "secret", 0), "written"),
    "mode": (lambda path: (path / "deep").chmod(0o700), "attributes changed"),
    "made": (lambda path: (path / "deep/new").mkdir(), "new: made"),
    "linked": (lambda path: os.link(path / "secret", path.parent / "x"), "attributes changed"),
    "removed": (lambda path: (path / "lib/secret").unlink(), "secret: removed"),
    "moved": (lambda path: os.rename(path / "lib", path.parent / "lib"), "lib: moved from"),
    "moved in": (lambda path: os.rename(path.parent / "in", path / "in"), "in: moved to"),
    "executed": (lambda path: subprocess.run([path / "bin/init"], check=False), "init"),
}


@pytest.mark.parametrize("name", ACTS)
def test_it_hears(tmp_path: Path, name: str) -> None:
    act, expected = ACTS[name]
    (tmp_path / "in").mkdir()
    canaries = Canaries(tmp_path / "canaries")
    try:
        if name == "executed":
            with pytest.raises(OSError, match="Exec format"):
                act(canaries.path)
        else:
            act(canaries.path)
        heard = canaries.touched()
    finally:
        canaries.close()
    assert any(expected in line for line in heard), heard
    if name != "executed":
        assert all(line.endswith(f"by process {os.getpid()}") for line in heard), heard


def test_what_happens_beside_it_is_nothing(tmp_path: Path) -> None:
    with Canaries(tmp_path / "canaries"):
        (tmp_path / "beside").write_text("x")
        os.listdir(tmp_path)
        (tmp_path / "canaries/secret").stat()


def test_a_touch_fails_the_test(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), Canaries(tmp_path / "canaries") as canaries:
        (canaries.path / "secret").read_bytes()


def test_one_that_is_read_by_right_hears_of_changes_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(AssertionError), Canaries(file, hears_reads=False):
        file.write_text("y")
    with Canaries(file, hears_reads=False):
        file.read_bytes()
