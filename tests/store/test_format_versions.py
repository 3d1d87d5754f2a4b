# SPDX-License-Identifier: Apache-2.0
"""Two versions of a volume: each stays what it is, and neither passes for the other."""

from __future__ import annotations

import copy
import errno
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from serdab.errors import Error, FormatError, FsError
from serdab.sefs import keyspace as ks
from serdab.sefs.anchor import SLOT_BYTES, AnchorState, load_anchor, volume_keys
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.position import Position, checkpoint_mac, logged_mac
from serdab.sefs.volume import Volume, open_volume
from serdab.vfs import acl
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union
from tests.attack.sealedvolume import KEY, SealedVolume, open_host, survey
from tests.vectors.test_format_v1 import GOLDEN, content, open_golden
from tests.vectors.test_format_v1 import KEY as GOLDEN_KEY

UUID = bytes(range(16))
PARTS = st.binary(min_size=32, max_size=32)


def state(root: bytes, lower: tuple[bytes, ...], level: int = 0) -> AnchorState:
    return AnchorState(
        epoch=2, sequence=1, chain=bytes(16), root=root, root_level=level, table=b"",
        next_ino=2, next_segment=1, next_log=1, log=0, log_salt=b"", lower=lower,
        chunk_size=4096, page_size=4096, live_bytes=0, previous=bytes(16),
    )  # fmt: skip


class TestRootMac:
    def test_version_1_takes_one_state_for_another(self) -> None:
        """Its encoding is frozen with it; this is why version 2 has another."""
        pointer = bytes(range(32))
        one, other = state(pointer, ()), state(b"", (pointer,))
        assert checkpoint_mac(ks.V1, UUID, one) == checkpoint_mac(ks.V1, UUID, other)
        assert checkpoint_mac(ks.V2, UUID, one) != checkpoint_mac(ks.V2, UUID, other)

    @given(
        first=st.tuples(st.one_of(st.just(b""), PARTS), st.lists(PARTS, max_size=2)),
        second=st.tuples(st.one_of(st.just(b""), PARTS), st.lists(PARTS, max_size=2)),
    )
    def test_two_states_have_two_macs(
        self, first: tuple[bytes, list[bytes]], second: tuple[bytes, list[bytes]]
    ) -> None:
        one, other = (
            checkpoint_mac(ks.V2, UUID, state(root, tuple(lower)))
            for root, lower in (first, second)
        )
        assert (one == other) == (first == second)

    def test_versions_uuids_levels_and_commits_differ(self) -> None:
        some = state(bytes(32), ())
        macs = {checkpoint_mac(version, UUID, some) for version in (ks.V1, ks.V2)}
        macs.add(checkpoint_mac(ks.V2, bytes(16), some))
        macs.add(checkpoint_mac(ks.V2, UUID, state(bytes(32), (), level=1)))
        macs.add(checkpoint_mac(ks.V2, UUID, structs.replace(some, chunk_size=8192)))
        position = Position(UUID, 2, 5, bytes(16))
        macs |= {logged_mac(version, bytes(32), position) for version in (ks.V1, ks.V2)}
        assert len(macs) == 7


def test_no_key_of_one_version_is_a_key_of_the_other() -> None:
    labels = (b"anchor", b"segment", b"log", b"key check")
    keys = {
        volume_keys(KEY, UUID, version).derive(label)
        for version in (ks.V1, ks.V2)
        for label in labels
    }
    assert len(keys) == 2 * len(labels)


def test_a_new_volume_is_version_2() -> None:
    fs = open_host(MemoryDir("host"), read_only=False)
    assert isinstance(fs._upper, Volume)
    assert fs._upper.version == ks.V2
    fs.close()


