# SPDX-License-Identifier: Apache-2.0
"""A hard link or bind mount that the host has of what is hidden is no way to it.

Wherever the first name lies: ``home`` is the instance's directory, ``secret`` stands for the user's
state, both beside the directory that is shown.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from serdab.errors import Error
from serdab.linux.mounts import MountFlag, UmountFlag, mount, umount
from serdab.vfs import secondnames
from serdab.vfs.api import ROOT_INO, SetAttr
from serdab.vfs.hiding import Elsewhere
from serdab.vfs.hostfs import HostFs
from tests.unit.vfs.test_hostfs import code_of, names, read

Show = Callable[..., HostFs]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An instance with something at each of its names."""
    home = tmp_path / "home"
    for path in ("image/usr/lib", "initfs/bin", "build/lib", "run/mount/__ROOT", ".build-staging"):
        (home / path).mkdir(parents=True)
    for path in (
        "Occlum.json", "Occlum.json.old", "image.owners", "image/usr/lib/x", "initfs/bin/init",
        "build/lib/libserdab.signed.json", "run/mount/__ROOT/log", ".build-staging/half",
    ):  # fmt: skip
        (home / path).write_text("own")
    (tmp_path / "secret/records").mkdir(parents=True)
    (tmp_path / "secret/records/volume").write_text("own")
    (tmp_path / "secret/key").write_text("own")
    (tmp_path / "single.key").write_text("own")
    (tmp_path / "share").mkdir()
    return home


@pytest.fixture
def show(home: Path, stack: ExitStack) -> Show:
    def build(root: Path | None = None, *more: Path) -> HostFs:
        private = (home.parent / "secret", home.parent / "single.key", *more)
        elsewhere = Elsewhere(tuple(map(os.fsencode, private)), os.fsencode(home))
        fs = HostFs(root or home.parent / "share", elsewhere=elsewhere)
        stack.callback(fs.close)
        return fs

    return build


FILES = (
    "single.key",
    "secret/key",
    "secret/records/volume",
    "home/Occlum.json",
    "home/Occlum.json.old",
    "home/image.owners",
    "home/build/lib/libserdab.signed.json",
    "home/run/mount/__ROOT/log",
    "home/.build-staging/half",
)
DIRECTORIES = (
    "secret",
    "secret/records",
    "home/image",
    "home/image/usr",
    "home/initfs/bin",
    "home/build/lib",
    "home/run",
    "home/run/mount/__ROOT",
    "home/.build-staging",
)


