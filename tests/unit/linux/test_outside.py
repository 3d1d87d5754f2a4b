# SPDX-License-Identifier: Apache-2.0
"""Absolute paths: links count where nobody but root and the caller writes, and nowhere else."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serdab.errors import UsageError
from serdab.linux.dirfd import DirFd
from serdab.linux.identity import identity
from serdab.linux.outside import Walk, is_instance


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory with ``real/file`` and a link to it; descriptors are closed again."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("real")
    before = len(os.listdir("/proc/self/fd"))
    yield tmp_path
    assert len(os.listdir("/proc/self/fd")) == before


def read(path: Path | str, walk: Walk | None = None) -> bytes:
    fd = (walk or Walk()).file(str(path))
    with open(fd, "rb") as file:
        return file.read()


def test_a_link_of_the_callers_own_is_followed(place: Path) -> None:
    assert read(place / "link/file") == b"content"
    with Walk().directory(str(place / "link")) as directory:
        assert directory.names() == ["file"]


def test_a_link_where_others_write_is_not(place: Path) -> None:
    place.chmod(0o777)
    with pytest.raises(UsageError, match="not to be followed") as caught:
        read(place / "link/file")
    assert "link" in caught.value.found
    assert read(place / "real/file") == b"content"


@pytest.mark.parametrize("mark", ["Occlum.json", "build/lib/libserdab.signed.json"])
def test_a_link_in_an_instance_is_not(place: Path, mark: str) -> None:
    (place / mark).parent.mkdir(parents=True, exist_ok=True)
    (place / mark).write_text("{}")
    (place / "below").mkdir()
    (place / "below/link").symlink_to("../real")
    for way in ("link/file", "below/link/file"):
        with pytest.raises(UsageError, match="not to be followed"):
            read(place / way)


def test_a_link_in_place_of_build_makes_no_instance(place: Path) -> None:
    """Nor does it make us look there: it may lead to a server that does not answer."""
    (place / "elsewhere/lib").mkdir(parents=True)
    (place / "elsewhere/lib/libserdab.signed.json").write_text("{}")
    (place / "build").symlink_to("elsewhere")
    with DirFd.at(str(place)) as directory:
        assert not is_instance(directory.fd)
        (place / "Occlum.json").write_text("{}")
        assert is_instance(directory.fd)


def test_a_link_in_a_closed_directory_is_not(place: Path) -> None:
    fd = os.open(place, os.O_RDONLY)
    closed = [identity(fd)]
    os.close(fd)
    with pytest.raises(UsageError, match="not to be followed"):
        read(place / "link/file", Walk(closed))
    assert read(place / "real/file", Walk(closed)) == b"content"


def test_links_in_circles_end(place: Path) -> None:
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        read(place / "a")
    with pytest.raises(UsageError):
        Walk().directory(str(place / "a"))


def test_each_walk_counts_its_own_links(place: Path) -> None:
    walk = Walk()
    for _ in range(100):
        assert read(place / "link/file", walk) == b"content"


def test_upwards_is_where_one_came_from(place: Path) -> None:
    (place / "link2").symlink_to("real/deep")
    (place / "real/deep").mkdir()
    # Behind a link ".." is the directory that it led to, as path_resolution(7) has it.
    assert read(f"{place}/link2/../file") == b"content"
    with DirFd.at(str(place / "real/deep")) as base, Walk().directory("../..", base=base) as up:
        assert identity(up.fd) == (place.stat().st_dev, place.stat().st_ino)


def test_a_descriptor_of_the_callers_own_is_read(place: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"through a pipe")
    os.close(writer)
    assert read(f"/dev/fd/{reader}") == b"through a pipe"
    os.close(reader)


def test_a_fifo_in_an_instance_hangs_nobody(place: Path) -> None:
    os.mkfifo(place / "key")
    (place / "Occlum.json").write_text("{}")
    with pytest.raises(UsageError, match="FIFO"):
        read(place / "key")


def test_what_is_missing_is_the_systems_word(place: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(place / "none")
    with pytest.raises(UsageError) as caught:
        Walk().directory(str(place / "none"))
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(UsageError):
        Walk().directory(str(place / "real/file/x"))


def test_directories_are_made_on_the_way(place: Path) -> None:
    with Walk().make(str(place / "real/a/b")) as made:
        assert made.path == str(place / "real/a/b")
    assert (place / "real/a/b").is_dir()
    directory, name = Walk().parent(str(place / "link/new"))
    with directory:
        assert (name, directory.names()) == ("new", ["a", "file"])
    for bad in ("/", "..", str(place / "..")):
        with pytest.raises(UsageError):
            Walk().parent(bad)


def test_a_directory_swapped_for_a_link_while_it_is_walked_leads_nowhere_else(place: Path) -> None:
    """In a directory that others write, each walk ends in the real thing or in a refusal."""
    place.chmod(0o777)
    (place / "victim").mkdir()
    (place / "victim/file").write_bytes(b"elsewhere")
    (place / "evil").symlink_to("victim")
    ended = threading.Event()

    def swap() -> None:
        from serdab.linux.files import renameat2

        fd = os.open(place, os.O_RDONLY)
        while not ended.is_set():
            renameat2(fd, b"real", fd, b"evil", 2)
        os.close(fd)

    racer = threading.Thread(target=swap)
    racer.start()
    found, refused = set(), 0
    try:
        for _ in range(2000):
            try:
                found.add(read(place / "real/file"))
            except UsageError:
                refused += 1
    finally:
        ended.set()
        racer.join()
    assert found <= {b"content"}
    assert refused
