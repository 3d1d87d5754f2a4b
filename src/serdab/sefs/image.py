# SPDX-License-Identifier: Apache-2.0
"""Reads a sealed image: lazily, verified up to the root, nothing kept but caches.

Above: ``vfs.union`` (as a lower layer), ``fsck``. Below: ``imageformat``, ``tree``, ``hostdir``.

Security:
    1. The opener decides the mode: with a key only an encrypted image is accepted, without one
       only an integrity-only image, and then only under an expected root MAC.
    2. Every record is checked against the 256-bit hash in its parent before anything else is done
       with it; nothing is returned when a check fails.
    3. Decompression is bounded by the size of the file's records (``inflate``).
"""

from __future__ import annotations

import hmac
import stat
from collections.abc import Iterator
from typing import Final, final

from serdab.errors import (
    AuthenticationError,
    FormatError,
    MeasurementMismatch,
    UsageError,
    WrongKeyError,
)
from serdab.keys import Key
from serdab.sefs import keyspace as ks
from serdab.sefs.cache import ByteCache
from serdab.sefs.hostdir import Dir, File, read_exact
from serdab.sefs.hostplace import Place, open_place
from serdab.sefs.imageformat import (
    FLAG_PIECE,
    FLAG_ZSTD,
    HEADER_BYTES,
    IMAGE_NAME,
    META_PACK,
    SLOT,
    SLOT_BYTES,
    V1,
    V2,
    Header,
    Mode,
    header_mac,
    parse_header,
    parse_pointer,
)
from serdab.sefs.imagekeys import ImageKeys
from serdab.sefs.imagerecords import Extent, ImageRecords
from serdab.sefs.page import Page, parse_page
from serdab.sefs.tree import Root, Tree
from serdab.vfs.api import Inode
from serdab.vfs.layer import Dirent

_PAGE_CACHE: Final = 24 << 20
_EXTENT_FLAGS: Final = {V1: frozenset((0, FLAG_ZSTD)), V2: frozenset((0, FLAG_ZSTD, FLAG_PIECE))}


