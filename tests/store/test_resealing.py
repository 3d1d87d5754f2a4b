# SPDX-License-Identifier: Apache-2.0
"""An image and a volume sealed again under another key hold the same, and refer to the same."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from serdab.errors import AuthenticationError, WrongKeyError
from serdab.keys import Key
from serdab.sefs import volumecopy
from serdab.sefs.image import Image, open_image
from serdab.sefs.imagebuild import ImageOptions, build_image, reseal_image
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.position import Order, Position
from serdab.sefs.segment import POINTER
from serdab.sefs.volume import Volume, memory_volume, open_volume
from serdab.sefs.volumecopy import close_for_copy, copy_volume
from serdab.vfs.api import SetAttr
from serdab.vfs.union import Union
from tests.property.fsops import Operations, apply, picture

OLD, NEW = Key(b"o" * 16), Key(b"n" * 16)
NEVER = VolumeLimits(checkpoint_s=1e9)


def make_tree(source: Path) -> None:
    """Everything that decides where the bytes of an image go."""
    rng = random.Random(5)
    (source / "dir/b").mkdir(parents=True)
    (source / "a").write_bytes(b"lower content " * 9000)
    (source / "dir/a").write_bytes(rng.randbytes(300_000))
    (source / "dir/b/e.txt").write_bytes(b"small")
    (source / "c").symlink_to("dir/a")
    (source / "e.txt").hardlink_to(source / "a")
    (source / "dir/b/hard").hardlink_to(source / "dir/a")
    os.mkfifo(source / "dir/pipe")
    (source / "empty").write_bytes(b"")
    (source / "setuid").write_bytes(rng.randbytes(2049))
    (source / "setuid").chmod(0o4750)
    os.setxattr(source / "setuid", "user.note", b"value")
    with (source / "holes").open("wb") as file:
        file.seek(3 << 20)
        file.write(b"end")
    (source / "packs").mkdir()
    for number in range(400):
        # Small tails that share records, and packs that are cut where the path says so.
        (source / f"packs/{number:03d}").write_bytes(rng.randbytes(rng.randrange(2000, 40_000)))
    (source / "packs/big").write_bytes(rng.randbytes(18 << 20))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("tree")
    make_tree(source)
    return source


@pytest.mark.parametrize(
    "options",
    [ImageOptions(), ImageOptions(chunk_size=4096, page_size=4096, zstd_level=0, clamp_s=7)],
    ids=["usual", "small units, no compression"],
)
def test_a_resealed_image_is_the_one_that_a_build_with_the_new_key_makes(
    tree: Path, tmp_path: Path, options: ImageOptions
) -> None:
    old = build_image(tree, tmp_path / "old", key=OLD, options=options)
    direct = build_image(tree, tmp_path / "direct", key=NEW, options=options)
    image = open_image(tmp_path / "old", key=OLD, expected_mac=old.root_mac)
    again = reseal_image(image, tmp_path / "again", key=NEW)
    image.close()
    assert again == direct
    made = (tmp_path / "again/image.sefs").read_bytes()
    assert made == (tmp_path / "direct/image.sefs").read_bytes()
    with pytest.raises(WrongKeyError):
        open_image(tmp_path / "again", key=OLD, expected_mac=again.root_mac)


def test_a_file_is_replaced_in_a_resealed_image(tmp_path: Path) -> None:
    (tmp_path / "tree/etc").mkdir(parents=True)
    (tmp_path / "tree/etc/key").write_bytes(b"the old one\n")
    (tmp_path / "tree/etc/other").write_bytes(b"other\n")
    old = build_image(tmp_path / "tree", tmp_path / "old", key=None)
    image = open_image(tmp_path / "old", key=None, expected_mac=old.root_mac)
    again = reseal_image(
        image, tmp_path / "again", key=None, replaced={b"etc/key": b"a longer new one\n"}
    )
    image.close()
    assert b"the old one" not in (tmp_path / "again/image.sefs").read_bytes()
    image = open_image(tmp_path / "again", key=None, expected_mac=again.root_mac)
    shown = {path: entry[4] for path, entry in picture(Union(memory_volume(image), image)).items()}
    image.close()
    assert shown[b"/etc/key"] == b"a longer new one\n"
    assert shown[b"/etc/other"] == b"other\n"


def test_a_damaged_image_is_not_resealed(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(os.urandom(100_000))
    old = build_image(tmp_path / "tree", tmp_path / "old", key=OLD)
    file = tmp_path / "old/image.sefs"
    raw = bytearray(file.read_bytes())
    raw[4096 + 50_000] ^= 1
    file.write_bytes(raw)
    image = open_image(tmp_path / "old", key=OLD, expected_mac=old.root_mac)
    with pytest.raises(AuthenticationError, match="stored bytes do not match"):
        reseal_image(image, tmp_path / "again", key=NEW)
    image.close()
    assert not list((tmp_path / "again").iterdir())


# Volumes ----------------------------------------------------------------------------------


def full_picture(fs: Union) -> dict[bytes, tuple[Any, ...]]:
    """Return the picture of the tree with inode numbers, owners and times."""
    found: dict[bytes, tuple[Any, ...]] = {}
    for path, entry in picture(fs).items():
        ino = 1
        for name in path.split(b"/")[1:]:
            ino = fs.lookup(ino, name).ino
        inode = fs.getattr(ino)
        times = (inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.btime_ns)
        found[path] = (*entry, ino, inode.gid, inode.rdev, times)
    return found


class Pair:
    """A volume over an image, and what both become under the new key."""

    def __init__(self, folder: Path) -> None:
        self.volume, self.copied = folder / "v", folder / "w"
        self._image, self._again = folder / "image", folder / "again"
        source = folder / "source"
        (source / "dir" / "b").mkdir(parents=True)
        (source / "a").write_bytes(b"lower content " * 9000)
        (source / "dir" / "a").write_bytes(b"x" * 3000)
        (source / "dir" / "b" / "e.txt").write_bytes(b"small")
        (source / "c").symlink_to("dir/a")
        (source / "e.txt").hardlink_to(source / "a")
        build_image(source, self._image, key=OLD)
        image = self.lower()
        reseal_image(image, self._again, key=NEW)
        image.close()
        self.volume.mkdir()

    def lower(self) -> Image:
        return open_image(self._image, key=OLD, expected_mac=None)

    def new_lower(self) -> Image:
        return open_image(self._again, key=NEW, expected_mac=None)

    def open(self) -> tuple[Union, Volume]:
        lower = self.lower()
        volume = open_volume(self.volume, key=OLD, lower=lower, create=True, limits=NEVER)
        return Union(volume, lower), volume

    def open_copy(self, *, read_only: bool) -> tuple[Union, Volume]:
        lower = self.new_lower()
        volume = open_volume(self.copied, key=NEW, lower=lower, read_only=read_only)
        return Union(volume, lower), volume

    def copy(self) -> Position:
        """Copy the volume; return the position of the original."""
        lower, new_lower = self.lower(), self.new_lower()
        close_for_copy(open_volume(self.volume, key=OLD, lower=lower))
        original = open_volume(self.volume, key=OLD, lower=lower, read_only=True)
        self.copied.mkdir()
        try:
            copy_volume(original, self.copied, key=NEW, lower=new_lower, source=b'{"key":"x"}')
            assert original.position is not None
            return original.position
        finally:
            original.close()
            lower.close()
            new_lower.close()


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def put(fs: Union, name: bytes, content: bytes) -> int:
    inode = fs.mknod(1, name, 0o100644, 0, 0, 0)
    fs.write(inode.ino, 0, memoryview(content), kill_suidgid=False)
    return inode.ino


@pytest.mark.parametrize("seed", range(8))
def test_a_copied_volume_shows_the_same_tree(pair: Pair, seed: int) -> None:
    operations = Operations(seed)
    fs, volume = pair.open()
    for number in range(150):
        apply(fs, operations.draw())
        if number % 40 == 39:
            fs.syncfs()
    fs.syncfs()
    if seed % 2:
        before = full_picture(fs)
        volume.abandon()  # as if killed: what the log holds is part of the state
    else:
        fs.close()
        fs, volume = pair.open()
        before = full_picture(fs)
        fs.close()
    pair.copy()
    fs, volume = pair.open_copy(read_only=True)
    assert full_picture(fs) == before
    assert volume.source == b'{"key":"x"}'
    fs.close()


def test_a_copy_refers_to_its_lower_layer_and_takes_no_content_from_it(pair: Pair) -> None:
    fs, _ = pair.open()
    big = fs.lookup(1, b"a").ino
    fs.setattr(big, SetAttr(mode=0o100600))
    fs.write(big, 70_000, memoryview(b"one chunk of it"), kill_suidgid=False)
    fs.close()
    pair.copy()
    stored = sum(file.stat().st_size for file in (pair.copied / "seg").iterdir())
    assert stored < 64 << 10  # the file has 126 kB
    fs, _ = pair.open_copy(read_only=True)
    content = bytearray(b"lower content " * 9000)
    content[70_000:70_015] = b"one chunk of it"
    assert picture(fs)[b"/a"][4] == content
    fs.close()


def test_a_copy_can_be_written_to_and_keeps_numbers_apart(pair: Pair) -> None:
    fs, _ = pair.open()
    gone = put(fs, b"gone", b"x")
    fs.unlink(1, b"gone")
    fs.forget(gone, 1)
    fs.close()
    pair.copy()
    fs, _ = pair.open_copy(read_only=False)
    assert put(fs, b"fresh", b"y") > gone  # a number is never used twice
    fs.close()
    fs, _ = pair.open_copy(read_only=True)
    assert picture(fs)[b"/fresh"][4] == b"y"
    fs.close()


def test_what_is_written_is_what_is_alive(pair: Pair) -> None:
    fs, _ = pair.open()
    put(fs, b"kept", os.urandom(8 << 20))
    dead = put(fs, b"dead", os.urandom(8 << 20))
    fs.syncfs()
    fs.unlink(1, b"dead")
    fs.forget(dead, 1)
    fs.close()
    pair.copy()
    written = sum(file.stat().st_size for file in pair.copied.rglob("*") if file.is_file())
    assert written < 1.02 * (8 << 20) + (64 << 10)


def test_a_copy_of_many_batches_is_one_checkpoint_ahead(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumecopy, "_BATCH_BYTES", 16 << 10)
    fs, _ = pair.open()
    for number in range(300):
        put(fs, b"%03d" % number, os.urandom(3000))
    fs.syncfs()
    before = full_picture(fs)
    fs.close()
    position = pair.copy()
    fs, volume = pair.open_copy(read_only=True)
    assert volume.position is not None
    assert position.epoch < volume.position.epoch <= position.epoch + 2
    assert full_picture(fs) == before
    fs.close()


def test_a_copy_is_a_later_state_and_the_original_an_older_one(pair: Pair) -> None:
    fs, _ = pair.open()
    put(fs, b"file", b"content")
    fs.close()
    position = pair.copy()
    fs, volume = pair.open_copy(read_only=True)
    assert volume.position is not None
    assert volume.position.order(position) is Order.NEWER
    assert not volume.contradicts(position)
    assert position.order(volume.position) is Order.OLDER
    fs.close()


@pytest.mark.parametrize("sessions", [1, 2, 3])
@pytest.mark.parametrize("synced", [False, True], ids=["checkpoints only", "commits"])
def test_a_copy_of_an_original_that_went_on_is_refused(
    pair: Pair, sessions: int, synced: bool
) -> None:
    fs, _ = pair.open()
    put(fs, b"file", b"content")
    fs.close()
    pair.copy()
    for number in range(sessions):
        fs, _ = pair.open()
        put(fs, b"later%d" % number, b"content")
        if synced:
            fs.syncfs()
            put(fs, b"more%d" % number, b"content")
            fs.syncfs()
        fs.close()
    lower = pair.lower()
    original = open_volume(pair.volume, key=OLD, lower=lower, read_only=True)
    remembered = original.position
    original.close()
    lower.close()
    assert remembered is not None
    fs, copy = pair.open_copy(read_only=True)
    assert copy.position is not None
    order = copy.position.order(remembered)
    assert order in (Order.OLDER, Order.FORK) or copy.contradicts(remembered)
    fs.close()


def test_a_volume_without_a_change_is_copied_too(pair: Pair) -> None:
    fs, _ = pair.open()
    fs.syncfs()
    gone = put(fs, b"gone", b"")
    fs.unlink(1, b"gone")
    fs.forget(gone, 1)
    fs.close()
    pair.copy()
    fs, _ = pair.open_copy(read_only=True)
    assert b"/a" in picture(fs)
    fs.close()


def test_a_damaged_volume_is_not_copied(pair: Pair) -> None:
    fs, volume = pair.open()
    ino = put(fs, b"file", os.urandom(100_000))
    fs.syncfs()
    segment, offset, *_ = POINTER.unpack(volume._content._pointer(ino, 1))
    fs.close()
    file = pair.volume / "seg" / f"{segment:08x}"
    raw = bytearray(file.read_bytes())
    raw[offset + 7] ^= 1
    file.write_bytes(raw)
    with pytest.raises(AuthenticationError, match="damaged") as refusal:
        pair.copy()
    assert f"inode {ino}, chunk 1" in refusal.value.subject
