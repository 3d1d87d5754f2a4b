# SPDX-License-Identifier: Apache-2.0
"""A state directory and a volume of their own for each test of freshness."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.trust.watched import Place


@pytest.fixture
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the records are."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/serdab/volumes"


@pytest.fixture
def place(tmp_path: Path, volumes: Path) -> Place:
    """Return a place for a volume; nothing is there yet."""
    return Place(tmp_path / "volume")
