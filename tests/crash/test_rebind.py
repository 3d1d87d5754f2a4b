# SPDX-License-Identifier: Apache-2.0
"""A layer bound to another image that holds the same: proved first, and whole at any power cut."""

from __future__ import annotations

import copy
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from serdab.errors import LayerMismatch
from serdab.sefs.anchor import SLOT_BYTES
from serdab.sefs.image import Image, open_image
from serdab.sefs.imagebuild import ImageOptions, build_image
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.rebind import prove_same, rebind
from serdab.sefs.volume import open_volume_in
from serdab.testing.crashes import CrashStates
from serdab.testing.recording import RecordingDir
from serdab.vfs.api import SetAttr
from serdab.vfs.union import Union
from tests.crash.actor import CHUNK
from tests.crash.storm import KEY, TINY
from tests.harness.version1 import building_version_1
from tests.property.fsops import picture

OTHER_FORMS = {
    "another chunk size": ImageOptions(chunk_size=65536, page_size=4096),
    "no compression": ImageOptions(zstd_level=0, padding=4096),
    "small units": ImageOptions(chunk_size=4096, page_size=4096, zstd_level=9),
}


VERSIONS = pytest.mark.parametrize("version", [1, 2])
"""Of the layer; it stays what it is."""


def make_tree(top: Path) -> None:
    noise = random.Random(4)
    (top / "dir/deep").mkdir(parents=True)
    (top / "small").write_bytes(b"small")
    (top / "text").write_bytes(b"a line of text\n" * 4000)
    (top / "noise").write_bytes(noise.randbytes(90_000))
    (top / "dir/hard").hardlink_to(top / "noise")
    (top / "dir/link").symlink_to("../text")
    (top / "dir/deep/empty").write_bytes(b"")
    (top / "hole").write_bytes(bytes(200_000) + b"end")
    os.setxattr(top / "text", "user.note", b"value")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    make_tree(tmp_path / "tree")
    return tmp_path / "tree"


def old_image(tree: Path, out: Path) -> Image:
    with building_version_1():
        build_image(tree, out, key=KEY)
    return open_image(out, key=KEY, expected_mac=None)


def new_image(tree: Path, out: Path, options: ImageOptions | None = None) -> Image:
    build_image(tree, out, key=KEY, options=options)
    return open_image(out, key=KEY, expected_mac=None)


Openers = tuple[Callable[[], Image], Callable[[], Image]]


@pytest.fixture
def images(tree: Path, tmp_path: Path) -> Openers:
    """What opens the old image, and the new one; a union closes what it lies over."""
    old_image(tree, tmp_path / "old").close()
    new_image(tree, tmp_path / "new").close()
    return (
        lambda: open_image(tmp_path / "old", key=KEY, expected_mac=None),
        lambda: open_image(tmp_path / "new", key=KEY, expected_mac=None),
    )


class TestProof:
    @pytest.mark.parametrize("form", OTHER_FORMS)
    def test_the_same_tree_in_any_form(self, tree: Path, tmp_path: Path, form: str) -> None:
        old = old_image(tree, tmp_path / "old")
        for number, options in enumerate((None, OTHER_FORMS[form])):
            new = new_image(tree, tmp_path / str(number), options)
            assert old.root_mac != new.root_mac
            prove_same(old, new)
            prove_same(new, old)
            new.close()
        old.close()

    CHANGES: ClassVar[dict[str, Callable[[Path], object]]] = {
        "a byte": lambda top: (top / "noise").write_bytes(
            (top / "noise").read_bytes()[:-1] + b"\0"
        ),
        "a byte of a small file": lambda top: (top / "small").write_bytes(b"smalL"),
        "the end of a hole": lambda top: (top / "hole").write_bytes(bytes(200_000) + b"enD"),
        "a longer file": lambda top: (top / "small").write_bytes(b"small and more"),
        "a mode": lambda top: (top / "text").chmod(0o600),
        "a time": lambda top: os.utime(top / "text", (7, 7)),
        "a target": lambda top: [
            (top / "dir/link").unlink(), (top / "dir/link").symlink_to("../next")
        ],
        "an attribute": lambda top: os.setxattr(top / "text", "user.note", b"other"),
        "an attribute more": lambda top: os.setxattr(top / "text", "user.more", b""),
        "an attribute less": lambda top: os.removexattr(top / "text", "user.note"),
        "a name": lambda top: (top / "dir/deep/empty").rename(top / "dir/deep/full"),
        "a file more": lambda top: (top / "zzz").write_bytes(b""),
        "a file less": lambda top: (top / "dir/deep/empty").unlink(),
        "two files for a link": lambda top: [
            (top / "dir/hard").unlink(),
            (top / "dir/hard").write_bytes((top / "noise").read_bytes()),
        ],
        "another type": lambda top: [
            (top / "dir/deep/empty").unlink(), (top / "dir/deep/empty").mkdir()
        ],
        "names exchanged": lambda top: [
            (top / "small").rename(top / "x"), (top / "text").rename(top / "small"),
            (top / "x").rename(top / "text"),
        ],
    }  # fmt: skip

    @pytest.mark.parametrize("change", CHANGES)
    def test_any_difference_is_named(self, tree: Path, tmp_path: Path, change: str) -> None:
        old = old_image(tree, tmp_path / "old")
        stamps = {path: path.lstat().st_mtime for path in tree.rglob("*")}
        self.CHANGES[change](tree)
        for path, stamp in stamps.items():  # so that the change is the only one
            if path.is_file() and change != "a time":
                os.utime(path, (stamp, stamp))
        new = new_image(tree, tmp_path / "new")
        for one, other in ((old, new), (new, old)):
            with pytest.raises(LayerMismatch, match="does not hold") as refusal:
                prove_same(one, other)
            assert refusal.value.subject
        old.close()
        new.close()


