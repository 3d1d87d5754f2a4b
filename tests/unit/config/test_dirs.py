# SPDX-License-Identifier: Apache-2.0
"""The user's directories, and files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serdab.config import dirs
from serdab.errors import EnvironmentRefused


def test_the_state_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert dirs.state_dir() == "/somewhere/serdab"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert dirs.state_dir() == "/home/me/.local/state/serdab"


def test_a_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(EnvironmentRefused, match="open to others"):
        dirs.make_private(str(tmp_path))


def test_a_created_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    assert dirs.create_durably(str(path), b"one")
    assert not dirs.create_durably(str(path), b"two")
    assert path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["secret"]


def test_a_written_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "record"
    dirs.write_durably(str(path), b"one")
    dirs.write_durably(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["record"]
