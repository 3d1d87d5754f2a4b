# SPDX-License-Identifier: Apache-2.0
"""The record of a directory names the one that it is in: kept up by every move, checked by fsck."""

from __future__ import annotations

import stat
from collections.abc import Iterator

import pytest

from serdab.errors import FsError
from serdab.sefs import keyspace as ks
from serdab.sefs.fsck import check
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.volume import Volume, open_volume_in
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union
from tests.attack.sealedvolume import KEY, open_host
from tests.vectors.test_format_v1 import open_golden

_EXCHANGE = 2


def volume_of(fs: Union) -> Volume:
    volume = fs._upper
    assert isinstance(volume, Volume)
    return volume


def recorded(fs: Union, ino: int) -> int:
    inode = volume_of(fs).inode(ino)
    assert inode is not None
    return inode.parent_ino


def above(fs: Union, ino: int) -> int:
    """Return what ``..`` is listed as."""
    return next(entry.ino for entry in fs.readdir(ino, 0) if entry.name == b"..")


def reopened(fs: Union, host: MemoryDir, version: int = ks.V2) -> Union:
    fs.close()
    return open_host(host, read_only=False, version=version)


@pytest.fixture(params=[ks.V1, ks.V2], ids=["v1", "v2"])
def moved(request: pytest.FixtureRequest) -> Iterator[tuple[int, Union]]:
    """A volume in which directories moved, opened again."""
    version: int = request.param
    host = MemoryDir("host")
    fs = open_host(host, read_only=False, version=version)
    one = fs.mkdir(ROOT_INO, b"one", 0o755, 0, 0)
    two = fs.mkdir(ROOT_INO, b"two", 0o755, 0, 0)
    fs.mkdir(one.ino, b"below", 0o755, 0, 0)
    fs.mkdir(one.ino, b"swapped", 0o755, 0, 0)
    fs.syncfs()
    fs.rename(one.ino, b"below", two.ino, b"elsewhere", 0)
    fs.rename(one.ino, b"swapped", ROOT_INO, b"two", _EXCHANGE)
    fs = reopened(fs, host, version)
    yield version, fs
    fs.close()


def test_moves_are_recorded(moved: tuple[int, Union]) -> None:
    version, fs = moved
    one = fs.lookup(ROOT_INO, b"one")
    swapped = fs.lookup(ROOT_INO, b"two")
    two = fs.lookup(one.ino, b"swapped")
    elsewhere = fs.lookup(two.ino, b"elsewhere")
    expected = {ROOT_INO: ROOT_INO, one.ino: ROOT_INO, swapped.ino: ROOT_INO, two.ino: one.ino,
                elsewhere.ino: two.ino}  # fmt: skip
    for ino, parent in expected.items():
        assert recorded(fs, ino) == (parent if version == ks.V2 else 0)
        assert above(fs, ino) == parent
        assert fs.lookup(ino, b"..").ino == parent
    volume = volume_of(fs)
    assert check(lambda: fs, [volume.tree], upper=volume).is_clean()


def test_what_was_found_without_its_name_has_a_parent_too() -> None:
    """READDIRPLUS tells numbers, and the kernel asks by them."""
    host = MemoryDir("host")
    fs = open_host(host, read_only=False)
    one = fs.mkdir(ROOT_INO, b"one", 0o755, 0, 0)
    below = fs.mkdir(one.ino, b"below", 0o755, 0, 0)
    fs = reopened(fs, host)
    fs.lookup_ino(below.ino, one.ino)
    assert above(fs, below.ino) == one.ino
    fs.close()


@pytest.fixture
def listed() -> Iterator[tuple[Union, int, int]]:
    """A volume that records no parents, of which READDIRPLUS alone told ``one/below``."""
    host = MemoryDir("host")
    fs = open_host(host, read_only=False, version=ks.V1)
    one = fs.mkdir(ROOT_INO, b"one", 0o755, 0, 0)
    below = fs.mkdir(one.ino, b"below", 0o755, 0, 0)
    fs = reopened(fs, host, ks.V1)
    fs.lookup_ino(one.ino, ROOT_INO)
    fs.lookup_ino(below.ino, one.ino)
    yield fs, one.ino, below.ino
    fs.close()


def test_what_was_only_listed_has_a_parent_without_a_record_too(
    listed: tuple[Union, int, int],
) -> None:
    fs, one, below = listed
    assert recorded(fs, below) == 0
    assert above(fs, below) == one
    assert fs.lookup(below, b"..").ino == one


def test_a_directory_that_was_only_listed_takes_in_none_that_it_is_in(
    listed: tuple[Union, int, int],
) -> None:
    fs, one, below = listed
    with pytest.raises(FsError, match="Invalid argument"):
        fs.rename(ROOT_INO, b"one", below, b"loop", 0)
    fs.mknod(below, b"file", stat.S_IFREG | 0o600, 0, 0, 0)
    with pytest.raises(FsError, match="Invalid argument"):
        fs.rename(ROOT_INO, b"one", below, b"file", _EXCHANGE)
    assert above(fs, below) == one


def test_a_move_into_what_nobody_came_to_by_name_is_refused() -> None:
    host = MemoryDir("host")
    fs = open_host(host, read_only=False, version=ks.V1)
    one = fs.mkdir(ROOT_INO, b"one", 0o755, 0, 0)
    below = fs.mkdir(one.ino, b"below", 0o755, 0, 0)
    fs = reopened(fs, host, ks.V1)
    with pytest.raises(FsError, match="Stale"):
        fs.rename(ROOT_INO, b"one", below.ino, b"loop", 0)
    fs.close()


def test_a_directory_of_a_version_1_image_gets_its_parent_when_it_changes() -> None:
    lower = open_golden("integrity")
    fs = Union(open_volume_in(MemoryDir("host"), key=KEY, lower=lower, create=True), lower)
    folder = fs.lookup(ROOT_INO, b"bin")
    fs.mknod(folder.ino, b"new", stat.S_IFREG | 0o600, 0, 0, 0)
    fs.mknod(ROOT_INO, b"new", stat.S_IFREG | 0o600, 0, 0, 0)
    fs.syncfs()
    assert recorded(fs, folder.ino) == ROOT_INO
    assert recorded(fs, ROOT_INO) == ROOT_INO
    fs.close()


def test_another_parent_in_a_record_is_reported() -> None:
    host = MemoryDir("host")
    fs = open_host(host, read_only=False)
    one = fs.mkdir(ROOT_INO, b"one", 0o755, 0, 0)
    two = fs.mkdir(ROOT_INO, b"two", 0o755, 0, 0)
    two.parent_ino = one.ino
    fs = reopened(fs, host)
    volume = volume_of(fs)
    report = check(lambda: fs, [volume.tree], upper=volume)
    assert report.damaged == {"/two": "its record names another parent"}
    fs.close()