def changed_layer(host: MemoryDir, lower: Callable[[], Image], version: int) -> None:
    """Write a layer that takes most of its content from below."""
    fs = opened(host, lower, version)
    fs.setattr(fs.lookup(1, b"noise").ino, SetAttr(mode=0o100640))
    fs.write(fs.lookup(1, b"text").ino, 5000, memoryview(b"changed"), kill_suidgid=False)
    fs.unlink(1, b"small")
    fs.rename(1, b"dir", 1, b"moved", 0)
    fresh = fs.mknod(1, b"fresh", 0o100600, 0, 0, 0)
    fs.write(fresh.ino, 0, memoryview(b"fresh" * 3000), kill_suidgid=False)
    fs.close()


def opened(
    host: MemoryDir | RecordingDir, open_lower: Callable[[], Image], version: int = 2
) -> Union:
    lower = open_lower()
    volume = open_volume_in(
        host, key=KEY, lower=lower, create=True, chunk_size=CHUNK, page_size=1024, limits=TINY,
        version=version,
    )  # fmt: skip
    return Union(volume, lower)


def bind(
    host: MemoryDir | RecordingDir, old: Callable[[], Image], new: Callable[[], Image]
) -> None:
    lower, other = old(), new()
    prove_same(lower, other)
    volume = open_volume_in(host, key=KEY, lower=lower, limits=TINY)
    rebind(volume, other)
    volume.close()
    lower.close()
    other.close()


@VERSIONS
def test_a_layer_shows_the_same_over_the_other_image(images: Openers, version: int) -> None:
    old, new = images
    host = MemoryDir("host")
    changed_layer(host, old, version)
    before = picture(opened(copy.deepcopy(host), old))
    bind(host, old, new)
    fs = opened(host, new)
    assert picture(fs) == before
    more = fs.mknod(1, b"more", 0o100600, 0, 0, 0)
    fs.write(more.ino, 0, memoryview(b"more"), kill_suidgid=False)
    fs.close()
    with pytest.raises(LayerMismatch):
        opened(host, old)
    # Neither slot of the anchor leads back.
    for slot in (0, 1):
        damaged = copy.deepcopy(host)
        damaged.files["anchor"].content[slot * SLOT_BYTES + 200] ^= 1
        with pytest.raises(LayerMismatch):
            opened(damaged, old)
        opened(damaged, new).close()


@VERSIONS
def test_a_power_cut_leaves_it_with_the_one_or_the_other(images: Openers, version: int) -> None:
    old, new = images
    log = logging.getLogger("serdab.sefs")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        ground = MemoryDir("host")
        changed_layer(ground, old, version)
        before = picture(opened(copy.deepcopy(ground), old))
        host = RecordingDir.over(ground)
        bind(host, old, new)
        seen = {True: 0, False: 0}
        for state in CrashStates(host.trace, seed=1, per_point=6):
            try:
                fs = opened(copy.deepcopy(state.host), new)
                is_new = True
            except LayerMismatch:
                fs = opened(copy.deepcopy(state.host), old)
                is_new = False
            seen[is_new] += 1
            assert picture(fs) == before, state.kind
            fs.close()
            if not is_new:  # the same step again completes it
                again = copy.deepcopy(state.host)
                bind(again, old, new)
                fs = opened(again, new)
                assert picture(fs) == before
                fs.close()
    finally:
        log.setLevel(level)
    assert seen[True] > 5
    assert seen[False] > 5