def bind(stack: ExitStack, source: Path, target: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts")
    if source.is_dir():
        target.mkdir()
    else:
        target.touch()
    mount(os.fspath(source), os.fspath(target), "", MountFlag.BIND, "")
    stack.callback(umount, os.fspath(target), UmountFlag.DETACH)


@pytest.mark.parametrize("path", FILES)
def test_a_hard_link_is_neither_found_nor_listed_nor_replaced(
    home: Path, show: Show, path: str
) -> None:
    os.link(home.parent / path, home.parent / "share/x")
    fs = show()
    assert names(fs) == []
    assert code_of(partial(fs.lookup, ROOT_INO, b"x")) == errno.ENOENT
    fs.mknod(ROOT_INO, b"mine", 0o100644, 0, 0, 0)
    ino = fs.lookup(ROOT_INO, b"mine").ino
    acts: list[Callable[[], object]] = [
        partial(fs.unlink, ROOT_INO, b"x"),
        partial(fs.rename, ROOT_INO, b"mine", ROOT_INO, b"x", 0),
        partial(fs.link, ino, ROOT_INO, b"x"),
    ]
    assert {code_of(act) for act in acts} == {errno.EBUSY}
    assert (home.parent / "share/x").read_text() == "own"


def test_a_file_that_has_other_names_is_shown(home: Path, show: Show) -> None:
    (home.parent / "share/one").write_text("mine")
    os.link(home.parent / "share/one", home.parent / "two")
    fs = show()
    ino = fs.lookup(ROOT_INO, b"one").ino
    assert read(fs, ino) == b"mine"
    fs.write(ino, 0, memoryview(b"M"), kill_suidgid=False)
    assert names(fs) == [b"one"]


def test_what_is_made_later_is_known(home: Path, show: Show) -> None:
    fs = show()
    (home.parent / "share/other").touch()
    os.link(home.parent / "share/other", home.parent / "other")
    assert names(fs) == [b"other"]
    for number, folder in enumerate(("secret/records", "secret/new/deep", "home/build/lib")):
        new = home.parent / folder
        new.mkdir(parents=True, exist_ok=True)
        (new / "later").write_text("own")
        os.link(new / "later", home.parent / f"share/{number}")
        assert code_of(partial(fs.lookup, ROOT_INO, b"%d" % number)) == errno.ENOENT
    assert names(fs) == [b"other"]


def test_what_becomes_one_takes_no_more_changes(home: Path, show: Show) -> None:
    """The host links a file to where it is hidden, while a program has it open."""
    (home.parent / "share/x").write_text("mine")
    fs = show()
    ino = fs.lookup(ROOT_INO, b"x").ino
    os.link(home.parent / "share/x", home.parent / "secret/x")
    acts: list[Callable[[], object]] = [
        partial(fs.write, ino, 0, memoryview(b"evil"), kill_suidgid=False),
        partial(fs.setattr, ino, SetAttr(size=0)),
    ]
    assert {code_of(act) for act in acts} == {errno.EPERM}


@pytest.mark.root
@pytest.mark.parametrize("path", [*FILES, *DIRECTORIES])
def test_a_bind_mount_is_not_found(home: Path, show: Show, stack: ExitStack, path: str) -> None:
    bind(stack, home.parent / path, home.parent / "share/x")
    fs = show()
    assert code_of(partial(fs.lookup, ROOT_INO, b"x")) == errno.ENOENT


@pytest.mark.root
def test_a_bind_mount_of_a_directory_around_it_hides_it_by_name(
    home: Path, show: Show, stack: ExitStack
) -> None:
    bind(stack, home.parent, home.parent / "share/around")
    fs = show()
    around = fs.lookup(ROOT_INO, b"around").ino
    for name in (b"secret", b"single.key"):
        assert code_of(partial(fs.lookup, around, name)) == errno.ENOENT
        assert code_of(partial(fs.mkdir, around, name, 0o755, 0, 0)) == errno.EBUSY
    assert names(fs, around) == [b"home", b"share"]
    inside = fs.lookup(around, b"home").ino
    assert names(fs, inside) == [b"build", b"run"]
    assert names(fs, fs.lookup(inside, b"build").ino) == []
    # Also what is put in its place.
    os.rename(home.parent / "secret", home.parent / "old")
    (home.parent / "secret").mkdir()
    assert code_of(partial(fs.lookup, around, b"secret")) == errno.ENOENT


@pytest.mark.root
def test_one_that_is_mounted_while_programs_run_is_not_found(
    home: Path, show: Show, stack: ExitStack
) -> None:
    fs = show()
    bind(stack, home / "image/usr", home.parent / "share/x")
    assert code_of(partial(fs.lookup, ROOT_INO, b"x")) == errno.ENOENT


@pytest.mark.root
def test_what_another_instance_keeps_is_not_found(home: Path, show: Show, stack: ExitStack) -> None:
    other = home.parent / "other"
    (other / "image/etc").mkdir(parents=True)
    (other / "Occlum.json").touch()
    (other / "data").mkdir()
    bind(stack, other / "image/etc", home.parent / "share/x")
    bind(stack, other / "data", home.parent / "share/data")
    fs = show()
    assert code_of(partial(fs.lookup, ROOT_INO, b"x")) == errno.ENOENT
    assert fs.lookup(ROOT_INO, b"data").ino


@pytest.mark.root
def test_a_bind_mount_of_anything_else_is_shown(home: Path, show: Show, stack: ExitStack) -> None:
    (home / "data/deep").mkdir(parents=True)
    bind(stack, home / "data", home.parent / "share/x")
    fs = show()
    ino = fs.lookup(ROOT_INO, b"x").ino
    assert names(fs, ino) == [b"deep"]
    fs.mkdir(ino, b"image", 0o755, 0, 0)
    assert (home / "data/image").is_dir()


@pytest.mark.root
def test_a_source_tree_that_is_shown_shows_what_is_mounted_in_it(
    home: Path, show: Show, stack: ExitStack
) -> None:
    (home.parent / "parts").mkdir()
    (home.parent / "parts/tool").touch()
    bind(stack, home.parent / "parts", home / "image/parts")
    bind(stack, home / "initfs", home / "image/init")
    fs = show(home / "image")
    assert names(fs, fs.lookup(ROOT_INO, b"parts").ino) == [b"tool"]
    assert fs.lookup(ROOT_INO, b"usr").ino
    assert code_of(partial(fs.lookup, ROOT_INO, b"init")) == errno.ENOENT


class TestFailsClosed:
    """What cannot be told is no reason to show it."""

    def test_a_directory_that_cannot_be_listed(
        self, home: Path, show: Show, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (home.parent / "share/one").touch()
        os.link(home.parent / "share/one", home.parent / "two")
        fs = show()

        def fail(*_: object) -> int:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(secondnames, "openat2", fail)
        with pytest.raises(Error, match="cannot be told") as caught:
            fs.lookup(ROOT_INO, b"one")
        assert str(home.parent) in str(caught.value)

    def test_more_files_than_anybody_counts(
        self, home: Path, show: Show, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (home.parent / "share/one").touch()
        os.link(home.parent / "share/one", home.parent / "two")
        fs = show()
        monkeypatch.setattr(secondnames, "_MAX_LISTED", 3)
        with pytest.raises(Error, match="cannot be told"):
            fs.lookup(ROOT_INO, b"one")

    def test_a_root_beside_something_that_cannot_be_looked_at(
        self, home: Path, show: Show, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (home / "loop").symlink_to("loop")
        show(None, home / "loop")  # leads nowhere: nothing is hidden by it
        with pytest.raises(Error, match="cannot be told"):
            show(None, home / ("x" * 256))
