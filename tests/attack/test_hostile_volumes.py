# SPDX-License-Identifier: Apache-2.0
"""Authentic but hostile volumes: anchors, commits and items that nobody honest would have sealed.

Whoever holds the key can seal anything. It ends with an error of ours, soon, and the volume is not
changed by it.
"""

from __future__ import annotations

import copy
import os
import struct
from collections.abc import Callable

import msgspec
import pytest

from serdab.errors import AuthenticationError, Error, FormatError, FsError, MeasurementMismatch
from serdab.keys import Key
from serdab.sefs import keyspace as ks
from serdab.sefs.anchor import SLOT_BYTES, dump_slot, load_anchor
from serdab.sefs.intentlog import Commit, LogWriter, log_cipher
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.segment import POINTER
from serdab.sefs.volume import Volume
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union
from tests.attack.forgery import Exerciser, add_entry, bounded, changed_inode
from tests.attack.sealedvolume import KEY, SealedVolume, open_host, survey


@pytest.fixture(scope="module")
def killed() -> SealedVolume:
    return SealedVolume(closed=False)


def with_state(
    volume: SealedVolume,
    fields: dict[str, object],
    *,
    slot: int | None = None,
    version: int | None = None,
) -> MemoryDir:
    """Return the host with a newest anchor that says something else, sealed as it should be."""
    host = volume.copy()
    anchor, keys, _ = load_anchor(host.open("anchor"), KEY, "host")
    state = msgspec.structs.replace(anchor.state, **fields)
    said = anchor.version if version is None else version
    raw, _ = dump_slot(keys, anchor.uuid, anchor.source, state, said)
    place = (state.epoch % 2 if slot is None else slot) * SLOT_BYTES
    content = host.files["anchor"].content
    content[:] = bytes(2 * SLOT_BYTES)
    content[place : place + SLOT_BYTES] = raw
    return host


HUGE = (1 << 63) - 1
ANCHORS: dict[str, dict[str, object]] = {
    "chunk size 0": {"chunk_size": 0},
    "chunk size 1": {"chunk_size": 1},
    "chunk size 3000": {"chunk_size": 3000},
    "negative chunk size": {"chunk_size": -4096},
    "chunk size of a TiB": {"chunk_size": 1 << 40},
    "page size 0": {"page_size": 0},
    "page size of a TiB": {"page_size": 1 << 40},
    "root of odd length": {"root": b"short"},
    "no root": {"root": b""},
    "table of odd length": {"table": b"short"},
    "no table": {"table": b""},
    "root and table exchanged": {"root": b"\1" * 32, "table": b"\2" * 32},
    "root level 13": {"root_level": 13},
    "negative root level": {"root_level": -1},
    "another root level": {"root_level": 3},
    "next inode 0": {"next_ino": 0},
    "next inode negative": {"next_ino": -5},
    "next inode at the end": {"next_ino": HUGE},
    "next segment 0": {"next_segment": 0},
    "next segment at the end": {"next_segment": (1 << 32) - 1},
    "next segment beyond the end": {"next_segment": 1 << 32},
    "next log beyond the end": {"next_log": 1 << 40},
    "log at the end": {"log": HUGE},
    "negative log": {"log": -1},
    "log salt of odd length": {"log_salt": b"salt"},
    "chain of odd length": {"chain": b"chain"},
    "sequence at the end": {"sequence": HUGE},
    "negative sequence": {"sequence": -1},
    "epoch at the end": {"epoch": (1 << 64) - 1},
    "negative epoch": {"epoch": -2},
    "live bytes negative": {"live_bytes": -1},
    "tag before of odd length": {"previous": b""},
}


@pytest.mark.parametrize("name", ANCHORS)
def test_a_lying_anchor(killed: SealedVolume, name: str) -> None:
    host = with_state(killed, ANCHORS[name])
    with bounded():
        try:
            fs = open_host(host, read_only=False)
        except (Error, FsError):
            return
        user = Exerciser(fs)
        user.run()


@pytest.mark.parametrize("border", [1 << 16, 1 << 31, 1 << 32, 1 << 53, (1 << 62) - 3])
def test_an_epoch_and_a_sequence_at_a_border_go_on(border: int) -> None:
    volume = SealedVolume(closed=True)
    host = with_state(volume, {"epoch": border, "sequence": border})
    for turn in range(4):
        fs = open_host(host, read_only=False)
        folder = fs.lookup(ROOT_INO, b"folder")
        inode = fs.lookup(folder.ino, b"inline")
        fs.write(inode.ino, 0, memoryview(b"turn %d" % turn), kill_suidgid=False)
        fs.syncfs()
        fs.write(inode.ino, 0, memoryview(b"Turn %d" % turn), kill_suidgid=False)
        fs.syncfs()
        if turn % 2:
            fs.close()
        host = copy.deepcopy(host)
        host.close()
        found = survey(host).picture[b"/folder/inline"][9]
        assert isinstance(found, bytes)
        assert found.startswith(b"Turn %d" % turn)


