# SPDX-License-Identifier: Apache-2.0
"""What the host says of its files are claims: their size, their type. A verdict names the path, and
comes soon (rule: bounded before they steer a loop or an allocation)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from serdab.errors import AuthenticationError, FormatError
from serdab.keys import Key
from serdab.sefs.fsck import check
from serdab.sefs.reserve import RESERVE_NAME
from serdab.sefs.volume import open_volume
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union
from tests.harness.hangs import no_hang
from tests.property.fsops import picture

KEY = Key(b"claims of a host")
TIB = 1 << 40


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume whose server was killed: its log has a commit."""
    path = tmp_path / "v"
    path.mkdir()
    fs = Union(open_volume(path, key=KEY, create=True), None)
    fs.syncfs()
    ino = fs.mknod(ROOT_INO, b"small", 0o100600, 0, 0, 0).ino
    fs.write(ino, 0, memoryview(b"small"), kill_suidgid=False)
    fs.syncfs()
    ino = fs.mknod(ROOT_INO, b"large", 0o100600, 0, 0, 0).ino
    fs.write(ino, 0, memoryview(os.urandom(1 << 20)), kill_suidgid=False)
    fs.syncfs()
    fs._upper.abandon()  # type: ignore[attr-defined]
    return path


def damage(path: Path) -> dict[str, str]:
    """Return what fsck finds."""
    opened = open_volume(path, key=KEY, read_only=True, tolerant=True)
    try:
        return check(lambda: Union(opened, None), [opened.tree], upper=opened).damaged
    finally:
        opened.close()


@pytest.mark.parametrize("kind", ["anchor", "log", "seg", RESERVE_NAME])
def test_a_file_that_claims_a_tebibyte_holds_nobody_up(volume: Path, kind: str) -> None:
    first = Union(open_volume(volume, key=KEY, read_only=True), None)
    before = picture(first)
    first.close()
    (volume / RESERVE_NAME).touch()
    files = [volume / kind] if not (volume / kind).is_dir() else list((volume / kind).iterdir())
    for file in files:
        with file.open("ab"):
            os.truncate(file, TIB)
    with no_hang("the time it takes grows with the size that a host file claims"):
        assert damage(volume) == {}
        fs = Union(open_volume(volume, key=KEY), None)
    assert picture(fs) == before
    fs.close()


def _file(path: Path) -> None:
    path.write_bytes(b"no directory")


def _link(path: Path) -> None:
    other = path.parent.parent / "elsewhere"
    other.mkdir()
    path.symlink_to(other)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("put", [_file, _link, _fifo], ids=["file", "link", "fifo"])
@pytest.mark.parametrize("name", ["seg", "log", "anchor"])
def test_a_directory_that_is_something_else_is_told_by_its_path(
    volume: Path, name: str, put: Callable[[Path], None]
) -> None:
    (volume / name).rename(volume.parent / "away")
    put(volume / name)
    for read_only in (False, True):
        with no_hang("opening it waits"), pytest.raises(FormatError) as caught:
            open_volume(volume, key=KEY, read_only=read_only).close()
        assert caught.value.exit_code == 3
        assert str(volume) in str(caught.value.subject)


@pytest.mark.parametrize("name", ["seg", "log", "anchor"])
def test_a_directory_in_the_place_of_a_file_is_told_too(volume: Path, name: str) -> None:
    file = volume / name
    if file.is_dir():
        file = next(file.iterdir())
    file.unlink()
    file.mkdir()
    with pytest.raises(FormatError) as caught:
        open_volume(volume, key=KEY).close()
    assert str(volume) in str(caught.value.subject)


def test_fsck_tells_a_log_that_cannot_be_read(volume: Path) -> None:
    """The volume opens no more: a verdict without damage would be wrong."""
    (log,) = [file for file in (volume / "log").iterdir() if any(file.read_bytes())]
    raw = bytearray(log.read_bytes())
    raw[100] ^= 1
    log.write_bytes(raw)
    with pytest.raises(AuthenticationError):
        open_volume(volume, key=KEY)
    assert "intent log" in damage(volume)
