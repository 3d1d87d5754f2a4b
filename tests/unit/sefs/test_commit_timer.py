# SPDX-License-Identifier: Apache-2.0
"""A volume that is told so commits by itself, a while after a change."""

from __future__ import annotations

import stat
import time

import pytest

from serdab.keys import Key
from serdab.sefs.limits import DEFAULT_LIMITS, VolumeLimits
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.volume import Volume, open_volume_in
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union


def opened(commit_s: float) -> tuple[Union, Volume]:
    limits = VolumeLimits(commit_s=commit_s)
    key = Key(bytes(16))
    volume = open_volume_in(MemoryDir(), key=key, create=True, limits=limits)
    fs = Union(volume, None)
    fs.syncfs()
    return fs, volume


def make_file(fs: Union, name: bytes) -> None:
    fs.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, 0, 0, 0)


def sequence(volume: Volume) -> int:
    assert volume.position is not None
    return volume.position.sequence


def test_a_change_is_committed_when_its_time_has_come() -> None:
    fs, volume = opened(0.05)
    before = sequence(volume)
    make_file(fs, b"a")
    deadline = time.monotonic() + 60
    while sequence(volume) == before:
        assert time.monotonic() < deadline
        delay = fs.tick()
        assert delay is not None
        assert delay <= 30
        time.sleep(0.01)
    assert sequence(volume) == before + 1


@pytest.fixture
def _at_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)


@pytest.mark.usefixtures("_at_one_moment")
def test_without_a_time_it_waits_to_be_asked() -> None:
    fs, volume = opened(0)
    before = sequence(volume)
    make_file(fs, b"a")
    assert fs.tick() == pytest.approx(DEFAULT_LIMITS.checkpoint_s)
    assert sequence(volume) == before


@pytest.mark.usefixtures("_at_one_moment")
def test_what_was_committed_asks_for_no_other_commit() -> None:
    fs, volume = opened(1000)
    make_file(fs, b"a")
    fs.syncfs()
    after = sequence(volume)
    for _ in range(3):
        assert fs.tick() == pytest.approx(DEFAULT_LIMITS.checkpoint_s)
    assert sequence(volume) == after