@final
class Image:
    """A verified image. Implements :class:`serdab.vfs.layer.Layer`."""

    def __init__(
        self, file: File, header: Header, mac: bytes, keys: ImageKeys | None, label: str
    ) -> None:
        self._file = file
        self._directory: Dir | None = None
        self.header = header
        self.version = header.version
        self.root_mac = mac
        self._label = label
        self._records = ImageRecords(file, header, keys, self._identifier)
        self._pages: ByteCache[bytes, Page] = ByteCache(_PAGE_CACHE)
        self._groups: ByteCache[tuple[int, int], bytes] = ByteCache(1 << 20)
        self._inodes: ByteCache[int, Inode] = ByteCache(1024)
        self._extent_flags = _EXTENT_FLAGS[header.version]
        self.tree = Tree(self, Root(header.root.dump(), header.root_level))
        self.max_ino, self.files, self.content_bytes, self._padding = self._super()

    def _super(self) -> tuple[int, int, int, tuple[int, int]]:
        """Return highest inode number, number of inodes, bytes of content, and the padding."""
        form = ks.SUPER_V1 if self.version == V1 else ks.SUPER
        raw = self.tree.get(ks.key(0, ks.T_SUPER))
        if raw is None or len(raw) != form.size:
            raise FormatError("image without a super item", subject=self._label)
        max_ino, files, content_bytes, *where = form.unpack(raw)
        if not 1 <= max_ino <= ks.MAX_INO:
            raise FormatError("impossible inode count in the image", subject=self._label)
        offset, length = where or (0, 0)
        if length > self.header.padding or offset + length > self.header.total_size:
            raise FormatError("impossible padding in the image", subject=self._label)
        return max_ino, files, content_bytes, (offset, length)

    # Records ------------------------------------------------------------------------------

    def _identifier(self, pack: int) -> bytes:
        identifier = self.tree.get(ks.pack_key(pack))
        if identifier is None or len(identifier) != 32:
            raise FormatError("record of a pack that the image does not have", found=str(pack))
        return identifier

    def load_page(self, pointer: bytes, *, level: int) -> Page:
        page = self._pages.get(pointer)
        if page is not None:
            if page.level != level:
                raise FormatError("tree page used at two levels", subject=self._label)
            return page
        where = parse_pointer(pointer)
        try:
            if where.pack != META_PACK:
                raise FormatError("tree pointer that leads into file data")
            if where.flags and self.version != V1:
                raise FormatError("tree page that is compressed")
            raw = self._records.page(where)
            page = parse_page(raw, level=level)
        except (AuthenticationError, FormatError) as exc:
            raise self._located(exc, where.offset, "tree page") from None
        self._pages.put(pointer, page, 3 * len(raw))
        return page

    def _located(
        self, exc: AuthenticationError | FormatError, offset: int, what: str, ino: int = 0
    ) -> AuthenticationError | FormatError:
        subject = f"{self._label}, offset {offset}, {what}"
        if ino:
            subject += f", inode {ino}"
        return type(exc)(
            exc.message,
            stage="read",
            subject=subject,
            expected=exc.expected,
            found=exc.found,
            hint="the storage changed these bytes; `serdab fsck` lists what is damaged",
        )

    # Layer --------------------------------------------------------------------------------

    def inode(self, ino: int) -> Inode | None:
        raw = self.tree.get(ks.key(ino, ks.T_INODE))
        if raw is None:
            return None
        inode = ks.parse_inode(ino, raw, self.version)
        if self.version != V1 and not inode.parent_ino and stat.S_ISDIR(inode.mode):
            raise FormatError("directory without a parent", subject=f"inode {ino}")
        return inode

    def dirent(self, parent: int, name: bytes) -> Dirent | None:
        raw = self.tree.get(ks.dirent_key(parent, name))
        return None if raw is None else ks.parse_dirent(raw)

    def dirents(self, parent: int, position: int) -> Iterator[tuple[int, bytes, Dirent]]:
        end = ks.kind_range(parent, ks.T_DIRENT)[1]
        for key, value in self.tree.scan(ks.dirent_start(parent, position), end):
            yield *ks.parse_dirent_key(key), ks.parse_dirent(value)

    def target(self, ino: int) -> bytes:
        return self.tree.get(ks.key(ino, ks.T_INLINE)) or b""

    @property
    def has_acls(self) -> bool:
        return self.version != V1

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        marked = self.tree.get(ks.xattr_key(ino, name))
        return None if marked is None else ks.check_xattr(name, marked, self.version)

    def xattrs(self, ino: int, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        start, end = ks.kind_range(ino, ks.T_XATTR)
        if after:
            start = ks.xattr_key(ino, after) + b"\0"
        for key, value in self.tree.scan(start, end):
            yield key[9:], ks.check_xattr(key[9:], value, self.version)

    def _inode(self, ino: int) -> Inode:
        inode = self._inodes.get(ino)
        if inode is None:
            inode = self.inode(ino)
            if inode is None:
                raise FormatError("inode that the image does not have", subject=f"inode {ino}")
            self._inodes.put(ino, inode, 1)
        return inode

    def _slots(self, ino: int, group: int) -> bytes:
        if group > ks.MAX_GROUP:
            return b""
        value = self._groups.get((ino, group))
        if value is None:
            value = self.tree.get(ks.group_key(ino, group)) or b""
            if len(value) % SLOT_BYTES or len(value) > ks.GROUP * SLOT_BYTES:
                raise FormatError("extent item of an impossible length", subject=f"inode {ino}")
            self._groups.put((ino, group), value, len(value) + 64)
        return value

    def read_into(self, ino: int, offset: int, buf: memoryview) -> int:
        inode = self._inode(ino)
        length = min(len(buf), inode.size - offset)
        if length <= 0:
            return 0
        if inode.flags & ks.F_INLINE:
            part = self._inline(ino)[offset : offset + length]
            buf[: len(part)] = part
            buf[len(part) : length] = bytes(length - len(part))
            return length
        size = ks.record_size(inode.flags, self.header.chunk_size)
        done = 0
        while done < length:
            chunk, skip = divmod(offset + done, size)
            count = min(size - skip, length - done)
            self._read_chunk(inode, size, chunk, skip, buf[done : done + count])
            done += count
        return length

    def _inline(self, ino: int) -> bytes:
        stored = self.tree.get(ks.key(ino, ks.T_INLINE))
        if stored is None:
            return b""
        if self.version == V1:
            return stored
        try:
            return self._records.inflater.content(stored, ks.INLINE_MAX)
        except FormatError as exc:
            raise self._located(exc, 0, "content of a small file", ino) from None

    def _read_chunk(self, inode: Inode, size: int, chunk: int, skip: int, out: memoryview) -> None:
        """Read a part of one record of a file, whose records are of ``size`` bytes."""
        group, index = divmod(chunk, ks.GROUP)
        slots = self._slots(inode.ino, group)
        if (index + 1) * SLOT_BYTES > len(slots):
            out[:] = bytes(len(out))
            return
        extent = Extent(*SLOT.unpack_from(slots, index * SLOT_BYTES))
        if extent.offset == 0:
            out[:] = bytes(len(out))
            return
        try:
            if extent.offset < HEADER_BYTES or extent.flags not in self._extent_flags:
                raise FormatError("extent with an impossible field")
            whole = min(size, inode.size - chunk * size)
            self._records.read(extent, size, whole, skip, out)
        except (AuthenticationError, FormatError) as exc:
            raise self._located(exc, extent.offset, "file data", inode.ino) from None

    def data_ranges(self, ino: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        inode = self._inode(ino)
        end = min(end, inode.size)
        if start >= end:
            return
        if inode.flags & ks.F_INLINE:
            if start < min(end, ks.INLINE_MAX):
                yield start, min(end, ks.INLINE_MAX)
            return
        size = ks.record_size(inode.flags, self.header.chunk_size)
        first = min(start // size // ks.GROUP, ks.MAX_GROUP)
        last = ks.kind_range(ino, ks.T_EXTENTS)[1]
        for key, _ in self.tree.scan(ks.group_key(ino, first), last):
            group = int.from_bytes(key[9:], "big")
            slots = self._slots(ino, group)
            for index in range(len(slots) // SLOT_BYTES):
                low = (group * ks.GROUP + index) * size
                if low >= end:
                    return
                stored = any(slots[index * SLOT_BYTES : index * SLOT_BYTES + 8])
                if stored and low + size > start:
                    yield max(low, start), min(low + size, end)

    def stored_bytes(self) -> int:
        return self.header.total_size

    def check_padding(self) -> None:
        """Verify the bytes that nothing refers to. No reader needs them; ``fsck`` asks.

        Raises:
            AuthenticationError: they are not what was sealed.
        """
        offset, length = self._padding
        try:
            self._records.check_padding(offset, length)
        except AuthenticationError as exc:
            raise self._located(exc, offset, "padding") from None

    def keep_open(self, directory: Dir) -> None:
        """Close ``directory``, and so give up its lock, together with the image."""
        self._directory = directory

    def close(self) -> None:
        self._file.close()
        if self._directory is not None:
            self._directory.close()


DAMAGED_HINT: Final = (
    "the image was damaged or is none: restore it, or seal its tree again with `serdab build -f`"
)


def open_image(path: Place, *, key: Key | None, expected_mac: bytes | None) -> Image:
    """Open the image in a host directory, under a shared lock.

    Raises:
        UsageError: there is no image, or no MAC is expected of an integrity-only one.
        FormatError: not an image that this version reads, or not in the mode the key asks for.
        MeasurementMismatch: the root MAC is not the expected one.
        WrongKeyError: the key does not open it.
        BusyError: somebody holds it for writing.
    """
    directory = open_place(path)
    try:
        directory.lock(exclusive=False)
        image = open_image_in(directory, key=key, expected_mac=expected_mac)
    except BaseException:
        directory.close()
        raise
    # The lock lives as long as the directory stays open.
    image.keep_open(directory)
    return image


def open_image_in(directory: Dir, *, key: Key | None, expected_mac: bytes | None) -> Image:
    """Open the image in an open directory; see :func:`open_image`."""
    label = f"{directory.label}/{IMAGE_NAME}"
    try:
        file = directory.open(IMAGE_NAME)
    except FileNotFoundError:
        raise UsageError(
            "no sealed image here", subject=directory.label, hint="`serdab build` makes one"
        ) from None
    try:
        return _open_file(file, label, key, expected_mac)
    except BaseException:
        file.close()
        raise


def _open_file(file: File, label: str, key: Key | None, expected_mac: bytes | None) -> Image:
    try:
        raw = read_exact(file, HEADER_BYTES, 0)
        header = parse_header(raw)
    except FormatError as exc:
        exc.subject = exc.subject or label
        exc.hint = exc.hint or DAMAGED_HINT
        raise
    mac = header_mac(raw, header)
    if expected_mac is not None and not hmac.compare_digest(mac, expected_mac):
        raise MeasurementMismatch(
            "the root MAC is not the expected one",
            subject=label,
            expected=expected_mac.hex(),
            found=mac.hex(),
            hint="the image was changed or is another one: restore it, or build and sign anew",
        )
    if header.total_size != file.size():
        raise FormatError(
            "the image is not as long as its header says",
            subject=label,
            expected=f"{header.total_size} bytes",
            found=f"{file.size()} bytes",
            hint=DAMAGED_HINT,
        )
    if key is None:
        if header.mode != Mode.INTEGRITY:
            raise WrongKeyError(
                "the image is encrypted and no key was given",
                subject=label,
                expected="an image key",
                found="none",
                hint="give the key it was built with: --image-key FILE",
            )
        if expected_mac is None:
            raise UsageError("an integrity-only image needs an expected root MAC", subject=label)
        return Image(file, header, mac, None, label)
    if header.mode != Mode.ENCRYPTED:
        raise FormatError(
            "a key was given but the image is not encrypted",
            subject=label,
            expected="an encrypted image",
            found="an integrity-only image",
            hint="build it with --image-key, or start without one",
        )
    keys = ImageKeys(key, header.version)
    if not hmac.compare_digest(keys.check(raw), header.key_check):
        certain = expected_mac is not None
        raise WrongKeyError(
            "wrong image key" if certain else "wrong image key, or the header was damaged",
            subject=label,
            expected="the key it was built with",
            found="another key",
            hint="give the file that `build --image-key` was given",
        )
    return Image(file, header, mac, keys, label)
