# SPDX-License-Identifier: Apache-2.0
"""Arguments of mount(2): whatever the bytes are, a refusal or a call."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serdab.libos.mountcall import (
    OPTIONS_MAX,
    BadCall,
    MountCall,
    parse_options,
    read_mount,
    split_options,
)
from serdab.linux.seccomp import Notification


class Words:
    """Memory that holds one text per address: 1, 2, 3, …"""

    def __init__(self, *texts: bytes) -> None:
        self._texts = texts

    def read(self, address: int, length: int) -> bytes:
        return (self.text(address, 1 << 20) + b"\0")[:length]

    def text(self, address: int, limit: int = 4096) -> bytes:
        if not 1 <= address <= len(self._texts):
            raise OSError(errno.EFAULT, "bad address")
        text = self._texts[address - 1]
        if len(text) >= limit:
            raise OSError(errno.ENAMETOOLONG, "too long")
        return text


def mount(target: bytes, fstype: bytes, flags: int, options: bytes) -> MountCall:
    return read_mount(Words(b"none", target, fstype, options), (1, 2, 3, flags, 4, 0))


def test_a_call_without_a_file_system_in_it_is_no_notification() -> None:
    call = Notification(1, 2, 165, (0, 0, 0, 0, 0, 0))
    with pytest.raises(BadCall) as caught:
        read_mount(Words(), call.arguments)
    assert caught.value.code == errno.EINVAL


def test_the_magic_is_taken_off_only_when_it_is_all_of_the_upper_half() -> None:
    assert mount(b"/m", b"ramfs", 0xC0ED0001, b"").flags == 1
    with pytest.raises(BadCall):
        mount(b"/m", b"ramfs", 0xC0EC0001 | 1 << 18, b"")


def test_flags_are_taken_as_32_bits() -> None:
    assert mount(b"/m", b"ramfs", 1 << 40 | 1, b"").flags == 1


def test_a_key_or_its_name_is_taken_out_of_the_options() -> None:
    text = "c7-32-b3-ed-44-df-ec-7b-25-2d-9a-32-38-8d-58-61"
    call = mount(b"m", b"sefs", 0, f"dir=a,key={text}".encode())
    assert (call.key, call.options) == (bytes.fromhex(text.replace("-", "")), {"dir": "a"})
    assert text not in repr(call)
    assert mount(b"m", b"sefs", 0, b"dir=a,key=@n").key_name == "n"


@given(st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1), max_size=4))
def test_quoting_can_be_undone(values: list[str]) -> None:
    usable = [value for value in values if value.isprintable()]
    raw = ",".join(value.replace("\\", "\\\\").replace(",", "\\,") for value in usable)
    assert split_options(raw.encode()) == usable


@given(st.binary(max_size=64).map(lambda raw: raw.replace(b"\0", b"")))
def test_any_option_string_is_parsed_or_refused_with_einval(raw: bytes) -> None:
    for fstype in ("sefs", "unionfs", "hostfs"):
        code = errno.EINVAL
        try:
            parse_options(fstype, raw)
        except BadCall as exc:
            code = exc.code
        assert code == errno.EINVAL


def test_a_megabyte_of_options_is_refused() -> None:
    with pytest.raises(BadCall) as caught:
        mount(b"/m", b"sefs", 0, b"dir=" + b"x" * OPTIONS_MAX)
    assert caught.value.code == errno.EINVAL
