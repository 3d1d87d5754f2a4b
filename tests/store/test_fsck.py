# SPDX-License-Identifier: Apache-2.0
"""fsck reads to the last byte, names what is damaged, salvages the rest, changes nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from serdab.keys import Key
from serdab.sefs.damage import Report
from serdab.sefs.fsck import check, salvage
from serdab.sefs.image import open_image
from serdab.sefs.imagebuild import ImageOptions, build_image
from serdab.sefs.segment import POINTER
from serdab.sefs.volume import Volume, memory_volume, open_volume
from serdab.vfs.union import Union
from tests.property.fsops import picture

KEY = Key(b"f" * 16)


def make_volume(path: Path) -> None:
    path.mkdir()
    fs = Union(open_volume(path, key=KEY, create=True, chunk_size=4096), None)
    for number in range(30):
        parent = fs.mkdir(1, b"dir%d" % number, 0o755, 0, 0)
        inode = fs.mknod(parent.ino, b"file", 0o100644, 0, 0, 0)
        fs.write(inode.ino, 0, memoryview(bytes([number]) * 10_000), kill_suidgid=False)
    fs.close()


def verify(path: Path) -> Report:
    volume = open_volume(path, key=KEY, read_only=True, tolerant=True)
    try:
        return check(lambda: Union(volume, None), [volume.tree], upper=volume)
    finally:
        volume.close()


def digest_of(path: Path) -> dict[str, str]:
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def record_of(path: Path, name: bytes, chunk: int) -> tuple[Path, int]:
    """Return the host file and offset of a chunk of ``name/file``."""
    volume = open_volume(path, key=KEY, read_only=True)
    fs = Union(volume, None)
    ino = fs.lookup(fs.lookup(1, name).ino, b"file").ino
    segment, offset, *_ = POINTER.unpack(volume._content._pointer(ino, chunk))
    fs.close()
    return path / "seg" / f"{segment:08x}", offset


def flip(file: Path, offset: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[offset] ^= 1
    file.write_bytes(raw)


def test_a_whole_volume_is_clean(tmp_path: Path) -> None:
    make_volume(tmp_path / "v")
    before = digest_of(tmp_path / "v")
    report = verify(tmp_path / "v")
    assert report.is_clean(), report.damaged
    assert (report.files, report.directories, report.content_bytes) == (30, 31, 300_000)
    assert digest_of(tmp_path / "v") == before


def test_what_nobody_names_is_told(tmp_path: Path) -> None:
    make_volume(tmp_path / "v")
    volume = open_volume(tmp_path / "v", key=KEY)
    fs = Union(volume, None)
    ino = fs.lookup(fs.lookup(1, b"dir7").ino, b"file").ino
    volume.remove_dirent(fs.lookup(1, b"dir7").ino, b"file")  # the name alone
    fs.close()
    report = verify(tmp_path / "v")
    assert report.damaged == {f"inode {ino}": "is stored, and no name leads to it"}


def test_a_damaged_chunk_is_named_by_its_path_alone(tmp_path: Path) -> None:
    make_volume(tmp_path / "v")
    file, offset = record_of(tmp_path / "v", b"dir7", 1)
    flip(file, offset + 5)
    report = verify(tmp_path / "v")
    assert list(report.damaged) == ["/dir7/file"]


def test_salvage_keeps_everything_but_the_damaged_chunk(tmp_path: Path) -> None:
    make_volume(tmp_path / "v")
    file, offset = record_of(tmp_path / "v", b"dir7", 1)
    flip(file, offset)
    before = digest_of(tmp_path / "v")
    (tmp_path / "out").mkdir()
    damaged = open_volume(tmp_path / "v", key=KEY, read_only=True, tolerant=True)
    into = open_volume(tmp_path / "out", key=KEY, create=True, chunk_size=4096)
    report = salvage(damaged, into)
    into.close()
    damaged.close()
    assert list(report.damaged) == ["/dir7/file"]
    assert digest_of(tmp_path / "v") == before
    assert verify(tmp_path / "out").is_clean()
    fs = Union(open_volume(tmp_path / "out", key=KEY), None)
    for number in range(30):
        ino = fs.lookup(fs.lookup(1, b"dir%d" % number).ino, b"file").ino
        buf = bytearray(10_000)
        assert fs.read_into(ino, 0, memoryview(buf)) == 10_000
        expected = bytearray(bytes([number]) * 10_000)
        if number == 7:
            expected[4096:8192] = bytes(4096)
        assert buf == expected
    fs.close()


@pytest.mark.parametrize("encrypted", [False, True])
def test_an_image_names_its_damaged_file(tmp_path: Path, encrypted: bool) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(20):
        content = b"".join(hashlib.sha256(b"%d %d" % (number, i)).digest() for i in range(512))
        (source / f"file{number}").write_bytes(content)
    key = KEY if encrypted else None
    info = build_image(source, tmp_path / "i", key=key, options=ImageOptions(chunk_size=16384))

    def verify_image() -> Report:
        image = open_image(tmp_path / "i", key=key, expected_mac=info.root_mac)
        report = check(lambda: Union(memory_volume(image), image), [image.tree])
        image.close()
        return report

    assert verify_image().is_clean()
    assert verify_image().files == 20
    flip(tmp_path / "i/image.sefs", 4096 + 3 * (16384 + 16 * encrypted) + 100)
    report = verify_image()
    assert len(report.damaged) == 1
    assert next(iter(report.damaged)).startswith("/file")


def test_a_lost_root_page_is_reported_not_raised(tmp_path: Path) -> None:
    make_volume(tmp_path / "v")
    volume: Volume = open_volume(tmp_path / "v", key=KEY, read_only=True)
    segment, offset, *_ = POINTER.unpack(volume.state.root)
    volume.close()
    flip(tmp_path / "v/seg" / f"{segment:08x}", offset + 20)
    assert "tree root" in verify(tmp_path / "v").damaged


def test_salvage_takes_what_only_the_log_holds(tmp_path: Path) -> None:
    """A killed session leaves synced writes in its log; they were acknowledged."""
    (tmp_path / "v").mkdir()
    (tmp_path / "w").mkdir()
    volume = open_volume(tmp_path / "v", key=KEY, create=True, chunk_size=4096)
    fs = Union(volume, None)
    big, inline, fresh = (
        fs.mknod(1, name, 0o100644, 0, 0, 0).ino for name in (b"big", b"inline", b"fresh")
    )
    fs.write(big, 0, memoryview(b"first" * 2000), kill_suidgid=False)
    fs.write(inline, 0, memoryview(b"a few bytes"), kill_suidgid=False)
    fs.close()
    volume = open_volume(tmp_path / "v", key=KEY, chunk_size=4096)
    fs = Union(volume, None)
    big, inline, fresh = (fs.lookup(1, name).ino for name in (b"big", b"inline", b"fresh"))
    fs.syncfs()
    fs.write(big, 5003, memoryview(b"LOGGED"), kill_suidgid=False)
    fs.write(inline, 2, memoryview(b"FEW"), kill_suidgid=False)
    fs.write(fresh, 0, memoryview(b"logged"), kill_suidgid=False)
    fs.syncfs()
    expected = picture(fs)
    volume.abandon()
    damaged = open_volume(tmp_path / "v", key=KEY, read_only=True, tolerant=True)
    into = open_volume(tmp_path / "w", key=KEY, create=True, chunk_size=4096)
    assert salvage(damaged, into).is_clean()
    into.close()
    damaged.close()
    fs = Union(open_volume(tmp_path / "w", key=KEY, read_only=True), None)
    assert picture(fs) == expected
    fs.close()
