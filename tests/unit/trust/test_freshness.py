# SPDX-License-Identifier: Apache-2.0
"""Freshness of real volumes in a host directory: one test for each thing the storage may do."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from serdab.errors import (
    BusyError,
    EnvironmentRefused,
    RollbackError,
    VerificationError,
)
from serdab.linux.dirfd import DirFd
from serdab.trust import records
from serdab.trust.freshness import ENFORCE, OFF, OpenedHome, open_watched
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union
from tests.harness.homes import NamedHome
from tests.unit.trust.watched import CONF, KEY, Place, only_record


class TestOrdinaryLife:
    def test_sessions_follow_each_other_without_a_word(self, place: Place) -> None:
        assert [place.write(name) for name in "abc"] == [[], [], []]
        assert place.names() == {b"a", b"b", b"c"}

    def test_nothing_is_remembered_of_a_volume_that_was_never_written(
        self, place: Place, volumes: Path
    ) -> None:
        watched = place.open()
        watched.volume.close()
        assert not volumes.exists()
        assert list(place.path.iterdir()) == []

    def test_reading_writes_no_record(self, place: Place, volumes: Path) -> None:
        place.write("a")
        before = only_record(volumes).stat()
        place.names()
        after = only_record(volumes).stat()
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)

    def test_the_record_is_private_and_says_where_the_volume_stands(
        self, place: Place, volumes: Path
    ) -> None:
        place.write("a")
        path = only_record(volumes)
        value = json.loads(path.read_text())
        with place.session() as (_, watched):
            position = watched.volume.position
            assert position is not None
            assert watched.volume.durable_mac.hex() == value["root_mac"]
        assert (value["epoch"], value["sequence"]) == (position.epoch, position.sequence)
        assert value["conf_mac"] == CONF.hex()
        assert value["path"] == str(place.path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [entry.name for entry in path.parent.iterdir()] == ["record.json"]

    def test_a_record_may_lag_behind_after_a_crash(self, place: Place) -> None:
        place.write("a")
        place.crash("b", "c")
        assert place.names() == {b"a", b"b", b"c"}
        place.crash("d")
        place.crash("e")
        assert place.write("f") == []
        assert len(place.names()) == 6

    def test_what_a_killed_session_left_is_durable_before_it_is_recorded(
        self, place: Place, volumes: Path
    ) -> None:
        """It may be in the host's memory only: a power cut must not make a rollback of it."""
        place.write("a")
        place.crash("b", "c")
        before = json.loads(only_record(volumes).read_text())
        watched = place.open()
        value = json.loads(only_record(volumes).read_text())
        anchor = watched.volume.state
        assert value["epoch"] == anchor.epoch > before["epoch"]
        assert value["sequence"] == anchor.sequence > before["sequence"]
        watched.volume.abandon()
        watched.guard.close()

    def test_what_lies_at_the_path_meanwhile_is_not_looked_at(self, place: Place) -> None:
        """A verb holds the directory; whoever writes there puts a link in its place."""
        place.write("a")
        other = Place(place.path.with_name("other"))
        other.write("b")
        with DirFd.at(str(place.path)) as opened:
            place.path.rename(place.path.with_name("aside"))
            place.path.symlink_to(other.path)
            watched = open_watched(OpenedHome(opened), place.watch, key=KEY, read_only=True)
        fs = Union(watched.volume, None)
        assert {entry.name for entry in fs.readdir(ROOT_INO, 0)} == {b".", b"..", b"a"}
        fs.close()
        watched.guard.close()

    def test_readers_share_a_volume(self, place: Place) -> None:
        place.write("a")
        both = [
            open_watched(NamedHome(place.path), place.watch, key=KEY, read_only=True)
            for _ in range(2)
        ]
        for watched in both:
            assert watched.notices == []
            watched.volume.close()
            watched.guard.close()

    def test_a_crash_before_the_first_commit(self, place: Place) -> None:
        place.crash("a", commit=False)
        assert place.names() == set()
        place.write("a")
        place.crash("b", commit=False)
        assert place.names() == {b"a"}

    def test_another_configuration_is_said_once(self, place: Place) -> None:
        place.write("a")
        (line,) = place.open_lines(conf_mac=b"d" * 32)
        assert b"d".hex() * 32 in line
        assert CONF.hex() in line
        assert place.write("b", conf_mac=b"d" * 32) == []

    def test_a_volume_may_move(self, place: Place, tmp_path: Path) -> None:
        place.write("a")
        moved = Place(place.path.rename(tmp_path / "moved"))
        assert moved.write("b") == []
        assert moved.names() == {b"a", b"b"}

    def test_off_remembers_nothing_and_refuses_nothing(self, place: Place, volumes: Path) -> None:
        place.write("a", policy=OFF)
        old = place.save("old")
        place.write("b", policy=OFF)
        place.restore(old)
        assert place.names(policy=OFF) == {b"a"}
        assert not volumes.exists()


