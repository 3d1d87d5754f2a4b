# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serdab.linux.durable import create_durably, write_durably


def test_a_created_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    assert create_durably(str(path), b"one")
    assert not create_durably(str(path), b"two")
    assert path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["secret"]


def test_a_written_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "record"
    write_durably(str(path), b"one")
    write_durably(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["record"]


def test_what_a_killed_writer_left_is_overcome(tmp_path: Path) -> None:
    path = tmp_path / "record"
    (tmp_path / f"record.new-{os.getpid()}").write_text("half")
    write_durably(str(path), b"one")
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["record"]


def test_a_failure_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_durably(str(tmp_path / "none/record"), b"one")
    assert caught.value.filename == str(tmp_path / "none/record")
    (tmp_path / "record").mkdir()
    with pytest.raises(IsADirectoryError):
        write_durably(str(tmp_path / "record"), b"one")
    assert os.listdir(tmp_path) == ["record"]