@pytest.mark.parametrize("version", [ks.V1, ks.V2])
def test_a_volume_stays_in_its_version(version: int) -> None:
    volume = SealedVolume(closed=False, version=version)
    host = volume.copy()
    for text in (b"once", b"twice"):
        fs = open_host(host, read_only=False)  # what is asked for is for a new volume
        ino = fs.lookup(fs.lookup(ROOT_INO, b"folder").ino, b"inline").ino
        fs.write(ino, 0, memoryview(text), kill_suidgid=False)
        fs.close()
        host = copy.deepcopy(host)
        host.close()
        anchor, _, problems = load_anchor(host.open("anchor"), KEY, "host")
        assert (anchor.version, problems) == (version, [])
    body = survey(host).picture[b"/folder/inline"][9]
    assert isinstance(body, bytes)
    assert body.startswith(b"twice")


@pytest.mark.parametrize("version", [ks.V1, ks.V2])
def test_an_anchor_that_says_the_other_version_is_refused(version: int) -> None:
    host = SealedVolume(closed=True, version=version).copy()
    for slot in (0, SLOT_BYTES):
        struct.pack_into("<I", host.files["anchor"].content, slot + 8, 3 - version)
    with pytest.raises(Error):
        open_host(host)


def test_the_golden_volume_of_version_1_is_written_on(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "volume", tmp_path / "volume")
    for text in (b"first", b"second"):
        lower = open_golden("encrypted")
        volume = open_volume(tmp_path / "volume", key=GOLDEN_KEY, lower=lower)
        assert volume.version == ks.V1
        fs = Union(volume, lower)
        fs.write(fs.lookup(ROOT_INO, b"new").ino, 0, memoryview(text), kill_suidgid=False)
        fs.rename(ROOT_INO, b"moved", fs.lookup(ROOT_INO, b"bin").ino, b"moved", 0)
        fs.rename(fs.lookup(ROOT_INO, b"bin").ino, b"moved", ROOT_INO, b"moved", 0)
        fs.syncfs()
        assert content(fs, "new") == text + (b"n" * 70_000)[len(text) :]
        fs.close()


class TestAcls:
    """One that says more than a mode is stored, and checked."""

    NAME = b"system.posix_acl_access"
    GOOD = acl.dump_acl(
        [acl.AclEntry(t, 6) for t in (acl.USER_OBJ, acl.GROUP_OBJ, acl.MASK, acl.OTHER)]
    )

    def test_version_2_holds_them_and_version_1_does_not(self) -> None:
        for version in (ks.V1, ks.V2):
            host = MemoryDir("host")
            fs = open_host(host, read_only=False, version=version)
            ino = fs.mknod(ROOT_INO, b"file", 0o100600, 0, 0, 0).ino
            if version == ks.V1:
                with pytest.raises(FsError) as refusal:
                    fs.setxattr(ino, self.NAME, self.GOOD, 0)
                assert refusal.value.errno == errno.EOPNOTSUPP
                continue
            with pytest.raises(FsError) as refusal:
                fs.setxattr(ino, self.NAME, self.GOOD[:-1], 0)
            assert refusal.value.errno == errno.EINVAL
            fs.setxattr(ino, self.NAME, self.GOOD, 0)
            fs.close()
            fs = open_host(host)
            assert fs.getxattr(ino, self.NAME) == self.GOOD
            assert fs.listxattr(ino) == [self.NAME]
            fs.close()

    @pytest.mark.parametrize("version", [ks.V1, ks.V2])
    def test_one_that_cannot_be_is_not_read(self, version: int) -> None:
        host = MemoryDir("host")
        fs = open_host(host, read_only=False, version=version)
        ino = fs.mknod(ROOT_INO, b"file", 0o100600, 0, 0, 0).ino
        assert isinstance(fs._upper, Volume)
        raw = self.GOOD if version == ks.V1 else self.GOOD[:-1]
        fs._upper.restore_item(ks.xattr_key(ino, self.NAME), b"\1" + raw, version)
        with pytest.raises(FormatError):
            fs.getxattr(ino, self.NAME)
        with pytest.raises(FormatError):
            fs.listxattr(ino)
        fs.close()
