# SPDX-License-Identifier: Apache-2.0
"""Builds a sealed image: the same tree, options and version give the same bytes everywhere.

Above: ``instance.build``, ``instance.rekey``. Below: ``imagewalk`` and ``imagesource`` (the order),
``packwriter`` (records), ``imageformat`` (bytes), ``tree`` (pages).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import zstandard

from serdab.crypto.hashes import HashAlgorithm, content_id
from serdab.crypto.kdf import KeySchedule
from serdab.errors import UsageError
from serdab.keys import Key
from serdab.linux.dirfd import DirFd
from serdab.sefs import keyspace as ks
from serdab.sefs.hostplace import Place, writable_place
from serdab.sefs.image import Image, image_keys, key_check
from serdab.sefs.imageformat import (
    HEADER_BYTES,
    IMAGE_NAME,
    META_PACK,
    R_PAGE,
    SLOT_BYTES,
    Header,
    Mode,
    Pointer,
    header_mac,
    parse_header,
    parse_pointer,
)
from serdab.sefs.imagesource import ImageSource
from serdab.sefs.imagewalk import Additions, Source, SourceEntry, Walk
from serdab.sefs.packwriter import PackWriter, Sealer, compress
from serdab.sefs.page import Item, dump_page, split_items
from serdab.structs import frozen, mutable, replace
from serdab.vfs.layer import Dirent

PACK_MIN: Final = 1 << 20
PACK_MAX: Final = 16 << 20
_NO_KEY: Final = bytes(32)
_ZSTD_LEVEL: Final = 3


def _root_owner(_: bytes) -> tuple[int, int]:
    return 0, 0


@frozen
class ImageOptions:
    """What, beside tree and key, decides the bytes of an image."""

    chunk_size: int = 32 << 10
    page_size: int = 16 << 10
    hash: HashAlgorithm = HashAlgorithm.BLAKE3
    zstd_level: int = _ZSTD_LEVEL
    """0 stores everything as it is."""
    clamp_s: int | None = None
    """Latest mtime, seconds since the epoch (SOURCE_DATE_EPOCH)."""
    owner: Callable[[bytes], tuple[int, int]] = _root_owner
    """(uid, gid) of a path relative to the root."""


@frozen
class ImageInfo:
    """What was built. Sizes in bytes."""

    root_mac: bytes
    files: int
    content_bytes: int
    stored_bytes: int


@mutable
class _Content:
    """Where the chunks of a file went: (record, position within it), or None for a hole."""

    entry: SourceEntry
    slots: list[tuple[int, int] | None]


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
        walk = Walk(tree, additions or Additions(), clamp_s=options.clamp_s, owner=options.owner)
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
        zstd_level=_ZSTD_LEVEL if header.compression else 0,
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
        self._keys: KeySchedule | None = image_keys(key) if key is not None else None
        parameters = struct.pack(
            "<IIBB", options.chunk_size, options.page_size, options.hash, options.zstd_level
        )
        self._sealer = Sealer(self._keys, options.hash, parameters)
        self._packs = PackWriter(fd, HEADER_BYTES, self._sealer, pool, options.zstd_level)
        self._progress = progress
        self._known: dict[bytes, int] = {}
        self._contents: list[_Content] = []
        self._tail = bytearray()
        self._tail_slots: list[tuple[_Content, int, int]] = []
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

    # Content ------------------------------------------------------------------------------

    def _add_file(self, source: Source, entry: SourceEntry, items: list[Item]) -> None:
        size, unit = entry.inode.size, self._options.chunk_size
        self._content_bytes += size
        if self._progress is not None:
            self._progress(self._content_bytes)
        pieces = source.pieces(entry, unit)
        if size <= ks.INLINE_MAX:
            items.append((ks.key(entry.inode.ino, ks.T_INLINE), b"".join(pieces)))
            entry.inode.flags |= ks.F_INLINE
            return
        self._border(entry.path, size)
        content = _Content(entry, [])
        self._contents.append(content)
        for chunk, raw in enumerate(pieces):
            if chunk and chunk * unit % PACK_MAX == 0:
                self._packs.cut()
            self._add_chunk(content, chunk, raw)

    def _border(self, path: bytes, size: int) -> None:
        """Cut the pack where the path says so, so that a change elsewhere moves no border."""
        pending = self._packs.raw_bytes + len(self._tail)
        chosen = content_id(path)[0] < 16
        if size >= PACK_MAX or pending >= PACK_MAX or (pending >= PACK_MIN and chosen):
            self._flush_tail()
            self._packs.cut()

    def _add_chunk(self, content: _Content, chunk: int, raw: bytes) -> None:
        if not raw.strip(b"\0"):
            content.slots.append(None)
            return
        if len(raw) <= self._options.chunk_size // 2:
            if len(self._tail) + len(raw) > self._options.chunk_size:
                self._flush_tail()
            content.slots.append(None)
            self._tail_slots.append((content, chunk, len(self._tail)))
            self._tail += raw
            return
        identity = content_id(raw)
        record = self._known.get(identity)
        if record is None:
            record = self._known[identity] = self._packs.add(raw)
        content.slots.append((record, 0))

    def _flush_tail(self) -> None:
        if not self._tail:
            return
        record = self._packs.add(bytes(self._tail))
        for content, chunk, position in self._tail_slots:
            content.slots[chunk] = (record, position)
        self._tail.clear()
        self._tail_slots.clear()

    # Metadata -----------------------------------------------------------------------------

    def _items(self, source: Source, entries: list[SourceEntry]) -> list[Item]:
        items: list[Item] = []
        for entry in entries:
            items.append((ks.key(entry.inode.ino, ks.T_INODE), ks.dump_inode(entry.inode, ks.V1)))
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
                    hole
                    if slot is None
                    else self._packs.pointers[slot[0]] + slot[1].to_bytes(4, "little")
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
        super_value = ks.SUPER.pack(len(entries), len(entries), self._content_bytes)
        items.append((ks.key(0, ks.T_SUPER), super_value))
        return items

    def _finish(self, items: list[Item], files: int) -> ImageInfo:
        level = 0
        meta_id = b""
        number = 0
        offset = self._packs.offset
        while True:
            runs = split_items(items, self._options.page_size)
            raws = [dump_page(level, run) for run in runs]
            # Interior pages hold digests: they do not compress.
            zstd_level = self._options.zstd_level if level == 0 else 0
            payloads = list(self._pool.map(lambda raw, z=zstd_level: compress(raw, z), raws))
            if level == 0:
                meta_id = self._sealer.identify(payloads, self._packs.identifiers)
                cipher = self._sealer.cipher(meta_id)
            stored: list[Item] = []
            for run, payload in zip(runs, payloads, strict=True):
                sealed = self._sealer.seal(cipher, R_PAGE, number, payload)
                _write(self._fd, sealed, offset)
                digest = self._sealer.digest(sealed)
                where = Pointer(offset, len(sealed), META_PACK, number, payload.flags, digest)
                stored.append((run[0][0], where.dump()))
                offset += len(sealed)
                number += 1
            if len(stored) == 1:
                break
            items, level = stored, level + 1
        root = parse_pointer(stored[0][1])
        encrypted = self._keys is not None
        header = Header(
            Mode.ENCRYPTED if encrypted else Mode.INTEGRITY,
            self._options.hash,
            int(self._options.zstd_level > 0),
            level,
            self._options.chunk_size,
            self._options.page_size,
            offset,
            len(self._packs.identifiers),
            number,
            root,
            meta_id if encrypted else _NO_KEY,
            _NO_KEY,
            "libzstd " + ".".join(map(str, zstandard.ZSTD_VERSION)),
        )
        if self._keys is not None:
            header = replace(header, key_check=key_check(self._keys, header))
        raw = header.dump()
        parse_header(raw)  # what is written must be what the reader accepts
        _write(self._fd, raw, 0)
        return ImageInfo(header_mac(raw, self._options.hash), files, self._content_bytes, offset)


def _trim(value: bytes) -> bytes:
    end = len(value)
    while end and not any(value[end - SLOT_BYTES : end]):
        end -= SLOT_BYTES
    return value[:end]


def _write(fd: int, raw: bytes, offset: int) -> None:
    view = memoryview(raw)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count
