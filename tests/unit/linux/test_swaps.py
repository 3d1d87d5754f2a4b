# SPDX-License-Identifier: Apache-2.0
"""What is put in the way while a verb runs ends it with a refusal in words of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from serdab.errors import swap_of
from serdab.linux.dirfd import DirFd


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_is_in_the_way_of_a_rename_is_told(tmp_path: Path, kind: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/name").touch()
    if kind == "link":
        (tmp_path / "way").symlink_to("real")
    else:
        (tmp_path / "way").touch()
    with DirFd.at(str(tmp_path)) as directory, pytest.raises(NotADirectoryError) as caught:
        directory.rename("way/name", "name")
    error = swap_of(caught.value)
    assert error is not None
    assert error.exit_code == 2
    assert "put in the way" in error.message


def test_what_is_missing_is_no_swap(tmp_path: Path) -> None:
    with DirFd.at(str(tmp_path)) as directory, pytest.raises(FileNotFoundError) as caught:
        directory.rename("way/name", "name")
    assert swap_of(caught.value) is None
