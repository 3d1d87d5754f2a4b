# SPDX-License-Identifier: Apache-2.0
"""What `new` and `init` forget: the volumes at or below their path, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serdab.instance.create import init_instance, new_instance
from serdab.trust import records

OLD = b"\x11" * 16
MADE = {"new": new_instance, "init": init_instance}


def _real(path: Path) -> str:
    return os.path.realpath(path)


@pytest.mark.parametrize("verb", MADE)
def test_volumes_below_the_path_are_forgotten_and_those_beside_it_are_not(
    tmp_path: Path, volumes: Path, verb: str
) -> None:
    here = _real(tmp_path / "x")
    below = [f"{here}/run/mount/__ROOT", f"{here}/mnt/upper", f"{here}/a/b/c", here]
    beside = [f"{here}y/mnt/upper", f"{here}y", _real(tmp_path / "w"), _real(tmp_path)]
    for path in below + beside:
        records.remember_path(path, OLD)
    if verb == "init":
        os.mkdir(here)
    MADE[verb](here)
    assert [path for path in below if records.volume_at(path)] == []
    assert [path for path in beside if records.volume_at(path) != OLD] == []


@pytest.mark.parametrize(
    "name",
    [b"plain", b"\xff\xfe", b"\\xff", b"tail\\xfe\xff"],
    ids=["plain", "raw", "text", "both"],
)
def test_a_name_that_reads_like_another_is_not_taken_for_it(
    tmp_path: Path, volumes: Path, name: bytes
) -> None:
    # The note holds text, in which these names of the parent are one.
    ours = os.fsdecode(os.fsencode(_real(tmp_path)) + b"/\xff")
    theirs = os.fsdecode(os.fsencode(_real(tmp_path)) + b"/\\xff")
    below = os.fsdecode(name)
    records.remember_path(f"{ours}/{below}", OLD)
    records.remember_path(f"{theirs}/{below}", OLD)
    records.forget_below(ours)
    assert records.volume_at(f"{theirs}/{below}") == OLD
    # Both spellings in one name: the text cannot be undone, and what is in doubt is remembered.
    is_clear = name != b"tail\\xfe\xff"
    assert (records.volume_at(f"{ours}/{below}") is None) == is_clear


def test_a_damaged_note_of_another_volume_is_in_nobody_s_way(tmp_path: Path, volumes: Path) -> None:
    records.remember_path(_real(tmp_path / "elsewhere"), OLD)
    (note,) = volumes.glob("at-*.json")
    note.write_bytes(b"{")
    new_instance(_real(tmp_path / "x"))
    assert note.read_bytes() == b"{"


def test_a_damaged_note_of_the_writable_layer_itself_is_forgotten(
    tmp_path: Path, volumes: Path
) -> None:
    upper = _real(tmp_path / "x/run/mount/__ROOT")
    records.remember_path(upper, OLD)
    (note,) = volumes.glob("at-*.json")
    note.write_bytes(b"{")
    new_instance(_real(tmp_path / "x"))
    assert records.volume_at(upper) is None
