# SPDX-License-Identifier: Apache-2.0
"""A volume remembers the greatest version_number of the builds that used it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serdab.errors import RollbackError, VerificationError
from serdab.sefs.volume import open_volume
from serdab.structs import replace
from serdab.trust.freshness import OFF, RECORD, open_watched, refusal_of
from tests.harness.homes import NamedHome
from tests.unit.trust.watched import KEY, Place, only_record


def remembered(volumes: Path) -> object:
    return json.loads(only_record(volumes).read_text())["version_number"]


def refused(place: Place, ours: int, known: int, **changes: object) -> None:
    before = place.content()
    with pytest.raises(RollbackError) as caught:
        place.open(version_number=ours, **changes)
    assert caught.value.expected == f"version_number {known} or greater"
    assert caught.value.found == f"version_number {ours}"
    assert "--accept-rollback" in caught.value.hint
    assert place.content() == before


def test_an_older_build_is_refused_and_a_newer_one_is_remembered(
    place: Place, volumes: Path
) -> None:
    assert place.write("a", version_number=3) == []
    assert remembered(volumes) == 3
    assert place.open_lines(version_number=7) == []
    assert remembered(volumes) == 7, "that it was opened is enough"
    refused(place, 6, 7)
    refused(place, 0, 7)
    assert place.write("b", version_number=7) == []


def test_an_older_build_is_accepted_once_said_and_recorded(place: Place, volumes: Path) -> None:
    place.write("a", version_number=7)
    (line,) = place.open_lines(version_number=1, accept_rollback=True)
    assert "--accept-rollback" in line
    assert "version_number 7" in line
    assert "version_number 1" in line
    assert remembered(volumes) == 1
    assert place.write("b", version_number=1) == []
    assert place.write("c", version_number=7) == []
    refused(place, 1, 7)


def test_a_reader_is_refused_too_and_records_nothing(place: Place, volumes: Path) -> None:
    place.write("a", version_number=7)
    before = only_record(volumes).read_bytes()
    older = replace(place.watch, version_number=1)
    with pytest.raises(RollbackError, match="older build"):
        open_watched(NamedHome(place.path), older, key=KEY, read_only=True)
    accepting = replace(older, accept_rollback=True)
    watched = open_watched(NamedHome(place.path), accepting, key=KEY, read_only=True)
    watched.volume.close()
    (line,) = watched.notices
    assert "version_number 7" in line
    assert only_record(volumes).read_bytes() == before


def test_off_in_an_older_build_does_not_let_it_in(place: Place, volumes: Path) -> None:
    place.write("a", version_number=7)
    before = only_record(volumes).read_bytes()
    refused(place, 1, 7, policy=OFF)
    (line,) = place.open_lines(version_number=1, policy=OFF, accept_rollback=True)
    assert "version_number 7" in line
    assert place.open_lines(version_number=7, policy=OFF) == []
    assert only_record(volumes).read_bytes() == before, "off tells nobody"


def test_who_has_no_number_leaves_the_one_that_is_remembered(place: Place, volumes: Path) -> None:
    place.write("a", version_number=7)
    assert place.write("b", version_number=None) == []
    assert remembered(volumes) == 7
    refused(place, 1, 7)


def test_a_new_volume_takes_any_build(place: Place) -> None:
    assert place.write("a", version_number=7) == []
    other = Place(place.path.with_name("other"))
    assert other.write("a", version_number=1) == []


def test_fsck_says_what_a_boot_would(place: Place) -> None:
    place.write("a", version_number=7)
    volume = open_volume(place.path, key=KEY, read_only=True)
    for policy in (OFF, RECORD):
        found = refusal_of(str(place.path), policy, volume, version_number=1)
        assert found is not None
        assert found.found == "version_number 1"
        assert refusal_of(str(place.path), policy, volume) is None
    volume.close()


class TestRecords:
    def change(self, volumes: Path, **changes: object) -> None:
        path = only_record(volumes)
        value = json.loads(path.read_text())
        for name, new in changes.items():
            if new is None:
                del value[name]
            else:
                value[name] = new
        path.write_text(json.dumps(value))

    def test_those_of_format_1_are_read_as_number_0(self, place: Place, volumes: Path) -> None:
        place.write("a", version_number=7)
        self.change(volumes, format=1, version_number=None)
        assert place.write("b", version_number=1) == []
        value = json.loads(only_record(volumes).read_text())
        assert (value["format"], value["version_number"]) == (2, 1)

    @pytest.mark.parametrize("number", [None, "7", -1, 1 << 32, True, 7.0])
    def test_those_of_format_2_have_one(self, place: Place, volumes: Path, number: object) -> None:
        place.write("a", version_number=7)
        self.change(volumes, version_number=number)
        with pytest.raises(VerificationError, match="damaged"):
            place.open(version_number=7)

    def test_format_1_has_none(self, place: Place, volumes: Path) -> None:
        place.write("a", version_number=7)
        self.change(volumes, format=1)
        with pytest.raises(VerificationError, match="damaged"):
            place.open(version_number=7)

    def test_an_unknown_format_is_refused(self, place: Place, volumes: Path) -> None:
        place.write("a", version_number=7)
        self.change(volumes, format=3)
        with pytest.raises(VerificationError, match="damaged"):
            place.open(version_number=7)
