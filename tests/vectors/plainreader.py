# SPDX-License-Identifier: Apache-2.0
"""A second reader of sealed volumes, written from docs/format.md alone.

It shares no code with the product: what it can read, the document says. It reads all of a volume
at once and asks the caller for bytes of the lower layer.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Below = Callable[[int, int, int], bytes]
"""(ino, offset, length) -> bytes of a file of the lower layer."""


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand-SHA256 (RFC 5869)."""
    out = block = b""
    count = 1
    while len(out) < length:
        block = hmac.digest(prk, block + info + bytes((count,)), "sha256")
        out += block
        count += 1
    return out[:length]


class Cipher:
    """Opens numbered records."""

    def __init__(self, material: bytes) -> None:
        self._gcm = AESGCM(material[:16])
        self._iv = int.from_bytes(material[16:], "big")

    def open(self, number: int, sealed: bytes, aad: bytes) -> bytes:
        return self._gcm.decrypt((self._iv ^ number).to_bytes(12, "big"), sealed, aad)


class PlainVolume:
    """A volume, its log replayed."""

    def __init__(self, folder: Path, key: bytes, below: Below) -> None:
        self._folder = folder
        self._key = key
        self._below = below
        self._segments: dict[int, tuple[bytes, Cipher]] = {}
        self.items: dict[bytes, bytes] = {}
        self._memory: dict[tuple[int, int], bytearray] = {}
        self._read_anchor()
        root, level = self.state[3], self.state[4]
        if root:
            self._read_page(root, level)
        if self.state[9]:
            self._replay()

    def _derive(self, label: bytes, context: bytes, length: int) -> bytes:
        return expand(self._prk, self._name + label + b"\0" + context, length)

    def _read_anchor(self) -> None:
        raw = (self._folder / "anchor").read_bytes()
        found: list[tuple[int, int, bytes, list[Any]]] = []
        for slot in (0, 1):
            part = raw[slot * 16384 : (slot + 1) * 16384]
            if part[:8] != b"SEFSVOL\0":
                continue
            version, source, zero = struct.unpack_from("<IHH", part, 8)
            uuid, salt, check = part[16:32], part[32:64], part[64:96]
            (sealed,) = struct.unpack_from("<I", part, 96)
            self._name = b"serdab sefs v%d " % version
            extract = hashlib.sha256(self._name + b"volume\0" + uuid).digest()
            self._prk = hmac.digest(extract, self._key, "sha256")
            assert self._derive(b"key check", b"", 32) == check
            assert not zero
            end = 100 + source
            cipher = Cipher(self._derive(b"anchor", salt, 28))
            state = msgspec.msgpack.decode(cipher.open(0, part[end : end + sealed], part[:end]))
            assert state[0] % 2 == slot
            found.append((state[0], version, uuid, state))
        _, self.version, self.uuid, self.state = max(found)

    def _segment(self, number: int) -> tuple[bytes, Cipher]:
        if number not in self._segments:
            raw = (self._folder / "seg" / f"{number:08x}").read_bytes()
            context = number.to_bytes(8, "little") + raw[:32]
            self._segments[number] = raw, Cipher(self._derive(b"segment", context, 28))
        return self._segments[number]

    def _record(self, pointer: bytes, aad: bytes) -> bytes:
        segment, offset, stored, number = struct.unpack_from("<IIII", pointer)
        raw, cipher = self._segment(segment)
        sealed = raw[offset : offset + stored]
        assert sealed[-16:] == pointer[16:32]
        return cipher.open(number, sealed, aad)

    def _read_page(self, pointer: bytes, level: int) -> None:
        raw = self._record(pointer, struct.pack("<BQQ", 2, level, 0))
        own_level, zero, count = struct.unpack_from("<BBH", raw)
        assert (own_level, zero) == (level, 0)
        ends = struct.unpack_from(f"<{2 * count}I", raw, 4)
        keys = raw[4 + 8 * count :]
        values = keys[ends[count - 1] :]
        for index in range(count):
            first = ends[index - 1] if index else 0
            low = ends[count + index - 1] if index else 0
            value = values[low : ends[count + index]]
            if level:
                self._read_page(value, level - 1)
            else:
                self.items[keys[first : ends[index]]] = value

    # The log ------------------------------------------------------------------------------

    def _replay(self) -> None:
        number, salt = self.state[9], self.state[10]
        raw = (self._folder / "log" / f"{number:08x}").read_bytes()
        cipher = Cipher(self._derive(b"log", number.to_bytes(8, "little") + salt, 28))
        sequence, chain, page = self.state[1], self.state[2], 0
        while True:
            start = page * 4096
            sealed = raw[start : start + 64]
            if not any(sealed):
                return
            head = cipher.open(2 * page, sealed, b"")
            found, length, _, previous, _, pages, _ = struct.unpack("<QII16sQII", head)
            assert (found, previous) == (sequence + 1, chain)
            sealed_body = raw[start + 64 : start + 64 + length + 16]
            body = msgspec.msgpack.decode(cipher.open(2 * page + 1, sealed_body, sealed[-16:]))
            self._apply(*body)
            sequence, chain, page = found, sealed_body[-16:], page + pages

    def _apply(
        self,
        items: list[tuple[bytes, bytes | None]],
        discards: list[tuple[int, int, int]],
        writes: list[tuple[int, int, bytes]],
        _next_ino: int,
    ) -> None:
        for ino, first, end in discards:
            self._forget(ino, lambda chunk, first=first, end=end: first <= chunk < end)  # type: ignore[misc]
        for key, value in items:
            ino, kind = int.from_bytes(key[:8], "big"), key[8]
            if kind == 5:
                group = int.from_bytes(key[9:], "big")
                for index in range(64):
                    if self._slot_of(self.items.get(key, b""), index) != self._slot_of(
                        value or b"", index
                    ):
                        self._memory.pop((ino, group * 64 + index), None)
            elif kind == 2 or (kind == 1 and value is None):
                self._forget(ino, lambda _chunk: True)
            if value is None:
                self.items.pop(key, None)
            else:
                self.items[key] = value
        for ino, offset, written in writes:
            size = self._chunk_size(ino)
            chunk, skip = divmod(offset, size)
            held = self._memory.get((ino, chunk))
            if held is None:
                held = bytearray(self._stored(ino, chunk))
                self._memory[ino, chunk] = held
            held.extend(bytes(max(0, skip + len(written) - len(held))))
            held[skip : skip + len(written)] = written

    def _forget(self, ino: int, is_gone: Callable[[int], bool]) -> None:
        for held in [held for held in self._memory if held[0] == ino and is_gone(held[1])]:
            del self._memory[held]

    # Files --------------------------------------------------------------------------------

    def _item(self, ino: int, kind: int, rest: bytes = b"") -> bytes:
        return self.items.get(struct.pack(">QB", ino, kind) + rest, b"")

    def inode(self, ino: int) -> tuple[int, ...]:
        """Return the fields of a record, in their order."""
        return struct.unpack("<IIIIIIQqqqqQQ", self._item(ino, 1))

    def entry(self, parent: int, name: bytes) -> int:
        """Return the inode of a name."""
        position = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1
        raw = self._item(parent, 4, max(position, 16).to_bytes(8, "big") + name)
        return int(struct.unpack("<QB", raw)[0])

    def _chunk_size(self, ino: int) -> int:
        shift = self.inode(ino)[5] >> 8 & 31
        return 1 << shift if shift else int(self.state[12])

    @staticmethod
    def _slot_of(value: bytes, index: int) -> bytes:
        return value[32 * index : 32 * index + 32] or bytes(32)

    def _stored(self, ino: int, chunk: int) -> bytes:
        fields = self.inode(ino)
        size, flags, limit = self._chunk_size(ino), fields[5], fields[11]
        group, index = divmod(chunk, 64)
        slot = self._slot_of(self._item(ino, 5, group.to_bytes(4, "big")), index)
        first = int.from_bytes(slot[:4], "little")
        if first == 0xFFFFFFFE:
            length, other, offset, layer, zero = struct.unpack_from("<IQQII", slot, 4)
            assert (layer, zero) == (0, 0)
            return self._below(other, offset, length)
        if first in (0xFFFFFFFF, 0xFFFFFFFD):
            return b""
        if not first:
            left = min(limit - chunk * size, size) if flags & 2 else 0
            return self._below(ino, chunk * size, left) if left > 0 else b""
        beside = (1, first, struct.unpack_from("<I", slot, 12)[0])
        return self._record(
            slot, struct.pack("<BQQ", *(beside if self.version > 1 else (1, ino, chunk)))
        )

    def content(self, ino: int) -> bytes:
        """Return the bytes of a regular file."""
        fields = self.inode(ino)
        total, size = fields[6], self._chunk_size(ino)
        if fields[5] & 1:
            return self._item(ino, 2)[:total].ljust(total, b"\0")
        out = b""
        for chunk in range(-(-total // size)):
            held = self._memory.get((ino, chunk))
            out += bytes(self._stored(ino, chunk) if held is None else held).ljust(size, b"\0")
        return out[:total]

    def root_mac(self) -> bytes:
        """Return the root MAC of the checkpoint."""
        root, level, lower = self.state[3], self.state[4], self.state[11]
        if self.version == 1:
            raw = b"serdab sefs volume v1\0" + self.uuid + bytes((level,)) + root + b"".join(lower)
            return hashlib.sha256(raw).digest()
        number = struct.Struct("<I")
        raw = b"serdab sefs v2 volume root\0" + number.pack(16) + self.uuid
        raw += number.pack(self.state[12]) + bytes((level,)) + number.pack(len(root)) + root
        raw += number.pack(len(lower)) + b"".join(number.pack(32) + mac for mac in lower)
        return hashlib.sha256(raw).digest()
