# SPDX-License-Identifier: Apache-2.0
"""A large file goes in pieces: little is in memory at once, and a crash leaves no part of it."""

from __future__ import annotations

import copy

import pytest

from serdab.errors import AuthenticationError
from serdab.sefs import extents, removals
from serdab.sefs.content import Content
from serdab.sefs.fsck import check
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.volume import Volume, open_volume_in
from serdab.vfs.api import ROOT_INO
from serdab.vfs.steps import Unfinished
from serdab.vfs.union import Union
from tests.attack.sealedvolume import KEY

CHUNK = 512
GROUPS = 400


def limited(max_bytes: int = 0) -> VolumeLimits:
    return VolumeLimits(items=60, log_growth_bytes=4096, segment_bytes=1 << 20, max_bytes=max_bytes)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents, "STEP_GROUPS", 16)
    monkeypatch.setattr(removals, "_AT_THE_END", 2)


def opened(host: MemoryDir, max_bytes: int = 0) -> tuple[Volume, Union]:
    volume = open_volume_in(
        host,
        key=KEY,
        create=not host.files,
        chunk_size=CHUNK,
        page_size=1024,
        limits=limited(max_bytes),
    )
    return volume, Union(volume, None)


def live(volume: Volume) -> int:
    return sum(usage.live for usage in volume.usage_by_segment().values())


def is_pending(volume: Volume) -> bool:
    return volume._removals.is_pending


def step(volume: Volume) -> None:
    """Do a piece of work that nobody waits for, as a session does between two requests."""
    if volume.chores:
        chore = volume.chores.popleft()
        if next(chore, "done") is None:
            volume.chores.append(chore)


def filled(fs: Union, size: int = CHUNK) -> int:
    """Make a file with a record in each of many groups."""
    ino = fs.mknod(ROOT_INO, b"large", 0o100600, 0, 0, 0).ino
    fs.setxattr(ino, b"user.note", b"value", 0)
    for group in range(GROUPS):
        fs.write(ino, group * 64 * CHUNK, memoryview(bytes(size)), kill_suidgid=False)
    fs.write(ino, 9, memoryview(b"in memory"), kill_suidgid=False)
    return ino


def expect_nothing_of(ino: int, volume: Volume, fs: Union) -> None:
    of_it = ino.to_bytes(8, "big")
    items = volume.items_now(lambda tree: tree.scan(b"", b"\xff" * 9))
    assert not [key for key, _ in items if key[:8] == of_it or of_it in key[9:]]
    report = check(lambda: fs, [volume.tree], upper=volume)
    assert not report.damaged


def test_it_is_freed_between_requests_and_little_of_it_is_in_memory() -> None:
    host = MemoryDir("host")
    volume, fs = opened(host)
    ino = filled(fs)
    fs.syncfs()
    volume.checkpoint()
    before = live(volume)
    fs.unlink(ROOT_INO, b"large")
    fs.forget(ino, 1)
    turns, most = 1, 0  # the first piece goes with the last use
    assert is_pending(volume)
    while is_pending(volume):
        turns += 1
        step(volume)
        most = max(most, len(volume.current_items.mem))
    assert turns > GROUPS // 16
    assert most < 60 + 2 * 16 + 20
    for _ in range(3):
        volume.checkpoint()
    assert live(volume) < before // 4
    expect_nothing_of(ino, volume, fs)
    fs.close()


def test_other_requests_go_on_with_it() -> None:
    volume, fs = opened(MemoryDir("host"))
    ino = filled(fs)
    fs.unlink(ROOT_INO, b"large")
    fs.forget(ino, 1)
    for number in range(GROUPS // 16 + 3):
        fs.mknod(ROOT_INO, b"%d" % number, 0o100600, 0, 0, 0)
        step(volume)
    assert not is_pending(volume)
    expect_nothing_of(ino, volume, fs)
    fs.close()


@pytest.mark.parametrize("ends", ["killed", "closed"])
def test_a_session_that_ends_in_between_leaves_the_rest_to_the_next(ends: str) -> None:
    for turns in (0, 1, 5, 12):
        host = MemoryDir("host")
        volume, fs = opened(host)
        ino = filled(fs)
        fs.syncfs()
        fs.unlink(ROOT_INO, b"large")
        fs.forget(ino, 1)
        for _ in range(turns):
            step(volume)
        fs.syncfs()
        if ends == "closed":
            fs.close()
        host = copy.deepcopy(host)
        host.close()
        finish(host, ino)


def finish(host: MemoryDir, ino: int) -> None:
    """Have the next session free the rest."""
    volume, fs = opened(host)
    assert check(lambda: fs, [volume.tree], upper=volume).is_clean()
    assert is_pending(volume)
    while is_pending(volume):
        step(volume)
    expect_nothing_of(ino, volume, fs)
    fs.close()


def nearly_full() -> tuple[Volume, Union, int]:
    """Return a volume whose room is being freed, and an empty file."""
    host = MemoryDir("host")
    volume, fs = opened(host)
    ino = filled(fs, 4 * CHUNK)
    fs.close()
    size = live(volume) + (300 << 10)
    volume, fs = opened(host, size)
    fs.lookup(ROOT_INO, b"large")
    fs.unlink(ROOT_INO, b"large")
    fs.forget(ino, 1)
    other = fs.mknod(ROOT_INO, b"other", 0o100600, 0, 0, 0).ino
    assert is_pending(volume)
    return volume, fs, other


def test_what_is_written_meets_no_full_volume_while_something_is_being_freed() -> None:
    volume, fs, other = nearly_full()
    fs.write(other, 0, memoryview(bytes(600 << 10)), kill_suidgid=False)
    assert not is_pending(volume)
    fs.close()


def test_whoever_writes_waits_in_steps_until_it_is_freed() -> None:
    volume, fs, other = nearly_full()
    volume.let_be_served()
    turns = 0
    while turns < GROUPS:
        try:
            fs.write(other, 0, memoryview(bytes(600 << 10)), kill_suidgid=False)
        except Unfinished as exc:
            turns += 1
            next(exc.steps)
        else:
            break
    assert GROUPS > turns > 3
    assert fs.getattr(other).size == 600 << 10
    fs.close()


def test_what_cannot_be_read_stays_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    volume, fs = opened(MemoryDir("host"))
    ino = filled(fs)
    fs.unlink(ROOT_INO, b"large")

    def damaged(*_: object) -> int:
        raise AuthenticationError("the record is not the one its parent names")

    with monkeypatch.context() as patch:
        patch.setattr(Content, "drop_on", damaged)
        fs.forget(ino, 1)
        step(volume)
    assert not is_pending(volume)
    assert f"inode {ino}: its content is not freed" in caplog.text
    fs.close()
