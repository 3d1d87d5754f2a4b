# SPDX-License-Identifier: Apache-2.0
"""The door to what lies below a directory that others write: whatever stands where on the way."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serdab.errors import UsageError
from serdab.linux import dirtree
from serdab.linux.dirfd import DirFd, components
from serdab.linux.files import renameat2

SECRET = b"not yours"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A tree beside the directory: whatever happens, it stays as it is."""
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "file").write_bytes(SECRET)
    (outside / "deep/file").write_bytes(SECRET)
    return outside


@pytest.fixture
def top(tmp_path: Path, outside: Path) -> Iterator[DirFd]:
    """The directory; descriptors that a test opened are closed again."""
    (tmp_path / "top").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    with DirFd.at(str(tmp_path / "top")) as directory:
        yield directory
    assert len(os.listdir("/proc/self/fd")) == before
    assert (outside / "file").read_bytes() == SECRET
    assert (outside / "deep/file").read_bytes() == SECRET
    assert sorted(os.listdir(outside)) == ["deep", "file"]


def link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def link_to_file(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "file")


def dangling(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "new")


def fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def device(path: Path, _: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


def file(path: Path, _: Path) -> None:
    path.write_bytes(b"mine")


def directory(path: Path, _: Path) -> None:
    path.mkdir()


Maker = Callable[[Path, Path], None]
KINDS: dict[str, Maker] = {
    maker.__name__: maker for maker in (link, link_to_file, dangling, fifo, device, file, directory)
}
NO_DIRECTORIES = [name for name in KINDS if name != "directory"]
NO_FILES = [name for name in KINDS if name != "file"]


class TestEachKindInEachPosition:
    @pytest.mark.parametrize("kind", NO_DIRECTORIES)
    @pytest.mark.parametrize("position", ["x", "a/x", "a/x/b", "x/a/b"])
    def test_nothing_but_a_directory_is_gone_through(
        self, top: DirFd, outside: Path, kind: str, position: str
    ) -> None:
        place = Path(top.path, position[: position.index("x") + 1])
        place.parent.mkdir(exist_ok=True)
        KINDS[kind](place, outside)
        inside = f"{position}/deep"
        assert top.status(inside) is None
        assert top.names(position) == []
        top.remove(f"{inside}/file")
        for act in (
            lambda: top.open(f"{inside}/file", os.O_RDONLY),
            lambda: top.directory(position),
            lambda: top.make(inside),
            lambda: top.write_new(f"{position}/new", b"x"),
            lambda: top.rename(f"{position}/file", "stolen"),
            lambda: top.sync(position),
        ):
            with pytest.raises((OSError, UsageError)):
                act()
        assert not top.exists("stolen")

    @pytest.mark.parametrize("kind", NO_FILES)
    @pytest.mark.parametrize("position", ["x", "a/x"])
    def test_nothing_but_a_file_is_read(
        self, top: DirFd, outside: Path, kind: str, position: str
    ) -> None:
        Path(top.path, position).parent.mkdir(exist_ok=True)
        KINDS[kind](Path(top.path, position), outside)
        with pytest.raises(UsageError, match=position) as caught:
            top.read(position, 100)
        assert caught.value.expected == "a file"
        assert caught.value.found.startswith("a ")

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_removed_is_the_name_and_nothing_behind_it(
        self, top: DirFd, outside: Path, kind: str
    ) -> None:
        KINDS[kind](Path(top.path, "x"), outside)
        top.remove("x")
        assert top.names() == []

    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_is_written_over_what_is_there(
        self, top: DirFd, outside: Path, kind: str
    ) -> None:
        KINDS[kind](Path(top.path, "x"), outside)
        with pytest.raises(FileExistsError):
            top.write_new("x", b"new")
        assert top.create_whole("x", b"new") is False
        assert top.names() == ["x"]

    def test_the_refusal_names_what_is_in_the_way(self, top: DirFd, outside: Path) -> None:
        link(Path(top.path, "x"), outside)
        with pytest.raises(UsageError, match="x") as caught:
            top.require_plain("x/deep/file", "a file")
        assert caught.value.found == "a symbolic link"
        assert caught.value.expected == "a directory"
        top.require_plain("missing/deep", "a file")


class TestPaths:
    @given(st.lists(st.sampled_from(["..", ".", "a", "", "/", "..a", "\0"]), max_size=6))
    def test_a_path_leads_down_or_is_refused(self, parts: list[str]) -> None:
        path = "/".join(parts)
        try:
            names = components(path)
        except UsageError:
            assert path.startswith("/") or ".." in path.split("/") or "\0" in path
        else:
            assert not {"..", ".", ""} & set(names)

    def test_a_file_is_replaced_and_made_whole(self, top: DirFd) -> None:
        assert top.create_whole("x", b"one") is True
        top.replace_whole("x", b"two", mode=0o640)
        assert top.read("x", 3) == b"two"
        with pytest.raises(UsageError, match="too large"):
            top.read("x", 2)
        assert top.names() == ["x"]


class TestWholeTrees:
    def test_a_tree_is_removed_however_deep_it_is(self, top: DirFd, outside: Path) -> None:
        here = os.open(top.path, os.O_RDONLY)
        for _ in range(3000):
            os.mkdir("directory", dir_fd=here)
            os.symlink(outside, "link", dir_fd=here)
            below = os.open("directory", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        top.remove("directory")
        assert top.names() == ["link"]

    def test_a_walk_ends_where_a_directory_is_moved_away_below_it(
        self, top: DirFd, outside: Path
    ) -> None:
        os.makedirs(f"{top.path}/a/b/c")
        here = dirtree.Descent(top)
        try:
            here.go("a/b/c")
            os.rename(f"{top.path}/a/b", outside.parent / "moved")
            with pytest.raises(UsageError, match="changed"):
                here.go("a")
        finally:
            here.close()
            os.rename(outside.parent / "moved", f"{top.path}/a/b")

    def test_a_removal_races_with_links_and_leaves_what_is_outside(
        self, top: DirFd, outside: Path
    ) -> None:
        ended = threading.Event()

        def swap() -> None:
            fd = os.open(top.path, os.O_RDONLY)
            while not ended.is_set():
                try:
                    renameat2(fd, b"x", fd, b"y", 2)
                except OSError:
                    pass
            os.close(fd)

        os.symlink(outside, f"{top.path}/y")
        racer = threading.Thread(target=swap)
        racer.start()
        try:
            for _ in range(200):
                top.make("x/deep/er").close() if not top.exists("x") else None
                try:
                    top.remove("x")
                except (OSError, UsageError):
                    continue
        finally:
            ended.set()
            racer.join()
