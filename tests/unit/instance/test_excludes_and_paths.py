# SPDX-License-Identifier: Apache-2.0
"""Exclude patterns, and paths that stay inside a tree."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serdab.errors import UsageError
from serdab.instance.excludes import Excludes
from serdab.instance.intree import Tree
from serdab.linux.dirfd import DirFd


class TestExcludes:
    @pytest.mark.parametrize(
        ("pattern", "path", "is_directory", "expected"),
        [
            (".git", ".git", True, True),
            (".git", "a/b/.git", True, True),
            (".git", "a/x.git", True, False),
            (".git", ".gitignore", False, False),
            ("*.pyc", "a/b.pyc", False, True),
            ("*.pyc", "a/b.py", False, False),
            ("cache/", "cache", True, True),
            ("cache/", "cache", False, False),
            ("/top", "top", False, True),
            ("/top", "a/top", False, False),
            ("a/b", "x/a/b", False, True),
            ("a/b", "xa/b", False, False),
            ("a/*/c", "a/b/c", False, True),
            ("a/*/c", "a/b/d/c", False, False),
            ("a/**/c", "a/b/d/c", False, True),
            ("lib?.so", "lib1.so", False, True),
            ("lib?.so", "lib/.so", False, False),
            ("[a-c]x", "bx", False, True),
            ("[!a-c]x", "bx", False, False),
            ("[!a-c]x", "dx", False, True),
            ("a.b", "axb", False, False),
        ],
    )
    def test_match_as_rsync_does(
        self, pattern: str, path: str, is_directory: bool, expected: bool
    ) -> None:
        assert Excludes([pattern]).match(path, is_directory=is_directory) is expected

    @pytest.mark.parametrize("pattern", ["", "/", "+ x", "- x", "!", ": x", "[a", "a\\*b", "[b-a]"])
    def test_the_rest_of_the_language_is_refused(self, pattern: str) -> None:
        with pytest.raises(ValueError, match=r"pattern|class"):
            Excludes([pattern])


def place(root: Path, path: str) -> str:
    """Return where a path in a tree goes, relative to it."""
    with DirFd.at(str(root)) as top, Tree(top).place(path) as spot:
        return spot.path


def resolve(root: Path, path: str) -> str | None:
    """Return where a path in a tree leads, relative to it; None if nothing is there."""
    with DirFd.at(str(root)) as top, Tree(top).find(path) as spot:
        return None if spot is None or spot.status() is None else spot.path


class TestTreePaths:
    @pytest.mark.parametrize(
        "target", ["/outside", "../../../../outside", "/../../outside", "a/../../../outside"]
    )
    def test_a_link_in_the_tree_never_leads_out_of_it(self, tmp_path: Path, target: str) -> None:
        root = tmp_path / "root"
        (root / "a").mkdir(parents=True)
        (tmp_path / "outside").mkdir()
        (root / "lib").symlink_to(target)
        assert place(root, "/lib/libc.so") == "outside/libc.so"
        assert (root / "outside").is_dir()
        assert list((tmp_path / "outside").iterdir()) == []

    def test_the_last_component_is_not_followed_when_it_is_placed(self, tmp_path: Path) -> None:
        (tmp_path / "x").symlink_to("y")
        assert place(tmp_path, "/x") == "x"
        assert resolve(tmp_path, "/x") is None
        (tmp_path / "y").write_text("")
        assert resolve(tmp_path, "/x") == "y"

    def test_circles_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        assert resolve(tmp_path, "/a/x") is None
        with pytest.raises(UsageError, match="circles"):
            place(tmp_path, "/a/x")

    def test_a_file_in_the_way_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("")
        with pytest.raises(UsageError, match="a file stands"):
            place(tmp_path, "/a/x")

    @given(st.lists(st.sampled_from(["..", ".", "a", "b", ""]), max_size=8).map("/".join))
    def test_no_path_leads_out(self, path: str) -> None:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name, "root")
            (root / "a").mkdir(parents=True)
            (root / "b").symlink_to("../../..")
            before = len(os.listdir("/proc/self/fd"))
            found = resolve(root, path)
            assert found is None or ".." not in found.split("/")
            assert found is None or (root / found).exists()
            assert len(os.listdir("/proc/self/fd")) == before