class TestRollback:
    def test_an_older_state_is_refused_and_left_as_it_was(self, place: Place) -> None:
        place.write("a")
        old = place.save("old")
        place.write("b")
        place.restore(old)
        before = place.content()
        for _ in range(2):
            with pytest.raises(RollbackError, match="older state") as caught:
                place.open()
            assert "epoch" in caught.value.expected
            assert "epoch" in caught.value.found
            assert "--accept-rollback" in caught.value.hint
        assert place.content() == before

    def test_every_older_checkpoint_is_refused(self, place: Place) -> None:
        copies = []
        for number in range(5):
            place.write(str(number))
            copies.append(place.save(f"copy{number}"))
        for copy in copies[:-1]:
            place.restore(copy)
            with pytest.raises(RollbackError):
                place.open()
        place.restore(copies[-1])
        assert len(place.names()) == 5

    def test_commits_that_are_cut_off_a_log_are_refused(self, place: Place) -> None:
        """Under ``enforce`` the record was told of each."""
        place.write("a")
        watched = place.open(policy=ENFORCE)
        fs = Union(watched.volume, None)
        copies = []
        for name in "bcd":
            fs.mknod(ROOT_INO, name.encode(), stat.S_IFREG | 0o600, 0, 0, 0)
            fs.syncfs()
            copies.append(place.save(f"with-{name}"))
        watched.volume.abandon()
        watched.guard.close()
        for copy in copies[:-1]:
            place.restore(copy)
            with pytest.raises(RollbackError, match="older state"):
                place.open()
        place.restore(copies[-1])
        assert len(place.names()) == 4

    def test_the_older_of_two_anchor_slots_is_refused(self, place: Place) -> None:
        place.write("a")
        place.write("b")
        anchor = place.path / "anchor"
        with place.session() as (_, watched):
            newest = watched.volume.state.epoch
        raw = bytearray(anchor.read_bytes())
        half = len(raw) // 2
        raw[newest % 2 * half : newest % 2 * half + half] = bytes(half)
        anchor.write_bytes(raw)
        with pytest.raises(RollbackError, match="older state"):
            place.open()

    def test_a_restored_backup_is_accepted_once_and_said(self, place: Place) -> None:
        place.write("a")
        old = place.save("old")
        place.write("b")
        place.restore(old)
        (line,) = place.open_lines(accept_rollback=True)
        assert "--accept-rollback" in line
        assert "older state" in line
        assert place.write("c") == []
        assert place.names() == {b"a", b"c"}

    def test_accepting_is_silent_where_nothing_is_wrong(self, place: Place) -> None:
        place.write("a")
        assert place.write("b", accept_rollback=True) == []

    @pytest.mark.parametrize("written", [0, 1, 5])
    def test_a_history_that_was_given_up_cannot_come_back(self, place: Place, written: int) -> None:
        place.write("a")
        old = place.save("old")
        for number in range(3):
            place.write(f"lost{number}")
        newest = place.save("newest")
        place.restore(old)
        place.open_lines(accept_rollback=True)
        for number in range(written):
            place.write(f"kept{number}")
        kept = place.save("kept")
        place.restore(newest)
        with pytest.raises(RollbackError):
            place.open()
        place.restore(kept)
        assert len(place.names()) == 1 + written

    def test_the_given_up_history_can_be_accepted_in_its_turn(self, place: Place) -> None:
        place.write("a")
        old = place.save("old")
        place.write("b")
        newest = place.save("newest")
        place.restore(old)
        place.write("c", accept_rollback=True)
        other = place.save("other")
        place.restore(newest)
        place.write("d", accept_rollback=True)
        assert place.names() == {b"a", b"b", b"d"}
        place.restore(other)
        with pytest.raises(RollbackError):
            place.open()

    def test_without_a_record_it_is_accepted_said_once_and_recorded(
        self, place: Place, volumes: Path
    ) -> None:
        place.write("a")
        old = place.save("old")
        place.write("b")
        shutil.rmtree(volumes)
        place.restore(old)
        (line,) = place.open_lines()
        assert "unchecked" in line
        assert place.write("c") == []
        place.restore(old)
        with pytest.raises(RollbackError):
            place.open()


