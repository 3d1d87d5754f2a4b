# SPDX-License-Identifier: Apache-2.0
"""Where a file lies, by whatever mount: two paths of one place are one place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from serdab.linux.mounts import MountFlag, UmountFlag, mount, umount
from serdab.linux.whereabouts import MountTable, Where

pytestmark = pytest.mark.root


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    if os.geteuid() != 0:
        pytest.skip("mounts")
    with ExitStack() as stack:
        yield stack


def bind(stack: ExitStack, source: Path, target: Path) -> None:
    target.mkdir()
    mount(os.fspath(source), os.fspath(target), "", MountFlag.BIND, "")
    stack.callback(umount, os.fspath(target), UmountFlag.DETACH)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)


def where(table: MountTable, path: Path) -> Where:
    with opened(path) as fd:
        return table.of(fd)


def test_a_bind_mount_lies_where_its_source_does(tmp_path: Path, stack: ExitStack) -> None:
    odd = tmp_path / "a b\t\\c\n"
    (odd / "d").mkdir(parents=True)
    with MountTable() as table:
        before = where(table, odd / "d")
        bind(stack, odd, tmp_path / "o t")  # the table hears of it
        assert where(table, tmp_path / "o t/d") == before
        assert before.below(where(table, odd)) == b"d"
        assert {os.fsencode(odd / "d"), os.fsencode(tmp_path / "o t/d")} == set(table.names(before))
        shown = [each.shows for each in table.mounted_below(os.fsencode(tmp_path))]
        assert shown == [where(table, odd)]


def test_another_file_system_is_another_place(tmp_path: Path, stack: ExitStack) -> None:
    (tmp_path / "m").mkdir()
    with MountTable() as table:
        below = where(table, tmp_path / "m")
        mount("tmpfs", os.fspath(tmp_path / "m"), "tmpfs", MountFlag(0), "")
        stack.callback(umount, os.fspath(tmp_path / "m"), UmountFlag.DETACH)
        assert where(table, tmp_path / "m").device != below.device
        # What is named there lies on the one, and would lie on the other without the mount.
        named = table.named(os.fsencode(tmp_path / "m"))
        assert named == {below, where(table, tmp_path / "m")}


def test_what_is_not_there_lies_where_it_would_be_made(tmp_path: Path, stack: ExitStack) -> None:
    with MountTable() as table:
        here = where(table, tmp_path)
        assert table.named(os.fsencode(tmp_path / "x/y/z")) == {here.join(b"x/y/z")}
        (tmp_path / "l").symlink_to("x")
        assert table.named(os.fsencode(tmp_path / "l")) == {here.join(b"l")}
        (tmp_path / "x").mkdir()
        assert table.named(os.fsencode(tmp_path / "l")) == {here.join(b"l"), here.join(b"x")}


def test_names_that_begin_alike_are_not_below_each_other() -> None:
    assert not Where(b"1:2", b"/ab").is_below(Where(b"1:2", b"/a"))
    assert not Where(b"1:2", b"/a/b").is_below(Where(b"1:3", b"/a"))
    assert Where(b"1:2", b"/a").is_below(Where(b"1:2", b"/"))
    assert Where(b"1:2", b"/a").below(Where(b"1:2", b"/")) == b"a"
