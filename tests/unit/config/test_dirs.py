# SPDX-License-Identifier: Apache-2.0
"""The user's directories: where they are, and who may write to them."""

from __future__ import annotations

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
