# SPDX-License-Identifier: Apache-2.0
"""Builds a sealed image: the same tree, options and version give the same bytes everywhere.

Above: ``instance.build``, ``instance.rekey``. Below: ``imagewalk`` and ``imagesource`` (the order),
``packwriter`` (records), ``imageformat`` (bytes), ``tree`` (pages).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from serdab.crypto.hashes import HashAlgorithm, content_id
from serdab.errors import UsageError
from serdab.keys import Key
from serdab.linux.dirfd import DirFd
from serdab.sefs import keyspace as ks
from serdab.sefs.hostplace import Place, writable_place
from serdab.sefs.image import Image
from serdab.sefs.imageformat import FLAG_ZSTD, HEADER_BYTES, IMAGE_NAME, SLOT_BYTES, V2, is_padding
from serdab.sefs.imagekeys import ImageKeys
from serdab.sefs.imagepages import PageWriter, Parameters
from serdab.sefs.imagesource import ImageSource
from serdab.sefs.imagewalk import Additions, LeftOut, Source, SourceEntry, Walk
from serdab.sefs.inflate import FRAME, PLAIN
from serdab.sefs.packwriter import PackWriter, Sealer, compress
from serdab.sefs.page import Item
from serdab.structs import frozen, mutable
from serdab.vfs.layer import Dirent

PACK_MIN: Final = 1 << 20
PACK_MAX: Final = 16 << 20
ZSTD_LEVEL: Final = 3


def _root_owner(_: bytes) -> tuple[int, int]:
    return 0, 0


@frozen
class ImageOptions:
    """What, beside tree and key, decides the bytes of an image."""

    chunk_size: int = 32 << 10
    page_size: int = 16 << 10
    hash: HashAlgorithm = HashAlgorithm.BLAKE3
    zstd_level: int = ZSTD_LEVEL
    """0 stores everything as it is."""
    padding: int = 0
    """The size of an encrypted image is made a multiple of this, a power of two; 0: it is not."""
    clamp_s: int | None = None
    """Latest mtime, seconds since the epoch (SOURCE_DATE_EPOCH)."""
    owner: Callable[[bytes], tuple[int, int]] = _root_owner
    """(uid, gid) of a path relative to the root."""
    left_out: LeftOut | None = None
    """Is told of devices and sockets, which are left out then; without it they are refused."""


@frozen
class ImageInfo:
    """What was built. Sizes in bytes."""

    root_mac: bytes
    files: int
    content_bytes: int
    stored_bytes: int


@mutable
class _Content:
    """Where the chunks of a file went: (record, piece of it or None for all), None for a hole."""

    entry: SourceEntry
    slots: list[tuple[int, int | None] | None]


def build_image(
    source: Place,
    out: Place,
    *,
    key: Key | None,
    options: ImageOptions | None = None,
    additions: Additions | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImageInfo:
    """Seal the tree at ``source`` as ``image.sefs`` in the host directory ``out``.

    The file appears under its name only when it is whole and durable. With a key the image is
    encrypted, without one integrity-only. ``progress`` is called with the content bytes done.

    Raises:
        UsageError: the tree holds what cannot be sealed, or changed while it was read.
    """
    options = options or ImageOptions()
    with _source_tree(source) as tree:
        walk = Walk(
            tree,
            additions or Additions(),
            clamp_s=options.clamp_s,
            owner=options.owner,
            left_out=options.left_out,
        )
    try:
        return _write_image(walk, out, key, options, progress)
    finally:
        walk.close()


def _source_tree(source: Place) -> DirFd:
    if isinstance(source, DirFd):
        return source.again()
    try:
        return DirFd.at(str(source))
    except NotADirectoryError:
        raise UsageError("not a directory", subject=str(source)) from None


def reseal_image(
    image: Image,
    out: Place,
    *,
    key: Key | None,
    replaced: Mapping[bytes, bytes] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImageInfo:
    """Seal what an image holds once more, under another key, in the host directory ``out``.

    What comes out is of the newest format version, whatever the image was.

    Inode numbers stay, so what refers to the image by (inode, offset) refers to this one as well;
    the bytes are those that :func:`build_image` makes of the same tree. Everything is verified as
    it is read. ``replaced`` gives new content to files, by path relative to the root.

    Raises:
        AuthenticationError, FormatError: the image is damaged.
    """
    header = image.header
    options = ImageOptions(
        chunk_size=header.chunk_size,
        page_size=header.page_size,
        hash=header.hash,
        zstd_level=ZSTD_LEVEL if header.compression else 0,
        padding=header.padding,
    )
    return _write_image(ImageSource(image, replaced or {}), out, key, options, progress)


def _write_image(
    source: Source,
    out: Place,
    key: Key | None,
    options: ImageOptions,
    progress: Callable[[int], None] | None,
) -> ImageInfo:
    part = IMAGE_NAME + ".part"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    with writable_place(out) as directory:
        directory.remove(part)
        try:
            with (
                open(directory.open(part, flags, mode=0o666), "wb") as file,
                ThreadPoolExecutor(os.cpu_count() or 1) as pool,
            ):
                info = _Builder(file.fileno(), pool, key, options, progress).run(source)
                os.fsync(file.fileno())
                _rename_own(directory, part, file.fileno())
        except BaseException:
            directory.remove(part)
            raise
        directory.sync()
    return info


def _rename_own(directory: DirFd, part: str, fd: int) -> None:
    """Give the file its name, if it still has the one that it was written under."""
    there = directory.status(part)
    if there is None or not os.path.samestat(there, os.fstat(fd)):
        raise UsageError(
            "the image that was being written was exchanged for something else",
            subject=directory.name(part),
            expected="the file that was written",
            found="another, or none",
            hint="somebody renames there: end that, and try again",
        )
    directory.rename(part, IMAGE_NAME)


class _Builder:
    """One image on its way into a file."""

    def __init__(
        self,
        fd: int,
        pool: ThreadPoolExecutor,
        key: Key | None,
        options: ImageOptions,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._fd = fd
        self._pool = pool
        self._options = options
        if options.padding and not is_padding(options.padding):
            raise ValueError(f"padding to a multiple of {options.padding} bytes")
        self._keys = ImageKeys(key, V2) if key is not None else None
        self._parameters = Parameters(
            options.chunk_size, options.page_size, options.hash, options.zstd_level, options.padding
        )
        self._sealer = Sealer(self._keys, options.hash, self._parameters.dump())
        self._packs = PackWriter(fd, HEADER_BYTES, self._sealer, pool, options.zstd_level)
        self._progress = progress
        self._known: dict[bytes, int] = {}
        self._contents: list[_Content] = []
        self._tails: list[bytes] = []
        self._tail_slots: list[tuple[_Content, int]] = []
        self._tail_bytes = 0
        self._content_bytes = 0

    def run(self, source: Source) -> ImageInfo:
        entries: list[SourceEntry] = []
        items: list[Item] = []
        for entry in source.entries():
            entries.append(entry)
            if entry.target:
                items.append((ks.key(entry.inode.ino, ks.T_INLINE), entry.target))
            elif entry.inode.size:
                self._add_file(source, entry, items)
        self._flush_tail()
        self._packs.cut()
        items.extend(self._items(source, entries))
        items.sort()
        return self._finish(items, len(entries))

    def _finish(self, items: list[Item], files: int) -> ImageInfo:
        writer = PageWriter(self._fd, self._keys, self._sealer, self._parameters)
        root_mac, total = writer.write(
            items,
            inodes=files,
            content_bytes=self._content_bytes,
            offset=self._packs.offset,
            packs=self._packs.identifiers,
        )
        return ImageInfo(root_mac, files, self._content_bytes, total)

    # Content ------------------------------------------------------------------------------

    def _add_file(self, source: Source, entry: SourceEntry, items: list[Item]) -> None:
        size = entry.inode.size
        unit = ks.record_size(entry.inode.flags, self._options.chunk_size)
        self._content_bytes += size
        if self._progress is not None:
            self._progress(self._content_bytes)
        pieces = source.pieces(entry, unit)
        if size <= ks.INLINE_MAX:
            items.append((ks.key(entry.inode.ino, ks.T_INLINE), self._inline(b"".join(pieces))))
            entry.inode.flags |= ks.F_INLINE
            return
        self._border(entry.path, size)
        content = _Content(entry, [])
        self._contents.append(content)
        for chunk, raw in enumerate(pieces):
            if chunk and chunk * unit % PACK_MAX == 0:
                self._packs.cut()
            self._add_chunk(content, chunk, raw)

    def _inline(self, content: bytes) -> bytes:
        payload = compress(content, self._options.zstd_level)
        return (FRAME if payload.flags & FLAG_ZSTD else PLAIN) + payload.raw

    def _border(self, path: bytes, size: int) -> None:
        """Cut the pack where the path says so, so that a change elsewhere moves no border."""
        pending = self._packs.raw_bytes + self._tail_bytes
        chosen = content_id(path)[0] < 16
        if size >= PACK_MAX or pending >= PACK_MAX or (pending >= PACK_MIN and chosen):
            self._flush_tail()
            self._packs.cut()

    def _add_chunk(self, content: _Content, chunk: int, raw: bytes) -> None:
        if not raw.strip(b"\0"):
            content.slots.append(None)
            return
        if len(raw) <= self._options.chunk_size // 2:
            if self._tail_bytes + len(raw) > self._options.chunk_size:
                self._flush_tail()
            content.slots.append(None)
            self._tail_slots.append((content, chunk))
            self._tails.append(raw)
            self._tail_bytes += len(raw)
            return
        identity = content_id(raw)
        record = self._known.get(identity)
        if record is None:
            record = self._known[identity] = self._packs.add(raw)
        content.slots.append((record, None))

    def _flush_tail(self) -> None:
        if not self._tails:
            return
        record = self._packs.add_pieces(self._tails)
        for piece, (content, chunk) in enumerate(self._tail_slots):
            content.slots[chunk] = (record, piece)
        self._tails, self._tail_slots, self._tail_bytes = [], [], 0

    # Metadata -----------------------------------------------------------------------------

    def _items(self, source: Source, entries: list[SourceEntry]) -> list[Item]:
        items: list[Item] = []
        for entry in entries:
            items.append((ks.key(entry.inode.ino, ks.T_INODE), ks.dump_inode(entry.inode, V2)))
            items.extend(
                (ks.xattr_key(entry.inode.ino, name), b"\1" + value) for name, value in entry.xattrs
            )
        for name in source.names:
            value = ks.dump_dirent(Dirent(name.ino, name.dtype))
            items.append((ks.dirent_key(name.parent, name.name), value))
        hole = bytes(SLOT_BYTES)
        for content in self._contents:
            ino = content.entry.inode.ino
            for start in range(0, len(content.slots), ks.GROUP):
                value = b"".join(
                    hole if slot is None else self._packs.slot(*slot)
                    for slot in content.slots[start : start + ks.GROUP]
                )
                trimmed = _trim(value)
                if trimmed:
                    items.append((ks.group_key(ino, start // ks.GROUP), trimmed))
        items.extend(
            (ks.pack_key(number), identifier)
            for number, identifier in enumerate(self._packs.identifiers)
            if self._keys is not None
        )
        return items


def _trim(value: bytes) -> bytes:
    end = len(value)
    while end and not any(value[end - SLOT_BYTES : end]):
        end -= SLOT_BYTES
    return value[:end]
