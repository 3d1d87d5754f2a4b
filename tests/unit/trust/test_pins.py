# SPDX-License-Identifier: Apache-2.0
"""Pins elsewhere, commits that wait for them, and a state that was noted by hand."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from serdab.errors import (
    EnvironmentRefused,
    Error,
    FsError,
    MeasurementMismatch,
    RollbackError,
    VerificationError,
)
from serdab.structs import replace
from serdab.trust.freshness import ENFORCE, OFF, RECORD
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union
from tests.unit.trust.watched import Place, only_record


class TestPinFiles:
    @pytest.fixture
    def pinned(self, place: Place, tmp_path: Path) -> Place:
        return replace(place, watch=replace(place.watch, pin_file=str(tmp_path / "pin")))

    def test_it_protects_a_machine_without_records(self, pinned: Place, volumes: Path) -> None:
        pinned.write("a")
        old = pinned.save("old")
        pinned.write("b")
        shutil.rmtree(volumes)
        pinned.restore(old)
        with pytest.raises(RollbackError, match="pin file"):
            pinned.open()
        lines = pinned.open_lines(accept_rollback=True)
        assert len(lines) == 2
        assert pinned.write("c") == []

    def test_it_knows_an_emptied_volume(self, pinned: Place, volumes: Path) -> None:
        pinned.write("a")
        shutil.rmtree(volumes)
        shutil.rmtree(pinned.path)
        with pytest.raises(RollbackError, match="emptied"):
            pinned.open()
        assert len(pinned.write("b", accept_rollback=True)) == 1
        assert pinned.write("c") == []

    def test_it_knows_its_volume(self, pinned: Place, tmp_path: Path) -> None:
        pinned.write("a")
        other = replace(pinned, path=tmp_path / "other")
        other.write("b", pin_file="")
        with pytest.raises(RollbackError, match="another writable layer") as caught:
            other.open()
        assert caught.value.hint
        lines = other.open_lines(accept_rollback=True)
        assert len(lines) == 1
        assert other.write("c") == []

    def test_a_first_use_is_said(self, pinned: Place) -> None:
        pinned.write("a", pin_file="")
        (line,) = pinned.open_lines()
        assert "unchecked" in line
        assert "pin file" in line
        assert pinned.write("b") == []

    @pytest.mark.parametrize("content", [b"", b"\n", b"hello\n", b"\xff" * 60])
    def test_a_torn_one_is_refused(self, pinned: Place, tmp_path: Path, content: bytes) -> None:
        pinned.write("a")
        for raw in (content, (tmp_path / "pin").read_bytes()[:-5]):
            (tmp_path / "pin").write_bytes(raw)
            for accept in (False, True):
                with pytest.raises(VerificationError, match="cannot be read"):
                    pinned.open(accept_rollback=accept)

    @pytest.mark.parametrize("kind", ["link", "fifo"])
    def test_anything_but_a_file_is_refused(self, pinned: Place, tmp_path: Path, kind: str) -> None:
        pinned.write("a")
        pin = tmp_path / "pin"
        moved = pin.rename(tmp_path / "moved")
        if kind == "link":
            pin.symlink_to(moved)
        else:
            os.mkfifo(pin)
        with pytest.raises(VerificationError, match="cannot be read"):
            pinned.open()


class TestEnforce:
    @pytest.fixture
    def keeper(self, tmp_path: Path) -> Path:
        """A pin command that keeps a file for each volume, and fails when told to."""
        path = tmp_path / "keeper"
        path.write_text(
            "#!/bin/sh\nset -e\n"
            f'cd {tmp_path}\necho "$@" >> calls\n'
            "[ ! -e fail ] || { echo out of order >&2; exit 3; }\n"
            '[ "$1" != get ] || { [ ! -e "pin-$2" ] || cat "pin-$2"; }\n'
            '[ "$1" != put ] || printf "%s\\n" "$3" > "pin-$2"\n'
        )
        path.chmod(0o755)
        return path

    @pytest.fixture
    def enforced(self, place: Place, keeper: Path) -> Place:
        return replace(place, watch=replace(place.watch, policy=ENFORCE, pin_command=str(keeper)))

    def test_each_commit_is_pinned_before_it_is_acknowledged(
        self, enforced: Place, tmp_path: Path, volumes: Path
    ) -> None:
        with enforced.session() as (fs, watched):
            for name in "abc":
                fs.mknod(ROOT_INO, name.encode(), stat.S_IFREG | 0o600, 0, 0, 0)
                fs.syncfs()
                position = watched.volume.position
                assert position is not None
                pin = tmp_path / f"pin-{position.uuid.hex()}"
                assert pin.read_text().strip() == position.dump()
                assert json.loads(only_record(volumes).read_text())["sequence"] == position.sequence

    def test_without_it_commits_are_not_pinned(self, enforced: Place, tmp_path: Path) -> None:
        enforced.write("a", policy=RECORD)
        before = len((tmp_path / "calls").read_text().splitlines())
        enforced.crash("b", *[f"c{number}" for number in range(5)], policy=RECORD)
        calls = (tmp_path / "calls").read_text().splitlines()[before:]
        assert [call.split()[0] for call in calls] == ["get", "put"]

    def test_a_lost_commit_is_refused(self, enforced: Place) -> None:
        enforced.write("a")
        watched = enforced.open()
        fs = Union(watched.volume, None)
        fs.mknod(ROOT_INO, b"b", stat.S_IFREG | 0o600, 0, 0, 0)
        fs.syncfs()
        old = enforced.save("old")
        fs.mknod(ROOT_INO, b"c", stat.S_IFREG | 0o600, 0, 0, 0)
        fs.syncfs()
        watched.volume.abandon()
        watched.guard.close()
        enforced.restore(old)
        with pytest.raises(RollbackError, match="older state"):
            enforced.open()

    def test_a_crash_between_commit_and_pin_loses_nothing(
        self, enforced: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        enforced.write("a")
        watched = enforced.open()
        fs = Union(watched.volume, None)
        fs.mknod(ROOT_INO, b"b", stat.S_IFREG | 0o600, 0, 0, 0)
        fs.syncfs()
        fs.mknod(ROOT_INO, b"c", stat.S_IFREG | 0o600, 0, 0, 0)
        (tmp_path / "fail").touch()
        with pytest.raises(FsError) as caught:
            fs.syncfs()
        assert caught.value.errno == errno.EIO
        assert "out of order" in caplog.text
        with pytest.raises(FsError) as caught:
            fs.mknod(ROOT_INO, b"d", stat.S_IFREG | 0o600, 0, 0, 0)
        assert caught.value.errno == errno.EROFS
        fs.close()
        watched.guard.close()
        with pytest.raises(EnvironmentRefused, match="pin command failed") as refused:
            enforced.open()
        assert "out of order" in refused.value.found
        (tmp_path / "fail").unlink()
        # Committed, not acknowledged: the volume is in front of its pin.
        assert enforced.names() >= {b"a", b"b"}
        assert enforced.write("d") == []

    def test_the_last_checkpoint_must_be_pinned_too(self, enforced: Place, tmp_path: Path) -> None:
        watched = enforced.open()
        fs = Union(watched.volume, None)
        fs.mknod(ROOT_INO, b"a", stat.S_IFREG | 0o600, 0, 0, 0)
        fs.syncfs()
        (tmp_path / "fail").touch()
        with pytest.raises(FsError):
            fs.close()
        watched.guard.close()
        (tmp_path / "fail").unlink()
        assert enforced.names() == {b"a"}

    def test_a_record_that_cannot_be_written_is_said_and_does_no_harm(
        self, place: Place, volumes: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        place.write("a")
        with place.session() as (fs, _):
            hidden = volumes.rename(volumes.with_name("hidden"))
            volumes.touch()
            fs.mknod(ROOT_INO, b"b", stat.S_IFREG | 0o600, 0, 0, 0)
            fs.syncfs()
        assert "not recorded" in caplog.text
        volumes.unlink()
        hidden.rename(volumes)
        assert place.names() == {b"a", b"b"}

    @pytest.mark.parametrize("answer", ["hello", "1 2", "1 2 " + "zz" * 16, "\\n\\n"])
    def test_a_command_that_says_something_else(
        self, enforced: Place, keeper: Path, answer: str
    ) -> None:
        enforced.write("a")
        keeper.write_text(f"#!/bin/sh\nprintf '{answer}'\n")
        with pytest.raises(VerificationError, match="cannot be read"):
            enforced.open()

    def test_a_command_that_is_not_there(self, enforced: Place, keeper: Path) -> None:
        enforced.write("a")
        keeper.unlink()
        with pytest.raises(Error, match="pin command failed"):
            enforced.open()


class TestExpectedState:
    def test_the_noted_mac_is_required(self, place: Place) -> None:
        place.write("a")
        with place.session() as (_, watched):
            mac = watched.volume.durable_mac
        old = place.save("old")
        for expected in (mac, mac[:16]):
            assert place.open_lines(expected_mac=expected) == []
        place.write("b")
        with pytest.raises(MeasurementMismatch):
            place.open(expected_mac=mac)
        place.restore(old)
        assert place.open_lines(expected_mac=mac, policy=OFF) == []

    def test_commits_after_the_checkpoint_count(self, place: Place) -> None:
        macs = set()
        for name in "abc":
            place.crash(name)
            with place.session(policy=OFF) as (_, watched):
                macs.add(watched.volume.durable_mac)
        assert len(macs) == 3

    def test_a_new_volume_is_not_the_expected_one(self, place: Place) -> None:
        with pytest.raises(MeasurementMismatch, match="empty"):
            place.open(expected_mac=b"m" * 32)
        assert list(place.path.iterdir()) == []
