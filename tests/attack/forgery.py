# SPDX-License-Identifier: Apache-2.0
"""Forges authentic but hostile images: an enemy who holds the key, or whose image was measured.

``forge`` builds a real image whose items were changed before they were sealed; ``raw_image`` seals
any bytes as the pages of a tree.
"""

from __future__ import annotations

import resource
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serdab.crypto.hashes import HashAlgorithm, digest_function
from serdab.errors import Error, FsError
from serdab.keys import Key
from serdab.sefs import imagebuild
from serdab.sefs import keyspace as ks
from serdab.sefs.imageformat import (
    HEADER_BYTES,
    IMAGE_NAME,
    META_PACK,
    V1,
    V2,
    Header,
    Mode,
    Pointer,
    header_mac,
)
from serdab.sefs.imagepages import PageWriter
from serdab.sefs.imagewalk import Source, SourceEntry
from serdab.sefs.page import Item
from serdab.vfs.api import NOW_NS, ROOT_INO, Inode, SetAttr
from serdab.vfs.layer import Dirent
from serdab.vfs.union import Union
from tests.harness.hangs import no_hang
from tests.harness.version1 import Version1Builder

Items = dict[bytes, bytes]
INODE = struct.Struct("<IIIIIIQqqqqQQ")
INODE_FIELDS = (
    "mode", "nlink", "uid", "gid", "rdev", "flags", "size", "atime_ns", "mtime_ns", "ctime_ns",
    "btime_ns", "lower_limit", "parent_ino",
)  # fmt: skip


def forge(
    source: Path,
    out: Path,
    *,
    key: Key | None,
    change: Callable[[Items], list[Item] | None],
    version: int = V2,
) -> bytes:
    """Build an image whose items ``change`` has had its way with; return its root MAC."""

    class OldForger(Version1Builder):
        def _items(self, source: Source, entries: list[SourceEntry]) -> list[Item]:
            return _changed(super()._items(source, entries), change)

    write_pages = PageWriter._pages

    def forged_pages(
        self: PageWriter, items: list[Item], offset: int, packs: list[bytes]
    ) -> tuple[Pointer, int, bytes, int]:
        content = [item for item in items if item[0][8] == ks.T_INLINE]
        others = [item for item in items if item[0][8] != ks.T_INLINE]
        return write_pages(self, sorted([*_changed(others, change), *content]), offset, packs)

    with pytest.MonkeyPatch.context() as patch:
        if version == V1:
            patch.setattr(imagebuild, "_Builder", OldForger)
        else:
            patch.setattr(PageWriter, "_pages", forged_pages)
        options = imagebuild.ImageOptions(chunk_size=4096, page_size=4096, zstd_level=0)
        return imagebuild.build_image(source, out, key=key, options=options).root_mac


def _changed(items: list[Item], change: Callable[[Items], list[Item] | None]) -> list[Item]:
    """Let ``change`` have its way with all items but content, of which it may add some."""
    found = dict(items)
    return change(found) or list(found.items())


def raw_image(
    folder: Path,
    pages: list[tuple[bytes, int]],
    *,
    root_level: int,
    tail: bytes = b"",
    version: int = V2,
) -> bytes:
    """Seal (stored bytes, flags) as pages, the last one the root; return the root MAC."""
    digest = digest_function(HashAlgorithm.SHA256)
    offset, body = HEADER_BYTES, b""
    pointer = Pointer(HEADER_BYTES, 1, META_PACK, 0, 0, bytes(32))
    for number, (raw, flags) in enumerate(pages):
        pointer = Pointer(offset, len(raw), META_PACK, number, flags, digest(raw))
        body += raw
        offset += len(raw)
    header = Header(
        version, Mode.INTEGRITY, HashAlgorithm.SHA256, 1, root_level, 4096, 4096,
        offset + len(tail), 0, pointer, bytes(32), bytes(32), "a forger",
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / IMAGE_NAME).write_bytes(header.dump() + body + tail)
    return header_mac(header.dump(), header)


def own_mac(raw: bytes) -> bytes:
    """Return the root MAC of any bytes for a header of an image under SHA-256."""
    label = b"serdab sefs image v%d\0" % (V1 if raw[8] == V1 else V2)
    return digest_function(HashAlgorithm.SHA256)(label + raw[:HEADER_BYTES])