class TestForks:
    def test_the_older_of_two_copies_is_refused(self, place: Place, tmp_path: Path) -> None:
        place.write("a")
        twin = Place(place.save("twin"))
        twin.write("b")
        with pytest.raises(RollbackError, match="older state"):
            place.open()
        assert twin.names() == {b"a", b"b"}

    def test_equal_numbers_with_another_history_are_refused(
        self, place: Place, volumes: Path
    ) -> None:
        place.write("a")
        twin = Place(place.save("twin"))
        known = volumes.with_name("known")
        shutil.copytree(volumes, known)
        twin.write("b")
        # The other machine wrote as much.
        shutil.rmtree(volumes)
        shutil.copytree(known, volumes)
        place.write("c")
        with pytest.raises(RollbackError, match="another history"):
            twin.open()

    def test_a_fork_of_the_log_that_went_on_further_is_refused(
        self, place: Place, volumes: Path
    ) -> None:
        place.write("a")
        twin = Place(place.save("twin"))
        known = shutil.copytree(volumes, volumes.with_name("known"))
        twin.crash("b", "c", "d")
        shutil.rmtree(volumes)
        shutil.copytree(known, volumes)
        place.crash("x", policy=ENFORCE)
        with pytest.raises(RollbackError, match="another history"):
            twin.open()

    def test_a_copy_that_is_in_use_makes_the_other_busy(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(records, "_LOCK_PATIENCE_S", 0.1)
        place.write("a")
        twin = Place(place.save("twin"))
        with place.session(), pytest.raises(BusyError):
            twin.open()
        assert twin.names() == {b"a"}


class TestExistence:
    @pytest.mark.parametrize("how", ["emptied", "gone", "anchor", "new"])
    def test_an_emptied_volume_is_not_a_new_one(self, place: Place, how: str) -> None:
        place.write("a")
        match how:
            case "gone":
                shutil.rmtree(place.path)
            case "emptied":
                shutil.rmtree(place.path)
                place.path.mkdir()
            case "anchor":
                (place.path / "anchor").unlink()
            case "new":
                shutil.rmtree(place.path)
                place.path.mkdir()
                (place.path / "anchor.new").touch()
        for accept in (False, True):
            with pytest.raises(RollbackError, match="emptied") as caught:
                place.open(accept_rollback=accept)
            assert "serdab reset" in caught.value.hint
        assert not (place.path / "anchor").exists()

    def test_a_foreign_volume_in_its_place_is_refused(self, place: Place, tmp_path: Path) -> None:
        place.write("a")
        other = Place(tmp_path / "other")
        other.write("b")
        mine = place.save("mine")
        place.restore(other.path)
        with pytest.raises(RollbackError, match="another volume"):
            place.open()
        (line,) = place.open_lines(accept_rollback=True)
        assert "another volume" in line
        assert place.names() == {b"b"}
        place.restore(mine)
        with pytest.raises(RollbackError, match="another volume"):
            place.open()

    def test_after_a_reset_a_new_volume_begins_and_the_old_one_stays_away(
        self, place: Place
    ) -> None:
        place.write("a")
        old = place.save("old")
        shutil.rmtree(place.path)
        assert records.discard(str(place.path))
        place.restore(old)
        with pytest.raises(RollbackError, match="thrown away"):
            place.open()
        shutil.rmtree(place.path)
        assert place.write("b") == []
        place.restore(old)
        with pytest.raises(RollbackError):
            place.open()

    def test_a_reset_leaves_the_record_of_a_copy_alone(self, place: Place) -> None:
        place.write("a")
        twin = Place(place.save("twin"))
        twin.write("b")
        shutil.rmtree(place.path)
        assert records.discard(str(place.path))
        assert twin.write("c") == []

    def test_nothing_to_reset(self, place: Place) -> None:
        assert not records.discard(str(place.path))

    def test_reset_works_on_damaged_records(self, place: Place, volumes: Path) -> None:
        place.write("a")
        for note in volumes.glob("at-*.json"):
            note.write_text("{")
        shutil.rmtree(place.path)
        assert records.discard(str(place.path))
        assert place.write("b") == []


class TestDamagedRecords:
    @pytest.mark.parametrize("kind", ["record.json", "at"])
    @pytest.mark.parametrize(
        "change",
        [
            lambda raw: b"",
            lambda raw: raw[: len(raw) // 2],
            lambda raw: raw + b"x",
            lambda raw: b"\xff" + raw,
            lambda raw: raw.replace(b'"format": ', b'"format": 9'),
            lambda raw: raw.replace(b'"path"', b'"paht"'),
            lambda raw: raw.replace(b'"uuid": "', b'"uuid": "0'),
            lambda raw: b"[]",
        ],
    )
    def test_torn_or_foreign_is_a_refusal_with_a_hint(
        self, place: Place, volumes: Path, kind: str, change: Callable[[bytes], bytes]
    ) -> None:
        place.write("a")
        (path,) = volumes.glob("at-*.json") if kind == "at" else volumes.glob("*/record.json")
        path.write_bytes(change(path.read_bytes()))
        for accept in (False, True):
            with pytest.raises(VerificationError) as caught:
                place.open(accept_rollback=accept)
            assert caught.value.hint
            assert str(path) in str(caught.value)

    @pytest.mark.parametrize("kind", ["at-*.json", "*/record.json"])
    def test_each_member_must_be_there_and_of_its_type(
        self, place: Place, volumes: Path, kind: str
    ) -> None:
        place.write("a")
        (path,) = volumes.glob(kind)
        raw = path.read_bytes()
        value = json.loads(raw)
        for name in value:
            for bad in ({k: v for k, v in value.items() if k != name}, value | {name: [name]}):
                path.write_text(json.dumps(bad))
                with pytest.raises(VerificationError):
                    place.open(accept_rollback=True)
        path.write_bytes(raw)
        assert place.open().notices == []

    def test_the_record_of_another_volume_under_this_name(
        self, place: Place, volumes: Path, tmp_path: Path
    ) -> None:
        place.write("a")
        mine = only_record(volumes)
        Place(tmp_path / "other").write("b")
        (theirs,) = set(volumes.glob("*/record.json")) - {mine}
        shutil.copy(theirs, mine)
        with pytest.raises(VerificationError):
            place.open()

    @pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
    def test_anything_but_a_file(self, place: Place, volumes: Path, kind: str) -> None:
        place.write("a")
        path = only_record(volumes)
        copy = path.rename(path.with_name("copy"))
        match kind:
            case "link":
                path.symlink_to(copy)
            case "fifo":
                os.mkfifo(path)
            case "directory":
                path.mkdir()
        with pytest.raises(VerificationError):
            place.open()

    def test_a_directory_of_records_that_others_may_write(
        self, place: Place, volumes: Path
    ) -> None:
        place.write("a")
        volumes.chmod(0o777)
        only_record(volumes).parent.chmod(0o777)
        with pytest.raises(EnvironmentRefused):
            place.open()