def test_an_anchor_in_the_wrong_slot_is_refused(killed: SealedVolume) -> None:
    anchor, _, _ = load_anchor(killed.copy().open("anchor"), KEY, "host")
    host = with_state(killed, {}, slot=1 - anchor.state.epoch % 2)
    with pytest.raises(AuthenticationError):
        open_host(host)


@pytest.mark.parametrize("version", [0, 3, 0xFFFFFFFF])
def test_an_unknown_version_is_refused_though_it_is_authentic(
    killed: SealedVolume, version: int
) -> None:
    host = with_state(killed, {}, version=version)
    with pytest.raises(FormatError):
        open_host(host)


class TestLowerLayers:
    def test_a_volume_over_another_lower_layer_is_refused(self, killed: SealedVolume) -> None:
        host = with_state(killed, {"lower": (b"m" * 32,)})
        with pytest.raises(MeasurementMismatch):
            open_host(host)


def with_commits(
    volume: SealedVolume, *commits: Commit, sequence: int = 0, chain: bytes | None = None
) -> MemoryDir:
    """Return the host with a log of these commits, sealed as they should be."""
    number, salt = 77, os.urandom(32)
    host = with_state(volume, {"log": number, "log_salt": salt})
    anchor, keys, _ = load_anchor(host.open("anchor"), KEY, "host")
    state = anchor.state
    file = host.dirs["log"].open(f"{number:08x}", create=True)
    writer = LogWriter(
        file,
        log_cipher(keys, number, salt),
        state.sequence + sequence,
        state.chain if chain is None else chain,
        4096,
    )
    for commit in commits:
        writer.append(commit)
    return host


COMMITS: dict[str, Commit] = {
    "short key": Commit([(b"k", b"v")], [], [], 1),
    "empty key": Commit([(b"", b"v")], [], [], 1),
    "extents of odd length": Commit([(ks.group_key(3, 0), b"odd")], [], [], 1),
    "extents of garbage": Commit([(ks.group_key(3, 0), b"\7" * 32)], [], [], 1),
    "extents key cut short": Commit([(ks.key(3, ks.T_EXTENTS), b"\7" * 32)], [], [], 1),
    "extents key too long": Commit([(ks.group_key(3, 0) + b"more", b"\7" * 32)], [], [], 1),
    "inode of garbage": Commit([(ks.key(3, ks.T_INODE), b"garbage")], [], [], 1),
    "no root": Commit([(ks.key(1, ks.T_INODE), None)], [], [], 1),
    "write to no inode": Commit([], [], [(99, 0, b"content")], 1),
    "write at a negative offset": Commit([], [], [(3, -1, b"content")], 1),
    "write far out": Commit([], [], [(3, 1 << 62, b"content")], 1),
    "write across chunks": Commit([], [], [(3, 4000, b"c" * 200)], 1),
    "write to a directory": Commit([], [], [(1, 0, b"content")], 1),
    "discard of everything": Commit([], [(3, 0, 1 << 62)], [], 1),
    "discard backwards": Commit([], [(3, 9, -9)], [], 1),
    "discard of a negative inode": Commit([], [(-3, 0, 9)], [], 1),
    "next inode at the end": Commit([], [], [], HUGE),
    "next inode negative": Commit([], [], [], -HUGE),
    "orphan of nothing": Commit([(ks.key(0, ks.T_ORPHAN) + bytes(8), b"")], [], [], 1),
    "orphan key cut short": Commit([(ks.key(0, ks.T_ORPHAN), b"")], [], [], 1),
    "orphan root": Commit([(ks.key(0, ks.T_ORPHAN) + bytes(7) + b"\1", b"")], [], [], 1),
}


@pytest.mark.parametrize("name", COMMITS)
def test_a_lying_commit(killed: SealedVolume, name: str) -> None:
    host = with_commits(killed, COMMITS[name])
    with bounded():
        try:
            fs = open_host(host, read_only=False)
        except (Error, FsError):
            return
        Exerciser(fs).run()