def raw_page(level: int, items: list[Item], *, zero: int = 0, count: int | None = None) -> bytes:
    """Return the bytes of a page, sensible or not."""
    keys, values, key_ends, value_ends = b"", b"", [], []
    for key, value in items:
        keys += key
        values += value
        key_ends.append(len(keys))
        value_ends.append(len(values))
    number = len(items) if count is None else count
    ends = struct.pack(f"<{2 * len(items)}I", *key_ends, *value_ends)
    return struct.pack("<BBH", level, zero, number) + ends + keys + values


def changed_inode(items: Items, ino: int, **fields: int) -> None:
    """Change fields of an inode record, in the bytes: no codec has a say."""
    raw = list(INODE.unpack(items[ks.key(ino, ks.T_INODE)]))
    for name, value in fields.items():
        raw[INODE_FIELDS.index(name)] = value
    items[ks.key(ino, ks.T_INODE)] = INODE.pack(*raw)


def add_entry(items: Items, name: bytes, ino: int, dtype: int = 8, parent: int = ROOT_INO) -> None:
    """Add a directory entry, whatever its name."""
    items[ks.dirent_key(parent, name)] = ks.dump_dirent(Dirent(ino, dtype))


@contextmanager
def bounded(*, seconds: int = 20, megabytes: int = 96) -> Iterator[None]:
    """Fail if what is inside hangs, or takes more memory than it may."""

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with no_hang("a hostile image made the store hang", seconds=seconds):
        yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < megabytes << 10, f"memory grew by {grown >> 10} MiB"


class Exerciser:
    """Does to a file system what programs do; only errors of ours may come out."""

    def __init__(self, fs: Union) -> None:
        self.fs = fs
        self.errors: list[Exception] = []
        self.visited = 0

    def run(self) -> None:
        self._walk(ROOT_INO, 0)
        self._try(self.fs.syncfs)
        self._try(self.fs.statfs)
        self._try(self.fs.close)

    def _try(self, act: Callable[..., object], *arguments: object, **keywords: object) -> object:
        try:
            return act(*arguments, **keywords)
        except (Error, FsError) as exc:
            self.errors.append(exc)
            return None

    def _walk(self, ino: int, depth: int) -> None:
        """Go as deep as a path can, into cycles too."""
        if depth > 40 or self.visited > 400:
            return
        try:
            names = [entry.name for entry in self.fs.readdir(ino, 2)]
        except (Error, FsError) as exc:
            self.errors.append(exc)
            names = []
        for name in names:
            self.visited += 1
            inode = self._try(self.fs.lookup, ino, name)
            if not isinstance(inode, Inode):
                continue
            if stat.S_ISDIR(inode.mode):
                self._walk(inode.ino, depth + 1)
            self._use(inode)
            self._try(self.fs.rename, ino, name, ROOT_INO, b"moved", 0)
            self._try(self.fs.link, inode.ino, ROOT_INO, b"linked")
            self._try(self.fs.unlink, ROOT_INO, b"moved")
            self._try(self.fs.unlink, ino, name)
            self._try(self.fs.rmdir, ino, name)
            self._try(self.fs.forget, inode.ino, 1)

    def _use(self, inode: Inode) -> None:
        fs, ino = self.fs, inode.ino
        buf = memoryview(bytearray(70_000))
        for offset in {0, 4096, max(inode.size - 100, 0), 1 << 40, (1 << 63) - 70_001}:
            self._try(fs.read_into, ino, offset, buf)
        for whence in (3, 4):
            self._try(fs.lseek, ino, 0, whence)
        for name in self._try(fs.listxattr, ino) or []:  # type: ignore[attr-defined]
            self._try(fs.getxattr, ino, name)
        if stat.S_ISLNK(inode.mode):
            self._try(fs.readlink, ino)
        self._try(fs.setattr, ino, SetAttr(mode=0o600, atime_ns=1, mtime_ns=NOW_NS))
        if stat.S_ISREG(inode.mode):
            self._try(fs.write, ino, 10, memoryview(b"written"), kill_suidgid=True)
            self._try(fs.write, ino, 5000, memoryview(b"written"), kill_suidgid=True)
            self._try(fs.fallocate, ino, 3, 0, 9000)
            self._try(fs.setattr, ino, SetAttr(size=3))
        self._try(fs.setxattr, ino, b"user.new", b"value", 0)
        self._try(fs.fsync, ino, datasync=False)
