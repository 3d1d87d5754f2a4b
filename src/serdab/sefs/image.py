# SPDX-License-Identifier: Apache-2.0
"""Reads a sealed image: lazily, verified up to the root, nothing kept but caches.

Above: ``vfs.union`` (as a lower layer), ``fsck``. Below: ``imageformat``, ``tree``, ``hostdir``.

Security:
    1. The opener decides the mode: with a key only an encrypted image is accepted, without one
       only an integrity-only image, and then only under an expected root MAC.
    2. Every record is checked against the 256-bit hash in its parent before anything else is done
       with it; nothing is returned when a check fails.
    3. Decompression is bounded by the chunk size.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from typing import Final, final

import zstandard

from serdab.crypto.aead import TAG_BYTES, RecordCipher
from serdab.crypto.hashes import digest_function
from serdab.crypto.kdf import KeySchedule
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
    FLAG_ZSTD,
    HEADER_BYTES,
    IMAGE_NAME,
    META_PACK,
    R_DATA,
    R_PAGE,
    SLOT,
    SLOT_BYTES,
    Header,
    Mode,
    header_mac,
    parse_header,
    parse_pointer,
    record_aad,
)
from serdab.sefs.page import MAX_PAGE_BYTES, Page, parse_page
from serdab.sefs.tree import Root, Tree
from serdab.structs import replace
from serdab.vfs.api import Inode
from serdab.vfs.layer import Dirent

_PAGE_CACHE: Final = 24 << 20
_CHUNK_CACHE: Final = 8 << 20
_KEY_LABEL: Final = b"image"


def image_keys(key: Key) -> KeySchedule:
    """Return the key schedule of encrypted images under a user key."""
    return KeySchedule(key, kind=_KEY_LABEL, uuid=bytes(16), version=ks.V1)


def pack_cipher(keys: KeySchedule, identifier: bytes) -> RecordCipher:
    """Return the cipher of a pack, or of the pages, from its key identifier."""
    return keys.cipher(b"image pack", identifier)


def key_check(keys: KeySchedule, header: Header) -> bytes:
    """Return what tells a wrong key from damage; it commits to the key and to the whole header.

    Who opens an image by its key alone has no root MAC to compare. Were a field of the header not
    covered here, the storage could change it: another chunk size moves every byte of a file.
    """
    return keys.keyed_hash(b"image key check", replace(header, key_check=bytes(32)).dump())


@final
class Image:
    """A verified image. Implements :class:`serdab.vfs.layer.Layer`."""

    def __init__(
        self, file: File, header: Header, mac: bytes, keys: KeySchedule | None, label: str
    ) -> None:
        self._file = file
        self._directory: Dir | None = None
        self.header = header
        self.root_mac = mac
        self._keys = keys
        self._label = label
        self._digest = digest_function(header.hash)
        self._ciphers: dict[int, RecordCipher] = {}
        if keys is not None:
            self._ciphers[META_PACK] = pack_cipher(keys, header.meta_id)
        self._pages: ByteCache[bytes, Page] = ByteCache(_PAGE_CACHE)
        self._chunks: ByteCache[int, bytes] = ByteCache(_CHUNK_CACHE)
        self._groups: ByteCache[tuple[int, int], bytes] = ByteCache(1 << 20)
        self._inodes: ByteCache[int, Inode] = ByteCache(1024)
        self._scratch = bytearray(max(header.chunk_size, header.page_size) + TAG_BYTES)
        self._inflate = zstandard.ZstdDecompressor(max_window_size=1 << 23)
        self.tree = Tree(self, Root(header.root.dump(), header.root_level))
        raw = self.tree.get(ks.key(0, ks.T_SUPER))
        if raw is None or len(raw) != ks.SUPER.size:
            raise FormatError("image without a super item", subject=label)
        self.max_ino, self.files, self.content_bytes = ks.SUPER.unpack(raw)
        if not 1 <= self.max_ino <= ks.MAX_INO:
            raise FormatError("impossible inode count in the image", subject=label)

    # Records ------------------------------------------------------------------------------

    def _cipher(self, pack: int) -> RecordCipher | None:
        if self._keys is None:
            return None
        cipher = self._ciphers.get(pack)
        if cipher is None:
            identifier = self.tree.get(ks.pack_key(pack))
            if identifier is None or len(identifier) != 32:
                raise FormatError("record of a pack that the image does not have", found=str(pack))
            if len(self._ciphers) > 4096:
                self._ciphers = {META_PACK: self._ciphers[META_PACK]}
            cipher = self._ciphers[pack] = pack_cipher(self._keys, identifier)
        return cipher

    def _fetch(self, offset: int, stored: int, digest: bytes, limit: int) -> memoryview:
        """Return the stored bytes, verified, in a buffer that the next call reuses."""
        if stored > limit + TAG_BYTES or stored == 0:
            raise FormatError("record of an impossible length", found=str(stored))
        if offset > self.header.total_size:
            raise FormatError("record beyond the end of the image")
        if stored > len(self._scratch):
            self._scratch = bytearray(stored)
        view = memoryview(self._scratch)[:stored]
        if self._file.pread_into(view, offset) != stored:
            raise AuthenticationError("the image ends before the record does")
        if not hmac.compare_digest(self._digest(view), digest):
            raise AuthenticationError("stored bytes do not match their hash")
        return view

    def _unseal(
        self,
        kind: int,
        offset: int,
        stored: int,
        pack: int,
        number: int,
        flags: int,
        digest: bytes,
        limit: int,
    ) -> bytes:
        """Return the plaintext of a record of at most ``limit`` bytes."""
        # The cipher first: finding it may read a page, which reuses the buffer.
        cipher = self._cipher(pack)
        view = self._fetch(offset, stored, digest, limit)
        if cipher is None:
            plain = bytes(view)
        else:
            if stored <= TAG_BYTES:
                raise FormatError("record too short for its tag")
            length = stored - TAG_BYTES
            plain = cipher.open_(number, view, record_aad(kind, flags, number, length))
        return self._inflated(plain, limit) if flags & FLAG_ZSTD else plain

    def _inflated(self, plain: bytes, limit: int) -> bytes:
        try:
            declared = zstandard.get_frame_parameters(plain).content_size
            if not 0 < declared <= limit:
                raise FormatError("compressed record of an impossible length", found=str(declared))
            raw = self._inflate.decompress(plain, max_output_size=limit, allow_extra_data=False)
        except zstandard.ZstdError as exc:
            raise FormatError("compressed record cannot be read", found=str(exc)) from None
        if len(raw) != declared:
            raise FormatError("compressed record lies about its length")
        return raw

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
            raw = self._unseal(
                R_PAGE,
                where.offset,
                where.stored,
                META_PACK,
                where.number,
                where.flags,
                where.digest,
                MAX_PAGE_BYTES,
            )
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
        return None if raw is None else ks.parse_inode(ino, raw, ks.V1)

    def dirent(self, parent: int, name: bytes) -> Dirent | None:
        raw = self.tree.get(ks.dirent_key(parent, name))
        return None if raw is None else ks.parse_dirent(raw)

    def dirents(self, parent: int, position: int) -> Iterator[tuple[int, bytes, Dirent]]:
        end = ks.kind_range(parent, ks.T_DIRENT)[1]
        for key, value in self.tree.scan(ks.dirent_start(parent, position), end):
            yield *ks.parse_dirent_key(key), ks.parse_dirent(value)

    def target(self, ino: int) -> bytes:
        return self.tree.get(ks.key(ino, ks.T_INLINE)) or b""

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        return self.tree.get(ks.xattr_key(ino, name))

    def xattrs(self, ino: int, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        start, end = ks.kind_range(ino, ks.T_XATTR)
        if after:
            start = ks.xattr_key(ino, after) + b"\0"
        for key, value in self.tree.scan(start, end):
            yield key[9:], value

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
            content = self.tree.get(ks.key(ino, ks.T_INLINE)) or b""
            part = content[offset : offset + length]
            buf[: len(part)] = part
            buf[len(part) : length] = bytes(length - len(part))
            return length
        size = self.header.chunk_size
        done = 0
        while done < length:
            chunk, skip = divmod(offset + done, size)
            count = min(size - skip, length - done)
            self._read_chunk(inode, chunk, skip, buf[done : done + count])
            done += count
        return length

    def _read_chunk(self, inode: Inode, chunk: int, skip: int, out: memoryview) -> None:
        group, index = divmod(chunk, ks.GROUP)
        slots = self._slots(inode.ino, group)
        if (index + 1) * SLOT_BYTES > len(slots):
            out[:] = bytes(len(out))
            return
        offset, stored, pack, number, flags, digest, position = SLOT.unpack_from(
            slots, index * SLOT_BYTES
        )
        if offset == 0:
            out[:] = bytes(len(out))
            return
        limit = self.header.chunk_size
        try:
            if flags & ~FLAG_ZSTD or offset < HEADER_BYTES:
                raise FormatError("extent with an impossible field")
            plain = self._chunks.get(offset)
            if plain is None:
                whole = min(limit, inode.size - chunk * limit)
                if not flags and skip == 0 and position == 0 and len(out) == whole:
                    tag = TAG_BYTES if self._keys is not None else 0
                    if stored == whole + tag:
                        self._read_direct(offset, stored, pack, number, digest, out)
                        return
                plain = self._unseal(R_DATA, offset, stored, pack, number, flags, digest, limit)
                self._chunks.put(offset, plain, len(plain))
        except (AuthenticationError, FormatError) as exc:
            raise self._located(exc, offset, "file data", inode.ino) from None
        start = position + skip
        part = plain[start : start + len(out)]
        out[: len(part)] = part
        if len(part) < len(out):
            out[len(part) :] = bytes(len(out) - len(part))

    def _read_direct(
        self, offset: int, stored: int, pack: int, number: int, digest: bytes, out: memoryview
    ) -> None:
        cipher = self._cipher(pack)
        view = self._fetch(offset, stored, digest, self.header.chunk_size)
        if cipher is None:
            out[:] = view
        else:
            cipher.open_into(number, view, record_aad(R_DATA, 0, number, len(out)), out)

    def data_ranges(self, ino: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        inode = self._inode(ino)
        end = min(end, inode.size)
        if start >= end:
            return
        if inode.flags & ks.F_INLINE:
            if start < min(end, ks.INLINE_MAX):
                yield start, min(end, ks.INLINE_MAX)
            return
        size = self.header.chunk_size
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

    def keep_open(self, directory: Dir) -> None:
        """Close ``directory``, and so give up its lock, together with the image."""
        self._directory = directory

    def close(self) -> None:
        self._file.close()
        if self._directory is not None:
            self._directory.close()


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
    raw = read_exact(file, HEADER_BYTES, 0)
    header = parse_header(raw)
    mac = header_mac(raw, header.hash)
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
    keys = image_keys(key)
    if not hmac.compare_digest(key_check(keys, header), header.key_check):
        certain = expected_mac is not None
        raise WrongKeyError(
            "wrong image key" if certain else "wrong image key, or the header was damaged",
            subject=label,
            expected="the key it was built with",
            found="another key",
            hint="give the file that `build --image-key` was given",
        )
    return Image(file, header, mac, keys, label)
