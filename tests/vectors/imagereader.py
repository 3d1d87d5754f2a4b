# SPDX-License-Identifier: Apache-2.0
"""A second reader of images, written from docs/format.md alone: nothing of the product is used.

It reads everything at once and trusts nothing: what it does not understand is an error.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

INODE, INLINE, XATTR, DIRENT, EXTENTS, PACK, SUPER = 1, 2, 3, 4, 5, 8, 9
PAGES = 0xFFFFFFFF
HASHES: dict[int, Callable[[bytes], bytes]] = {
    1: lambda raw: hashlib.sha256(raw).digest(),
    2: lambda raw: blake3(raw).digest(),
}


@dataclass
class File:
    """One inode: the 84 bytes, attributes, and the content or target."""

    record: tuple[int, ...]
    content: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class Reader:
    """Reads an image; ``files`` maps a path to its inode, ``root_mac`` is to be compared."""

    def __init__(self, raw: bytes, key: bytes | None) -> None:
        self.raw = raw
        header = raw[:4096]
        (
            magic, self.version, mode, algorithm, self.compression, level, self.chunk, _, size,
            self.padding, zero, root, self.pages_id, check, _,
        ) = struct.unpack_from("<8sIBBBBIIQII56s32s32s32s", header)  # fmt: skip
        assert magic == b"SEFSIMG\0"
        assert self.version in (1, 2)
        assert size == len(raw)
        assert not any(header[192:])
        assert (mode == 2) == (key is not None)
        if self.version == 2:
            assert zero == 0
            assert not self.padding or (mode == 2 and size % self.padding == 0)
        self.hash = HASHES[algorithm]
        self.root_mac = self.hash(b"serdab sefs image v%d\0" % self.version + header)
        self.label = b"serdab sefs v%d " % self.version
        self.prk = b""
        if key is not None:
            salt = hashlib.sha256(self.label + b"image\0" + bytes(16)).digest()
            self.prk = hmac.digest(salt, key, "sha256")
            covered = header[:128] + bytes(32) + header[160:]
            made = hmac.digest(self.derive(b"image key check", b"", 32), covered, "sha256")
            assert hmac.compare_digest(made, check)
        self.items: dict[bytes, bytes] = {}
        self._page(root, level)
        self._check_padding()
        self.files = {b"": self._file(1)}
        self._directory(b"", 1)

    def derive(self, label: bytes, context: bytes, length: int) -> bytes:
        info = self.label + label + b"\0" + context
        return HKDFExpand(SHA256(), length, info).derive(self.prk)

    def _opened(self, pointer: bytes, kind: int, flags: int) -> bytes:
        offset, stored, pack, number, _, digest = struct.unpack("<QIIII32s", pointer)
        assert offset >= 4096
        sealed = self.raw[offset : offset + stored]
        assert len(sealed) == stored
        assert self.hash(sealed) == digest
        assert (pack == PAGES) == (kind == 2)
        if not self.prk:
            return sealed
        if self.version == 1:
            label = b"image pack"
        else:
            label = b"image pages" if kind == 2 else b"image data"
        identifier = self.pages_id if kind == 2 else self.items[struct.pack(">QBI", 0, PACK, pack)]
        material = self.derive(label, identifier, 28)
        nonce = (int.from_bytes(material[16:], "big") ^ number).to_bytes(12, "big")
        aad = struct.pack("<BBII", kind, flags, number, stored - 16)
        return AESGCM(material[:16]).decrypt(nonce, sealed, aad)

    def _inflated(self, raw: bytes, limit: int, *, more: bool = False) -> bytes:
        assert self.compression == 1
        assert 0 < zstandard.get_frame_parameters(raw).content_size <= limit
        inflater = zstandard.ZstdDecompressor(max_window_size=8 << 20)
        return inflater.decompress(raw, max_output_size=limit, allow_extra_data=more)

    def _page(self, pointer: bytes, level: int) -> None:
        flags = int.from_bytes(pointer[20:24], "little")
        assert flags == 0 or (flags == 1 and self.version == 1)
        raw = self._opened(pointer, 2, flags)
        if flags:
            raw = self._inflated(raw, 1 << 20)
        found, zero, count = struct.unpack_from("<BBH", raw)
        assert (found, zero) == (level, 0)
        ends = struct.unpack_from(f"<{2 * count}I", raw, 4)
        keys = raw[4 + 8 * count :]
        values = keys[ends[count - 1] :]
        assert len(values) == ends[-1]
        low, first = 0, 0
        for high, last in zip(ends[:count], ends[count:], strict=True):
            if level:
                self._page(values[first:last], level - 1)
            else:
                self.items[keys[low:high]] = values[first:last]
            low, first = high, last

    def _check_padding(self) -> None:
        value = self.items[struct.pack(">QB", 0, SUPER)]
        if self.version == 1:
            assert len(value) == 24
            return
        offset, length = struct.unpack("<5Q", value)[3:]
        if length:
            noise = blake3(key=self.derive(b"image padding", self.pages_id, 32))
            assert noise.digest(length=length) == self.raw[offset : offset + length]

    def _file(self, ino: int) -> File:
        record = struct.unpack("<6IQ4q2Q", self.items[struct.pack(">QB", ino, INODE)])
        file = File(record)
        mode, flags, size = record[0], record[5], record[6]
        inline = self.items.get(struct.pack(">QB", ino, INLINE), b"")
        if mode >> 12 == 0o12:
            file.content = inline
        elif flags & 1 and self.version == 2:
            mark, rest = inline[0], inline[1:]
            assert mark in (0, 1)
            file.content = self._inflated(rest, 2048) if mark else rest
        elif flags & 1:
            file.content = inline
        elif mode >> 12 == 0o10:
            shift = flags >> 8 & 31
            file.content = self._chunks(ino, size, 1 << shift if shift else self.chunk)
        if mode >> 12 in (0o10, 0o12):
            assert len(file.content) == size
        for key, value in self.items.items():
            if key[:9] == struct.pack(">QB", ino, XATTR):
                assert value[:1] == b"\1"
                file.xattrs[key[9:]] = value[1:]
        return file

    def _chunks(self, ino: int, size: int, unit: int) -> bytes:
        out = bytearray()
        for chunk in range(-(-size // unit)):
            length = min(unit, size - chunk * unit)
            item = self.items.get(struct.pack(">QBI", ino, EXTENTS, chunk // 64), b"")
            slot = item[60 * (chunk % 64) :][:60]
            raw = self._chunk(slot, unit) if any(slot) else b""
            out += raw[:length].ljust(length, b"\0")
        return bytes(out)

    def _chunk(self, slot: bytes, unit: int) -> bytes:
        flags, position = (int.from_bytes(slot[at : at + 4], "little") for at in (20, 56))
        assert flags in ((0, 1) if self.version == 1 else (0, 1, 2))
        record = self._opened(slot[:56], 1, flags & 1)
        if flags == 2:
            return self._inflated(record[position:], unit, more=True)
        if flags == 1:
            record = self._inflated(record, max(unit, self.chunk))
        return record[position:]

    def _directory(self, path: bytes, ino: int) -> None:
        for key, value in list(self.items.items()):
            if key[:9] != struct.pack(">QB", ino, DIRENT):
                continue
            name = key[17:]
            position = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1
            assert int.from_bytes(key[9:17], "big") == max(position, 16)
            child, dtype = struct.unpack("<QB", value)
            file = self.files[path + b"/" + name] = self._file(child)
            assert file.record[0] >> 12 == dtype
            if dtype == 4:
                if self.version == 2:
                    assert file.record[12] == ino
                self._directory(path + b"/" + name, child)
