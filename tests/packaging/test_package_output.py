# SPDX-License-Identifier: Apache-2.0
"""Where ``serdab package`` writes: a place without room or right, and what a killed run left."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness.command import describe
from tests.packaging.test_package import Publisher, made, publisher, refused

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

__all__ = ["made", "publisher"]


def test_a_signature_that_a_killed_run_left_is_no_obstacle_to_the_same_package(
    publisher: Publisher, made: Path, tmp_path: Path
) -> None:
    output = tmp_path / made.name
    left = Path(f"{output}.sig")
    shutil.copy(f"{made}.sig", left)
    result = publisher.package(output)
    assert result.returncode == 0, describe(result)
    assert output.read_bytes() == made.read_bytes()
    # One of another package is not ours to replace.
    output.unlink()
    left.write_bytes(left.read_bytes()[::-1])
    before = left.read_bytes()
    refused(publisher.package(output), 2, left.name, "another")
    assert list(tmp_path.iterdir()) == [left]
    assert left.read_bytes() == before


@pytest.mark.root
@pytest.mark.parametrize(
    ("option", "code", "words"),
    [
        ("size=64k", 6, ("no room", "no space left", "make room")),
        ("ro", 2, ("cannot be written", "elsewhere")),
    ],
)
def test_where_it_cannot_be_written_is_said(
    publisher: Publisher, tmp_path: Path, option: str, code: int, words: tuple[str, ...]
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", option, "none", tmp_path], check=True)
    try:
        output = tmp_path / "x.tar.gz"
        refused(publisher.package(output), code, "package: ", str(output), *words, "hint: ")
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_directory_that_is_not_there_is_said(publisher: Publisher, tmp_path: Path) -> None:
    output = tmp_path / "no/x.tar.gz"
    refused(publisher.package(output), 2, str(output), "no directory", "hint: ")
