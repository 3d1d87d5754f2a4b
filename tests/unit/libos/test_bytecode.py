# SPDX-License-Identifier: Apache-2.0
"""Where byte code is kept: one directory for each state of the code, eight at most."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serdab.errors import EnvironmentRefused
from serdab.libos import bytecode
from serdab.libos.bytecode import byte_code_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "serdab/pyc"


def test_other_code_has_another_directory(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = byte_code_cache()
    assert byte_code_cache() == first
    monkeypatch.setattr(bytecode, "code_hash", lambda: bytes(32))
    assert byte_code_cache() != first
    assert len(list(cache.iterdir())) == 2


def test_the_oldest_go_when_there_are_too_many(cache: Path) -> None:
    cache.mkdir(mode=0o700, parents=True)
    for number in range(9):
        (cache / f"old-{number}").mkdir()
        (cache / f"old-{number}/x.pyc").write_bytes(b"")
        os.utime(cache / f"old-{number}", (number, number))
    mine = Path(byte_code_cache())
    left = {path.name for path in cache.iterdir()}
    assert left == {mine.name, *(f"old-{number}" for number in range(2, 9))}


def test_a_cache_that_others_write_to_is_refused(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(EnvironmentRefused, match="open to others"):
        byte_code_cache()