@pytest.mark.parametrize("said", [0, 1, 3, 5])
def test_a_commit_whose_references_do_not_fit_its_extents_is_refused(said: int) -> None:
    volume = SealedVolume(closed=True)
    upper = open_host(volume.copy())._upper
    assert isinstance(upper, Volume)
    slot = upper.slot(5, 0)
    segment, _, _, number, _ = POINTER.unpack(slot)
    more = [(ks.group_key(4, 2), slot), (ks.group_key(5, 2), slot)]
    shared = ks.shared_key(segment, number)
    host = with_commits(volume, Commit([(shared, ks.dump_shared(said)), *more], [], [], 1))
    if said == 3:
        assert not survey(host).refused
    else:
        assert survey(host).refused


def test_a_commit_of_another_sequence_or_chain_is_not_replayed(killed: SealedVolume) -> None:
    gone = Commit([(ks.dirent_key(1, b"link"), None)], [], [], 1)
    assert b"/link" not in survey(with_commits(killed, gone)).picture
    for host in (
        with_commits(killed, gone, sequence=5),
        with_commits(killed, gone, chain=b"another chain 16"),
    ):
        found = survey(host)
        assert found.refused or b"/link" in found.picture


def forged(change: Callable[[dict[bytes, bytes]], object]) -> MemoryDir:
    """Return a volume whose items were changed before they were sealed."""
    volume = SealedVolume(closed=True)
    host = volume.copy()
    union = open_host(host, read_only=False)
    upper = union._upper
    items = dict(upper.items_now(lambda tree: tree.scan(b"", b"\xff" * 32)))  # type: ignore[attr-defined]
    before = dict(items)
    change(items)
    for key, value in items.items():
        if before.get(key) != value:
            upper.restore_item(key, value, ks.V2)  # type: ignore[attr-defined]
    union.close()
    return host


ITEMS: dict[str, Callable[[dict[bytes, bytes]], object]] = {
    "name ..": lambda items: add_entry(items, b"..", 3),
    "name with a slash": lambda items: add_entry(items, b"a/b", 3),
    "entry of no inode": lambda items: add_entry(items, b"none", 99),
    "cycle to the root": lambda items: add_entry(items, b"up", 1, 4, parent=2),
    "nlink 0": lambda items: changed_inode(items, 3, nlink=0),
    "root nlink 0": lambda items: changed_inode(items, 1, nlink=0),
    "root is a file": lambda items: changed_inode(items, 1, mode=0o100644),
    "huge size": lambda items: changed_inode(items, 5, size=HUGE),
    "huge inline size": lambda items: changed_inode(items, 3, size=HUGE),
    "lower flag without a lower layer": lambda items: changed_inode(
        items, 5, flags=ks.F_LOWER, lower_limit=HUGE
    ),
    "pointer of garbage": lambda items: items.__setitem__(ks.group_key(5, 0), b"\7" * 32),
    "pointer of no length": lambda items: items.__setitem__(
        ks.group_key(5, 0), struct.pack("<IIII16s", 1, 4096, 0, 0, bytes(16))
    ),
    "pointer of 4 GiB": lambda items: items.__setitem__(
        ks.group_key(5, 0), struct.pack("<IIII16s", 1, 4096, 0xFFFFFFFF, 0, bytes(16))
    ),
    "owner of everything": lambda items: items.__setitem__(
        ks.records_key(1, 0), ks.OWNER.pack(HUGE, 0xFFFFFFFF, 4096, 5) * 9
    ),
    "owner of odd length": lambda items: items.__setitem__(ks.records_key(1, 0), b"odd"),
}


@pytest.mark.parametrize("name", ITEMS)
def test_a_lying_item_of_a_volume(name: str) -> None:
    with bounded():
        try:
            host = forged(ITEMS[name])
            fs = open_host(host, read_only=False)
        except (Error, FsError):
            return
        Exerciser(fs).run()


def test_the_key_of_an_image_is_no_key_of_a_volume(killed: SealedVolume) -> None:
    """One user key serves both; what is derived from it never meets."""
    from serdab.sefs.imagekeys import ImageKeys

    anchor, keys, _ = load_anchor(killed.copy().open("anchor"), KEY, "host")
    labels = (b"anchor", b"segment", b"log", b"image pack", b"image content", b"key check")
    volume = {keys.derive(label, b"context") for label in labels}
    image = {
        ImageKeys(Key(KEY.raw()), version).schedule.derive(label, b"context")
        for label in labels
        for version in (1, 2)
    }
    assert len(volume | image) == 3 * len(labels)
    assert anchor.uuid != bytes(16)
    assert isinstance(open_host(killed.copy()), Union)
