# SPDX-License-Identifier: Apache-2.0
"""The arguments of MountRootFS, from a memory that is a dictionary of pages."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from serdab.libos.rootconfig import Request, RootConfig, read_request

BASE = 0x10000


class FakeMemory:
    """Bytes at ``BASE``; everything else is not mapped."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, address: int, length: int) -> bytes:
        start = address - BASE
        if start < 0 or start + length > len(self.content):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return self.content[start : start + length]

    def text(self, address: int, limit: int = 4096) -> bytes:
        start = address - BASE
        if not 0 <= start < len(self.content):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        end = self.content.find(b"\0", start)
        if end < 0 or end - start >= limit:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return self.content[start:end]


def config(length: int = 56, *words: int, rest: bytes = b"") -> FakeMemory:
    padded = (*words, *[0] * (6 - len(words)))
    return FakeMemory(struct.pack("<7Q", length, *padded) + rest)


def read(memory: FakeMemory, key: int = 0) -> Request:
    return read_request(memory, key, BASE)


def refused(memory: FakeMemory, key: int = 0) -> int | None:
    with pytest.raises(OSError, match=r"\w") as caught:
        read(memory, key)
    return caught.value.errno


def test_two_nulls_are_no_key_and_no_config() -> None:
    assert read_request(FakeMemory(b""), 0, 0) == Request(None, None)


def test_a_key_is_sixteen_raw_bytes() -> None:
    assert read_request(FakeMemory(bytes(range(16))), BASE, 0).key == bytes(range(16))


def test_a_key_that_is_not_all_there_is_efault() -> None:
    with pytest.raises(OSError, match=r"\w") as caught:
        read_request(FakeMemory(bytes(15)), BASE, 0)
    assert caught.value.errno == errno.EFAULT


def test_a_key_never_shows_in_the_request_s_text() -> None:
    assert "00" not in repr(Request(bytes(16), None))


def test_an_empty_config_asks_for_nothing() -> None:
    assert read(config()).config == RootConfig()


@pytest.mark.parametrize("length", [0, 8, 48, 55])
def test_a_shorter_one_is_einval(length: int) -> None:
    assert refused(config(length)) == errno.EINVAL


def test_a_longer_one_with_zeros_is_accepted() -> None:
    assert read(config(128, rest=bytes(72))).config == RootConfig()


def test_a_longer_one_with_something_unknown_is_e2big() -> None:
    assert refused(config(128, rest=bytes(71) + b"\1")) == errno.E2BIG


def test_one_that_is_absurdly_long_is_e2big() -> None:
    assert refused(config(1 << 40)) == errno.E2BIG


def test_every_member_is_read() -> None:
    strings = b"upper\0lower\0/bin\0/src\0/dst\0A=1\0"
    at = BASE + 64
    offsets = [0, 6, 12, 17, 22, 27]
    env = at + len(strings)
    mac = env + 16
    words = [at + offset for offset in offsets[:5]] + [env]
    content = struct.pack("<8Q", 64, *words, mac) + strings
    content += struct.pack("<2Q", at + 27, 0) + b"m" * 32
    assert read(FakeMemory(content)).config == RootConfig(
        upper="upper",
        lower="lower",
        entry_point="/bin",
        hostfs_source="/src",
        hostfs_target="/dst",
        env=(b"A=1",),
        root_mac=b"m" * 32,
    )


def test_an_empty_list_of_strings_is_not_none() -> None:
    memory = config(56, 0, 0, 0, 0, 0, BASE + 56, rest=bytes(8))
    asked = read(memory).config
    assert asked is not None
    assert asked.env == ()


@pytest.mark.parametrize("member", range(6))
def test_a_bad_pointer_is_efault(member: int) -> None:
    words = [0] * 6
    words[member] = 8
    assert refused(config(56, *words)) == errno.EFAULT


def test_a_list_without_an_end_is_refused() -> None:
    rest = struct.pack("<Q", BASE) * 5000
    assert refused(config(56, 0, 0, 0, 0, 0, BASE + 56, rest=rest)) == errno.E2BIG
