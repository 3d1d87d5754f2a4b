# SPDX-License-Identifier: Apache-2.0
"""What an inode record and an ACL may say, in both versions of the format."""

from __future__ import annotations

import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serdab.errors import FormatError
from serdab.sefs import keyspace as ks
from serdab.vfs import acl
from serdab.vfs.acl import AclEntry
from serdab.vfs.api import Inode

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755
PARENT = struct.Struct("<Q")
LEAST = [AclEntry(acl.USER_OBJ, 6), AclEntry(acl.GROUP_OBJ, 4), AclEntry(acl.OTHER, 0)]


def with_parent(raw: bytes, parent: int) -> bytes:
    return raw[:-8] + PARENT.pack(parent)


@given(
    ino=st.integers(2, ks.MAX_INO),
    mode=st.sampled_from((FILE, DIRECTORY, stat.S_IFLNK | 0o777)),
    record=st.sampled_from((0, *(1 << n for n in range(ks.LEAST_RECORD, ks.MOST_RECORD + 1)))),
    parent=st.integers(1, ks.MAX_INO),
    version=st.sampled_from((ks.V1, ks.V2)),
)
def test_a_record_says_what_was_put_into_it(
    ino: int, mode: int, record: int, parent: int, version: int
) -> None:
    inode = Inode(ino, mode)
    if version == ks.V2 and mode == FILE:
        inode.flags = ks.with_record_size(ks.F_SPARSE, record)
    if version == ks.V2 and mode == DIRECTORY and parent != ino:
        inode.parent_ino = parent
    found = ks.parse_inode(ino, ks.dump_inode(inode, version), version)
    assert [getattr(found, field) for field in Inode.__slots__] == [
        getattr(inode, field) for field in Inode.__slots__
    ]


def test_record_sizes_are_powers_of_two_within_bounds() -> None:
    assert ks.record_size(ks.F_INLINE, 32768) == 32768
    assert ks.record_size(ks.with_record_size(ks.F_LOWER, 4096), 32768) == 4096
    assert ks.with_record_size(ks.with_record_size(7, 1 << 20), 0) == 7
    for size in (2048, 4097, 1 << 21):
        with pytest.raises(ValueError, match="records of"):
            ks.with_record_size(0, size)


@pytest.mark.parametrize(
    ("version", "mode", "flags", "parent"),
    [
        (ks.V1, FILE, 12 << 8, 0),
        (ks.V1, DIRECTORY, 0, 1),
        (ks.V2, FILE, 11 << 8, 0),
        (ks.V2, FILE, 21 << 8, 0),
        (ks.V2, FILE, 8, 0),
        (ks.V2, FILE, 1 << 13, 0),
        (ks.V2, DIRECTORY, 12 << 8, 1),
        (ks.V2, FILE, 0, 1),
        (ks.V2, DIRECTORY, 0, 5),
        (ks.V2, DIRECTORY, 0, ks.MAX_INO + 1),
    ],
)
def test_what_a_version_does_not_know_is_refused(
    version: int, mode: int, flags: int, parent: int
) -> None:
    inode = Inode(5, mode)
    raw = bytearray(with_parent(ks.dump_inode(inode, ks.V2), parent))
    struct.pack_into("<I", raw, 20, flags)
    with pytest.raises(FormatError):
        ks.parse_inode(5, bytes(raw), version)


def test_the_root_is_in_itself() -> None:
    raw = ks.dump_inode(Inode(1, DIRECTORY), ks.V2)
    assert ks.parse_inode(1, with_parent(raw, 1), ks.V2).parent_ino == 1
    with pytest.raises(FormatError):
        ks.parse_inode(1, with_parent(raw, 2), ks.V2)


def test_version_1_is_not_written_with_what_it_does_not_have() -> None:
    inode = Inode(5, FILE)
    inode.flags = ks.with_record_size(0, 4096)
    with pytest.raises(FormatError):
        ks.dump_inode(inode, ks.V1)
    directory = Inode(5, DIRECTORY)
    directory.parent_ino = 1
    assert ks.parse_inode(5, ks.dump_inode(directory, ks.V1), ks.V1).parent_ino == 0


class TestAcls:
    @given(
        users=st.sets(st.integers(0, 1 << 31), max_size=4),
        groups=st.sets(st.integers(0, 1 << 31), max_size=4),
        perm=st.integers(0, 7),
    )
    def test_what_is_put_down_is_found(self, users: set[int], groups: set[int], perm: int) -> None:
        entries = [*LEAST, *(AclEntry(acl.USER, perm, ident) for ident in users)]
        entries += [AclEntry(acl.GROUP, perm, ident) for ident in groups]
        if users or groups:
            entries.append(AclEntry(acl.MASK, perm))
        found = acl.parse_acl(acl.dump_acl(entries))
        assert found == sorted(entries, key=lambda entry: (entry.tag, entry.id))

    def test_the_bytes_are_the_kernels(self) -> None:
        entries = [*LEAST, AclEntry(acl.USER, 7, 1000), AclEntry(acl.MASK, 5)]
        assert acl.dump_acl(entries).hex() == (
            "02000000" "01000600ffffffff" "02000700e8030000" "04000400ffffffff"
            "10000500ffffffff" "20000000ffffffff"
        )  # fmt: skip

    @pytest.mark.parametrize(
        "entries",
        [
            [],
            LEAST[1:],
            LEAST[:2],
            [*LEAST, LEAST[0]],
            [*LEAST, AclEntry(acl.USER, 7, 1)],
            [*LEAST, AclEntry(acl.MASK, 8)],
            [*LEAST, AclEntry(acl.MASK, 7, 0)],
            [*LEAST, AclEntry(acl.MASK, 7), AclEntry(acl.USER, 7, acl.NO_ID)],
            [*LEAST, AclEntry(0x40, 7)],
            [*LEAST, AclEntry(acl.MASK, 7), AclEntry(acl.USER, 1, 5), AclEntry(acl.USER, 2, 5)],
        ],
    )
    def test_what_is_no_acl_is_not_put_down(self, entries: list[AclEntry]) -> None:
        with pytest.raises(FormatError):
            acl.dump_acl(entries)

    def test_what_is_no_acl_is_not_read(self) -> None:
        raw = acl.dump_acl([*LEAST, AclEntry(acl.USER, 7, 9), AclEntry(acl.MASK, 7)])
        swapped = raw[:4] + raw[12:20] + raw[4:12] + raw[20:]
        for bad in (b"", raw[:-1], b"\1" + raw[1:], swapped, raw[:4]):
            with pytest.raises(FormatError):
                acl.parse_acl(bad)

    def test_as_an_attribute_it_is_checked_in_version_2_only(self) -> None:
        name = b"system.posix_acl_access"
        marked = b"\1" + acl.dump_acl(LEAST)
        assert ks.check_xattr(name, marked, ks.V2) == marked
        assert ks.check_xattr(name, b"", ks.V2) == b""
        assert ks.check_xattr(b"user.any", b"\1" + b"any", ks.V1) == b"\1any"
        for version, value in ((ks.V1, marked), (ks.V1, b""), (ks.V2, marked[:-1])):
            with pytest.raises(FormatError):
                ks.check_xattr(name, value, version)
        with pytest.raises(FormatError):
            ks.check_xattr(b"user.any", b"any", ks.V1)
