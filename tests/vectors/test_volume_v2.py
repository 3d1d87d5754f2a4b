# SPDX-License-Identifier: Apache-2.0
"""Version 2 of a volume is frozen: what was written once is read for ever.

A failure here is never mended by new golden files: a change of the format is a new version.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from serdab.sefs import keyspace as ks
from serdab.sefs.anchor import AnchorState, volume_keys
from serdab.sefs.fsck import check
from serdab.sefs.position import Position, checkpoint_mac, logged_mac
from serdab.sefs.segment import POINTER, data_aads
from serdab.sefs.slots import LowerPart, dump_lower, dump_reserved
from serdab.sefs.volume import Volume, open_volume
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union
from tests.vectors.test_format_v1 import KEY, content, open_golden
from tools.make_golden_volume import ACL, CHUNK, noise

GOLDEN = Path(__file__).parents[1] / "images" / "v2"
UUID = bytes(range(16))


@pytest.fixture
def golden(tmp_path: Path) -> Iterator[tuple[Union, Volume]]:
    shutil.copytree(GOLDEN / "volume", tmp_path / "volume")
    for folder, _, names in os.walk(tmp_path / "volume"):
        for name in names:
            os.chmod(os.path.join(folder, name), 0o600)
    lower = open_golden("encrypted")
    volume = open_volume(tmp_path / "volume", key=KEY, lower=lower)
    fs = Union(volume, lower)
    yield fs, volume
    fs.close()


def test_the_golden_volume_is_read_and_its_log_replayed(golden: tuple[Union, Volume]) -> None:
    fs, volume = golden
    assert volume.version == ks.V2
    assert volume.root_mac.hex() == json.loads((GOLDEN / "volume.json").read_text())["root mac"]
    names = {entry.name for entry in fs.readdir(ROOT_INO, 2)}
    assert names == {b"below", b"bin", b"clone", b"clone in the log", b"etc", b"hard",
                     b"in the log", b"large", b"link", b"moved", b"new", b"out of it", b"owner",
                     b"proc", b"room"}  # fmt: skip
    chunks = bytearray(b"".join(i.to_bytes(4, "little") for i in range(50_000)))
    part = bytes(chunks[100_001:103_001])
    chunks[70_000:70_007] = b"changed"
    shared = noise(3 * CHUNK, 1)
    assert content(fs, "bin/chunks") == bytes(chunks)
    assert content(fs, "new") == b"n" * 70_000
    assert content(fs, "in the log") == b"replayed"
    assert content(fs, "owner") == shared
    assert content(fs, "clone") == noise(CHUNK, 4) + shared[CHUNK:]
    assert content(fs, "clone in the log") == shared[: 2 * CHUNK]
    assert content(fs, "below") == bytes(CHUNK) + part + bytes(CHUNK - 3000)
    assert content(fs, "room") == noise(CHUNK, 2) + bytes(2 * CHUNK)
    assert content(fs, "large") == noise(40_000, 3)


def test_all_that_version_2_has_is_in_it(golden: tuple[Union, Volume]) -> None:
    fs, volume = golden
    owner = fs.lookup(ROOT_INO, b"owner")
    folder = fs.lookup(ROOT_INO, b"out of it")
    inode = volume.inode(folder.ino)
    assert inode is not None
    assert inode.parent_ino == ROOT_INO
    assert fs.getxattr(folder.ino, b"system.posix_acl_default") == ACL
    assert fs.getxattr(owner.ino, b"system.posix_acl_access") == ACL
    assert sorted(volume.shared_records().values()) == [2, 2, 3]
    assert volume.reserved_bytes == 2 * (CHUNK + 16)
    large = volume.inode(fs.lookup(ROOT_INO, b"large").ino)
    assert large is not None
    assert ks.record_size(large.flags, CHUNK) == 16384
    assert not check(lambda: fs, [volume.tree], upper=volume).damaged


def test_keys_macs_and_codecs_are_frozen() -> None:
    """These may not change: they are the on-disk format."""
    keys = volume_keys(KEY, UUID, ks.V2)
    state = AnchorState(
        epoch=5, sequence=7, chain=bytes(16), root=bytes(range(32)), root_level=2, table=b"",
        next_ino=9, next_segment=3, next_log=2, log=0, log_salt=b"", lower=(b"m" * 32,),
        chunk_size=32768, page_size=8192, live_bytes=100, previous=bytes(16),
    )  # fmt: skip
    mac = checkpoint_mac(ks.V2, UUID, state)
    found = {
        "key check": keys.derive(b"key check").hex(),
        "anchor": keys.derive(b"anchor", b"salt", 28).hex(),
        "segment": keys.derive(b"segment", b"salt", 28).hex(),
        "log": keys.derive(b"log", b"salt", 28).hex(),
        "root mac": mac.hex(),
        "root mac with log": logged_mac(ks.V2, mac, Position(UUID, 5, 8, b"c" * 16)).hex(),
        "beside data": next(data_aads(ks.V2, 11, 12, 13, [14])).hex(),
        "part of a lower layer": dump_lower(LowerPart(5, 6, 7)).hex(),
        "reserved": dump_reserved(4096).hex(),
        "shared": (ks.shared_key(1, 2) + ks.dump_shared(3)).hex(),
        "owner": ks.owner_key(1, 2, 3, 4).hex(),
        "pointer": POINTER.pack(1, 2, 3, 4, b"t" * 16).hex(),
    }
    assert found == json.loads((Path(__file__).parent / "volume-v2.json").read_text())
