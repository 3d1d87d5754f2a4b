# SPDX-License-Identifier: Apache-2.0
"""What is written can be rewritten when nothing more can be added, and is never lost to a sync.

A database that has filled its log with zeros counts on that: at a full disk it goes on in there.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable

from serdab.errors import FsError
from serdab.keys import Key
from serdab.sefs.boundeddir import limits_for
from serdab.sefs.hostdir import Dir
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.volume import open_volume_in
from serdab.testing.smallhost import SmallDir, SmallHost
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union

KEY = Key(b"written&rewritte")
KIB, MIB = 1 << 10, 1 << 20
LOG_BYTES = MIB
PIECE = 8 * KIB


def made(fs: Union, name: bytes) -> int:
    return fs.mknod(ROOT_INO, name, stat.S_IFREG | 0o600, 0, 0, 0).ino


def is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except FsError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        return True
    return False


class Place:
    """A volume with a log of zeros, filled with something else to the last page."""

    def __init__(self, host: Dir, limits: VolumeLimits) -> None:
        self.fs = fs = Union(open_volume_in(host, key=KEY, create=True, limits=limits), None)
        self.log = made(fs, b"log")
        fs.write(self.log, 0, memoryview(bytes(LOG_BYTES)), kill_suidgid=False)
        self.content = bytearray(LOG_BYTES)
        fs.syncfs()
        self.other = made(fs, b"other")
        self.filled = 0
        block = os.urandom(MIB)
        size = MIB
        while size >= 4096:
            if self.fill(block[:size]):
                size //= 2
        fs.syncfs()

    def fill(self, raw: bytes) -> bool:
        """Append; return whether that was refused."""
        refused = is_refused(
            lambda: self.fs.write(self.other, self.filled, memoryview(raw), kill_suidgid=False)
        )
        self.filled += 0 if refused else len(raw)
        return refused

    def rewrite(self, offset: int, raw: bytes) -> None:
        count = self.fs.write(self.log, offset, memoryview(raw), kill_suidgid=False)
        assert count == len(raw)
        self.content[offset : offset + count] = raw
        self.fs.fsync(self.log, datasync=True)

    def check(self) -> None:
        buf = bytearray(LOG_BYTES)
        assert self.fs.read_into(self.log, 0, memoryview(buf)) == LOG_BYTES
        assert buf == self.content


def test_at_the_limit_of_its_size_a_volume_takes_what_makes_it_no_larger() -> None:
    host = MemoryDir("host")
    place = Place(host, limits_for(16 * MIB))
    # The whole of it, not what happens to be left over: four times the log.
    for number, at in zip(range(4 * LOG_BYTES // PIECE), itertools.count(0, PIECE), strict=False):
        place.rewrite(at % LOG_BYTES, b"%08d" % number * (PIECE // 8))
    place.check()
    assert place.fill(bytes(MIB))
    # A part of this is new.
    assert is_refused(
        lambda: place.fs.write(
            place.log, LOG_BYTES - PIECE, memoryview(bytes(MIB)), kill_suidgid=False
        )
    )
    place.check()
    place.fs.close()
    place.fs = Union(open_volume_in(host, key=KEY), None)
    place.check()
    place.fs.close()


def test_holes_and_what_is_shared_are_new() -> None:
    host = MemoryDir("host")
    place = Place(host, limits_for(16 * MIB))
    fs = place.fs
    fs.fallocate(place.log, 3, 0, LOG_BYTES // 2)
    fs.syncfs()
    while not place.fill(bytes(range(256)) * 16):
        pass  # what the hole gave back
    held = fs._upper.held_bytes
    inode = fs.getattr(place.log)
    assert held(inode, 0, LOG_BYTES) == LOG_BYTES // 2
    assert held(inode, LOG_BYTES // 2 - 5, LOG_BYTES // 2 + 7) == 7
    assert is_refused(
        lambda: fs.write(place.log, 0, memoryview(bytes(MIB // 2)), kill_suidgid=False)
    )
    fs.close()


LIMITS = VolumeLimits(
    segment_bytes=4 * MIB,
    buffer_bytes=64 * KIB,
    dirty_bytes=2 * MIB,
    commit_bytes=512 * KIB,
    log_bytes=2 * MIB,
    log_growth_bytes=64 * KIB,
    scattered_bytes=MIB,
    tight_bytes=16 * MIB,
)


def test_on_a_full_host_too() -> None:
    place = Place(SmallDir(SmallHost(40 * MIB), MemoryDir("host")), LIMITS)
    for number, at in zip(range(4 * LOG_BYTES // PIECE), itertools.count(0, PIECE), strict=False):
        place.rewrite(at % LOG_BYTES, b"%08d" % number * (PIECE // 8))
    place.check()
    place.fs.close()
