# SPDX-License-Identifier: Apache-2.0
"""The bytes of the FUSE protocol, against vectors written by hand from fuse.h."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serdab.fuse import abi, wire
from serdab.vfs.api import NOW_NS, Inode, SetAttr, StatFs

PARSERS: dict[str, Callable[[memoryview, int], object]] = {
    name: getattr(wire, name)
    for name in (
        "parse_header",
        "parse_name",
        "parse_init",
        "parse_forget",
        "parse_batch_forget",
        "parse_setattr",
        "parse_mknod",
        "parse_mkdir",
        "parse_tmpfile",
        "parse_symlink",
        "parse_link",
        "parse_rename",
        "parse_rename2",
        "parse_read",
        "parse_write",
        "parse_fsync",
        "parse_getxattr",
        "parse_xattr_name",
        "parse_listxattr",
        "parse_fallocate",
        "parse_lseek",
        "parse_copy_file_range",
    )
} | {
    f"parse_setxattr, long: {is_long}": partial(wire.parse_setxattr, is_long=is_long)
    for is_long in (False, True)
}


def request(body: bytes, opcode: int = 1) -> tuple[memoryview, int]:
    """Return a request in a buffer that still holds an older, longer one."""
    head = struct.pack("=IIQQIIIHH", 40 + len(body), opcode, 7, 1, 1000, 100, 4242, 0, 0)
    stale = b"older/request\0of\0someone-else\0" * 20
    return memoryview(bytearray(head + body + stale)), 40 + len(body)


def sample() -> Inode:
    inode = Inode(0x1122, 0o100640, uid=1000, gid=100, rdev=0)
    inode.size = 1025
    inode.nlink = 3
    inode.atime_ns = 1_700_000_000_000_000_001
    inode.mtime_ns = -1  # a nanosecond before 1970
    inode.ctime_ns = 2_000_000_003
    inode.btime_ns = 5_000_000_006
    return inode


class TestSizes:
    @pytest.mark.parametrize(
        ("layout", "expected_bytes"),
        [
            (abi.IN_HEADER, 40),
            (abi.OUT_HEADER, 16),
            (abi.INIT_OUT, 64),
            (abi.SETATTR_IN, 88),
            (abi.ENTRY_REPLY, 16 + 128),
            (abi.ATTR_REPLY, 16 + 104),
            (abi.CREATE_REPLY, 16 + 128 + 16),
            (abi.STATX_REPLY, 16 + 288),
            (abi.STATFS_REPLY, 16 + 80),
            (abi.READ_IN, 40),
            (abi.WRITE_IN, 40),
            (abi.DIRENTPLUS, 152),
            (abi.FALLOCATE_IN, 32),
            (abi.LSEEK_IN, 24),
            (abi.COPY_FILE_RANGE_IN, 56),
        ],
    )
    def test_each_layout_has_the_size_of_its_c_structure(
        self, layout: struct.Struct, expected_bytes: int
    ) -> None:
        assert layout.size == expected_bytes


class TestParsing:
    def test_a_header_gives_opcode_unique_node_and_caller(self) -> None:
        view, size = request(b"", opcode=16)
        assert wire.parse_header(view, size) == (16, 7, 1, 1000, 100)

    def test_a_header_that_lies_about_its_length_is_refused(self) -> None:
        view, size = request(b"abcd")
        with pytest.raises(wire.MalformedRequest, match="length"):
            wire.parse_header(view, size + 1)

    def test_a_name_ends_at_its_nul_and_not_in_the_older_request(self) -> None:
        view, size = request(b"file\0")
        assert wire.parse_name(view, size) == b"file"

    @pytest.mark.parametrize("body", [b"", b"\0", b"file", b"a\0b\0", b"a/b\0", b"/\0"])
    def test_a_bad_name_is_refused(self, body: bytes) -> None:
        view, size = request(body)
        with pytest.raises(wire.MalformedRequest):
            wire.parse_name(view, size)

    def test_setattr_takes_only_what_is_marked_valid(self) -> None:
        body = struct.pack(
            "=IIQQQqqqIIIIIIII",
            abi.FATTR_MODE | abi.FATTR_SIZE | abi.FATTR_MTIME | abi.FATTR_ATIME_NOW
            | abi.FATTR_ATIME | abi.FATTR_KILL_SUIDGID,
            0, 9, 123, 8, 5, -2, 6, 1, 999_999_999, 3, 0o100755, 0, 11, 12, 0,
        )  # fmt: skip
        view, size = request(body)
        assert wire.parse_setattr(view, size) == SetAttr(
            mode=0o755, size=123, atime_ns=NOW_NS, mtime_ns=-1_000_000_001, kill_suidgid=True
        )

    def test_the_last_nanosecond_of_1969_is_a_time_like_others(self) -> None:
        body = struct.pack(
            "=IIQQQqqqIIIIIIII",
            abi.FATTR_MTIME, 0, 0, 0, 0, 0, -1, 0, 0, 999_999_999, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip
        view, size = request(body)
        assert wire.parse_setattr(view, size).mtime_ns == -1

    def test_the_mode_of_new_files_comes_with_the_umask(self) -> None:
        view, size = request(struct.pack("=IIII", 0o100666, 0x801, 0o027, 0) + b"dev\0")
        assert wire.parse_mknod(view, size) == (0o100666, 0o027, 0x801, b"dev")
        view, size = request(struct.pack("=II", 0o777, 0o022) + b"d\0")
        assert wire.parse_mkdir(view, size) == (0o777, 0o022, b"d")
        view, size = request(struct.pack("=IIII", 0o102, 0o100777, 0o077, 0) + b"/\0")
        assert wire.parse_tmpfile(view, size) == (0o777, 0o077)

    def test_names_of_rename_symlink_and_link(self) -> None:
        view, size = request(struct.pack("=Q", 5) + b"old\0new\0")
        assert wire.parse_rename(view, size) == (5, b"old", b"new")
        view, size = request(struct.pack("=QII", 6, 2, 0) + b"old\0new\0")
        assert wire.parse_rename2(view, size) == (6, 2, b"old", b"new")
        view, size = request(b"name\0../to/there\0")
        assert wire.parse_symlink(view, size) == (b"name", b"../to/there")
        view, size = request(struct.pack("=Q", 9) + b"hard\0")
        assert wire.parse_link(view, size) == (9, b"hard")

    def test_the_data_of_a_write_is_exactly_what_arrived(self) -> None:
        body = struct.pack("=QQIIQII", 0, 4096, 5, abi.WRITE_KILL_SUIDGID, 0, 0, 0)
        view, size = request(body + b"hello")
        offset, flags, data = wire.parse_write(view, size)
        assert (offset, flags, bytes(data)) == (4096, abi.WRITE_KILL_SUIDGID, b"hello")

    def test_a_write_that_claims_more_than_arrived_is_refused(self) -> None:
        body = struct.pack("=QQIIQII", 0, 0, 6, 0, 0, 0, 0)
        view, size = request(body + b"hello")
        with pytest.raises(wire.MalformedRequest):
            wire.parse_write(view, size)

    def test_a_batch_of_forgets_that_claims_more_than_arrived_is_refused(self) -> None:
        pair = struct.pack("=QQ", 2, 3)
        view, size = request(struct.pack("=II", 2, 0) + pair + pair)
        assert wire.parse_batch_forget(view, size) == [(2, 3), (2, 3)]
        view, size = request(struct.pack("=II", 0xFFFFFFFF, 0) + pair)
        with pytest.raises(wire.MalformedRequest):
            wire.parse_batch_forget(view, size)

    def test_extended_attributes(self) -> None:
        view, size = request(struct.pack("=II", 3, 1) + b"user.a\0x\0y")
        assert wire.parse_setxattr(view, size, is_long=False) == (b"user.a", b"x\0y", 1, 0)
        view, size = request(struct.pack("=IIII", 3, 1, 1, 0) + b"user.a\0x\0y")
        assert wire.parse_setxattr(view, size, is_long=True) == (b"user.a", b"x\0y", 1, 1)
        view, size = request(struct.pack("=II", 64, 0) + b"user.a\0")
        assert wire.parse_getxattr(view, size) == (64, b"user.a")
        view, size = request(b"user.a/b\0")
        assert wire.parse_xattr_name(view, size) == b"user.a/b"


class TestHostileBytes:
    @pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
    @given(body=st.binary(max_size=160))
    def test_any_bytes_parse_or_are_refused_as_malformed(
        self, parser: Callable[[memoryview, int], object], body: bytes
    ) -> None:
        view, size = request(body)
        try:
            parser(view, size)
        except wire.MalformedRequest:
            pass

    @pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
    def test_every_truncation_is_refused(self, parser: Callable[[memoryview, int], object]) -> None:
        view = memoryview(bytearray(b"\xff" * 512))
        for size in range(40):
            with pytest.raises(wire.MalformedRequest):
                parser(view, size)


class TestDumping:
    def test_an_error_is_negative_on_the_wire(self) -> None:
        assert wire.dump_error(7, 2) == bytes.fromhex("10000000feffffff0700000000000000")

    def test_an_entry_field_by_field(self) -> None:
        reply = wire.dump_entry(9, sample(), 60, 4096)
        assert struct.unpack("=IiQ", reply[:16]) == (144, 0, 9)
        assert struct.unpack("=QQQQII", reply[16:56]) == (0x1122, 0, 60, 60, 0, 0)
        assert struct.unpack("=QQQqqqIIIIIIIIII", reply[56:]) == (
            0x1122, 1025, 3, 1_700_000_000, -1, 2, 1, 999_999_999, 3,
            0o100640, 3, 1000, 100, 0, 4096, 0,
        )  # fmt: skip

    def test_attributes_field_by_field(self) -> None:
        reply = wire.dump_attr(9, sample(), 60, 4096)
        assert struct.unpack("=IiQQII", reply[:32]) == (120, 0, 9, 60, 0, 0)
        assert reply[32:] == wire.dump_entry(9, sample(), 60, 4096)[56:]

    def test_counted_blocks_win_over_the_size(self) -> None:
        inode = sample()
        inode.blocks = 0
        assert struct.unpack_from("=Q", wire.dump_attr(1, inode, 0, 4096), 48) == (0,)

    def test_an_absent_name_is_node_zero_with_a_timeout(self) -> None:
        reply = wire.dump_no_entry(9, 60)
        assert len(reply) == 144
        assert struct.unpack("=QQQ", reply[16:40]) == (0, 0, 60)

    def test_statx_carries_the_time_of_birth_and_splits_device_numbers(self) -> None:
        inode = sample()
        inode.rdev = 0x12345678 & 0xFFF | (0xABC << 8)  # minor and major in the 32-bit encoding
        reply = wire.dump_statx(9, inode, 60, 4096)
        assert len(reply) == 304
        fields = struct.unpack("=IIQIIIHHQQQQ", reply[48:112])
        assert fields == (0xFFF, 4096, 0, 3, 1000, 100, 0o100640, 0, 0x1122, 1025, 3, 0)
        assert struct.unpack("=qIi", reply[128:144]) == (5, 6, 0)

    def test_init_announces_the_version_and_whole_pages(self) -> None:
        reply = wire.dump_init(
            1, flags=5, max_readahead=65536, max_write=1 << 20, max_background=64
        )
        assert len(reply) == 80
        assert struct.unpack("=IIIIHHIIHHI", reply[16:52]) == (
            7, abi.MINOR, 65536, 5, 64, 48, 1 << 20, 1, 256, 0, 0,
        )  # fmt: skip

    def test_statfs_field_by_field(self) -> None:
        reply = wire.dump_statfs(3, StatFs(4096, 100, 40, 50, 20, 255))
        assert struct.unpack("=QQQQQIIII", reply[16:72]) == (
            100, 40, 40, 50, 20, 4096, 255, 4096, 0,
        )  # fmt: skip
        assert len(reply) == 96

    @given(name=st.binary(min_size=1, max_size=255))
    def test_directory_entries_are_padded_with_zeros_to_eight_bytes(self, name: bytes) -> None:
        buf = bytearray(b"\xee" * 1024)
        end = wire.dump_dirent_into(buf, 16, 5, 77, name, 8)
        assert end == 16 + wire.dirent_bytes(name)
        assert struct.unpack("=QQII", buf[16:40]) == (5, 77, len(name), 8)
        assert buf[40:end] == name.ljust(end - 40, b"\0")
        end_plus = wire.dump_direntplus_into(buf, 16, sample(), 0x1122, 77, name, 8, 60, 4096)
        assert end_plus == 16 + wire.direntplus_bytes(name)
        assert bytes(buf[16:144]) == wire.dump_entry(1, sample(), 60, 4096)[16:]
        assert buf[168:end_plus] == name.ljust(end_plus - 168, b"\0")
