# SPDX-License-Identifier: Apache-2.0
"""The power fails while ACLs are set, handed down, and follow a mode: ACL and mode never part."""

from __future__ import annotations

import copy
import stat
from collections.abc import Callable
from typing import Any

from serdab.sefs.memorydir import MemoryDir
from serdab.testing.crashes import CrashStates
from serdab.testing.recording import RecordingDir
from serdab.vfs.acl import (
    ACCESS,
    DEFAULT,
    GROUP_OBJ,
    MASK,
    OTHER,
    USER,
    USER_OBJ,
    AclEntry,
    dump_acl,
)
from serdab.vfs.api import ROOT_INO, SetAttr
from serdab.vfs.layer import Layer
from serdab.vfs.memfs import MemFs
from serdab.vfs.union import Union
from tests.crash.storm import Ground, bare_ground, expect_clean
from tests.property.fsops import picture

_ACL = dump_acl(
    [AclEntry(USER_OBJ, 7), AclEntry(USER, 6, 9), AclEntry(GROUP_OBJ, 4), AclEntry(MASK, 6),
     AclEntry(OTHER, 0)]
)  # fmt: skip


def _begin(fs: Union) -> None:
    """Make what the lower layer has."""
    ino = fs.mknod(ROOT_INO, b"low", stat.S_IFREG | 0o600, 0, 0, 0).ino
    fs.set_acl(ino, ACCESS, _ACL, kill_sgid=False)


def _ground() -> Ground:
    below = bare_ground()
    fs = below.open(below.host)
    _begin(fs)
    fs.close()

    def lower() -> Layer | None:
        upper: Layer = below.open(copy.deepcopy(below.host))._upper
        return upper

    return Ground(MemoryDir("host"), lower, MemFs())


def _changes(fs: Union) -> list[Callable[[], Any]]:
    low = fs.lookup(ROOT_INO, b"low").ino
    made: dict[str, int] = {}

    def make(name: str, mode: int) -> None:
        parent = made.get("dir", ROOT_INO)
        if stat.S_ISDIR(mode):
            made[name] = fs.mkdir(parent, name.encode(), mode & 0o7777, 0, 0).ino
        else:
            made[name] = fs.mknod(parent, name.encode(), mode, 0, 0, 0).ino

    return [
        lambda: fs.setattr(low, SetAttr(mode=0o750)),
        lambda: make("dir", stat.S_IFDIR | 0o755),
        lambda: fs.set_acl(made["dir"], DEFAULT, _ACL, kill_sgid=False),
        lambda: make("file", stat.S_IFREG | 0o640),
        lambda: make("below", stat.S_IFDIR | 0o700),
        lambda: fs.setattr(made["file"], SetAttr(mode=0o666)),
        lambda: fs.removexattr(low, ACCESS),
        lambda: fs.set_acl(made["file"], ACCESS, _ACL, kill_sgid=True),
        lambda: fs.removexattr(made["dir"], DEFAULT),
    ]


def test_each_state_is_one_that_was() -> None:
    ground = _ground()
    host = RecordingDir.over(copy.deepcopy(ground.host))
    fs = ground.open(host)
    were = [picture(fs)]
    for number, change in enumerate(_changes(fs)):
        change()
        were.append(picture(fs))
        if number % 2:
            fs.syncfs()
        if number % 3 == 2:
            fs.tick()
    fs.syncfs()
    assert len({repr(each) for each in were}) == len(were)
    found = set()
    for number, state in enumerate(CrashStates(host.trace, seed=1, per_point=1)):
        again = ground.open(state.host)
        found.add(were.index(picture(again)))
        if number % 7 == 0:
            expect_clean(again, state)
        again.close()
        again = ground.open(state.host)
        assert picture(again) in were
        again.close()
    assert {0, len(were) - 1} <= found
    assert len(found) > 4
