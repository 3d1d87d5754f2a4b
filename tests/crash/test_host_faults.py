# SPDX-License-Identifier: Apache-2.0
"""The host fails at the Nth call, for every N of a workload.

Programs then see an errno, never a defect of ours; what was acknowledged is there when the volume
is opened again, whatever became of pages that a failed flush had covered; and nothing else is.
"""

from __future__ import annotations

import copy
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serdab.errors import Error, FsError
from serdab.sefs.hostdir import HostDir
from serdab.structs import replace
from serdab.testing.faults import (
    ALWAYS,
    SPACE,
    Act,
    CrashStates,
    Fault,
    FaultyDir,
    Host,
    RecordingDir,
)
from serdab.vfs.api import ROOT_INO
from serdab.vfs.union import Union
from tests.crash.actor import CHUNK, Actor, Step
from tests.crash.storm import TINY, Ground, Picture, bare_ground, either_version
from tests.crash.workloads import SETUP, random_workload
from tests.harness.sampling import some_of
from tests.property.fsops import picture

REFUSALS = {errno.EIO, errno.ENOSPC, errno.EROFS}
WORKLOAD: list[Step] = [
    *SETUP[:-1],
    "fsync",
    ("write", (b"foo",), (), 3000, 13_000, 9, 0),
    ("write", (b"A", b"foo"), (), 50, 5000, 11, 0),
    "fsync",
    ("write", (b"foo",), (), 100, 10, 12, 0),
    "fsync",
    ("rename", (b"foo",), (b"A", b"new"), 0, 0, 0, 0),
    ("unlink", (b"A", b"foo"), (), 0, 0, 0, 0),
    "tick",
    ("create", (b"more",), (), 0, 0, 0, 0),
    ("write", (b"more",), (), 0, 30_000, 13, 0),
    "fsync",
    ("truncate", (b"more",), (), 100, 0, 0, 0),
    ("write", (b"A", b"new"), (), 0, 9000, 14, 0),
    "reopen",
    ("write", (b"more",), (), 0, 8192, 15, 0),
    "fsync",
    ("unlink", (b"A", b"new"), (), 0, 0, 0, 0),
    "fsync",
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    log = logging.getLogger("serdab.sefs")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


class Ordeal:
    """A workload on a host that fails, and what must be true of it afterwards."""

    def __init__(self, ground: Ground, fault: Fault | None) -> None:
        self.ground = ground
        self.host = Host(fault)
        self.recorded = RecordingDir.over(copy.deepcopy(ground.host))
        self.since_sync: list[Picture] = [picture(ground.model)]
        """The tree as last acknowledged, and after each operation since."""
        self.fs: Union | None = None

    def run(self, steps: list[Step]) -> None:
        """Run to the end; whatever the host does, only an errno or an error of ours comes out."""
        self._open()
        for step in steps:
            if self.fs is None:
                self._open()
            if self.fs is None:
                continue
            if isinstance(step, tuple):
                self._act(self.fs, step)
            else:
                self._call(self.fs, step)
        if self.fs is not None:
            self._call(self.fs, "reopen")

    def _open(self) -> None:
        try:
            self.fs = self.ground.open(FaultyDir(self.host, self.recorded))
            self.actor = Actor(self.fs)
        except Error:
            assert self.host.failed, "refused, but the host had not failed"
        except OSError as exc:
            self._expect(exc)
        else:
            self._note(self.fs)

    def _expect(self, exc: OSError) -> None:
        assert self.host.failed, "failed, but the host had not"
        assert exc.errno in {*REFUSALS, errno.EINTR}, exc

    def _see(self, fs: Union) -> Picture:
        """Look at the tree while the host behaves."""
        fault, self.host.fault = self.host.fault, None
        calls = self.host.calls
        try:
            return picture(fs)
        finally:
            self.host.fault, self.host.calls = fault, calls

    def _note(self, fs: Union) -> None:
        found = self._see(fs)
        if found != self.since_sync[-1]:
            self.since_sync.append(found)

    def _act(self, fs: Union, step: tuple[object, ...]) -> None:
        before = len(self.host.failed)
        try:
            result = self.actor.act(step)
        except FsError:
            raise AssertionError("an actor catches these") from None
        except Error:
            result = errno.EIO  # the session answers so
            assert len(self.host.failed) > before, "a verification failed and the host had not"
        if len(self.host.failed) > before and isinstance(result, int) and result in REFUSALS:
            # A write that failed may have written a part, as write(2) says; what the tree is now
            # counts from here on.
            pass
        self._note(fs)

    def _call(self, fs: Union, step: Step) -> None:
        before = len(self.host.failed)
        try:
            match step:
                case "fsync" | "syncfs":
                    fs.fsync(ROOT_INO, datasync=False)
                case "tick":
                    fs.tick()
                    return
                case "reopen":
                    self.fs = None
                    fs.close()
        except FsError as exc:
            self._expect(exc)
            return
        except Error:
            assert len(self.host.failed) > before
            return
        if step == "reopen" and self.host.failed:
            return  # a read-only volume closes without saving: nothing was acknowledged
        self.since_sync = self.since_sync[-1:]

    def verify(self) -> None:
        """Cut the power: each state that the host may hold opens as one since the last sync."""
        self.host.fault = None
        trace = self.recorded.trace
        trace.mark(0, 0)
        for state in CrashStates(trace, seed=1, per_point=24, first=len(trace.events)):
            fs = self.ground.open(state.host)
            found = picture(fs)
            assert found in self.since_sync, (
                f"{self.host.failed}, {state.kind}: not what was acknowledged, nor anything later"
            )
            fs.close()


def count_calls(ground: Ground, steps: list[Step], acts: frozenset[Act]) -> int:
    """Return how often the workload asks the host for one of these."""
    ordeal = Ordeal(ground, Fault(ALWAYS, errno.EIO, acts=acts))
    ordeal.run(steps)
    ordeal.verify()
    return ordeal.host.calls


def endure(ground: Ground, steps: list[Step], fault: Fault) -> Ordeal:
    ordeal = Ordeal(ground, fault)
    try:
        ordeal.run(steps)
        ordeal.verify()
    except BaseException as exc:
        exc.add_note(f"with {fault}; failed so far: {ordeal.host.failed}")
        raise
    return ordeal


def each_call(steps: list[Step], acts: frozenset[Act], stride: int) -> Iterator[int]:
    """Yield one in ``stride`` of the calls, all of them in ``make soak``."""
    yield from some_of(range(count_calls(bare_ground(), steps, acts)), stride)


ALL = frozenset(Act)
ERRORS = pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EINTR],
                                 ids=errno.errorcode.__getitem__)  # fmt: skip


@ERRORS
@pytest.mark.sampled
@pytest.mark.parametrize("half", [False, True], ids=["nothing written", "half written"])
def test_one_error_at_every_call(error: int, half: bool) -> None:
    acts = frozenset({Act.WRITE}) if half else ALL
    for first in each_call(WORKLOAD, acts, 3):
        endure(bare_ground(), WORKLOAD, Fault(first, error, half=half, acts=acts))


@ERRORS
@pytest.mark.sampled
def test_errors_for_ever_from_every_call_on(error: int) -> None:
    for first in each_call(WORKLOAD, ALL, 6):
        endure(bare_ground(), WORKLOAD, Fault(first, error, times=ALWAYS))


@pytest.mark.sampled
@pytest.mark.parametrize("times", [1, 2, ALWAYS], ids=["once", "twice", "for ever"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.__getitem__)
def test_flushes_that_fail(times: int, error: int) -> None:
    """After a failed flush the host may have dropped the pages: a later one that succeeds proves
    nothing about them."""
    acts = frozenset({Act.SYNC})
    for first in each_call(WORKLOAD, acts, 3):
        endure(bare_ground(), WORKLOAD, Fault(first, error, times=times, acts=acts))


@pytest.mark.sampled
@pytest.mark.parametrize("times", [1, 3, 10, ALWAYS])
def test_a_full_host_from_every_call_on(times: int) -> None:
    for first in each_call(WORKLOAD, SPACE, 3):
        endure(bare_ground(), WORKLOAD, Fault(first, errno.ENOSPC, times=times, acts=SPACE))


def test_a_short_read_at_every_call() -> None:
    """A host that says a file ends early is found out, or what was asked for was not cut."""
    ground = bare_ground(WORKLOAD)
    expected = picture(ground.model)
    host = Host(Fault(ALWAYS, 0, acts=frozenset({Act.READ})))
    picture(ground.open(FaultyDir(host, copy.deepcopy(ground.host))))
    for first in range(host.calls):
        host = Host()
        fs = ground.open(FaultyDir(host, copy.deepcopy(ground.host)))
        host.fault, host.calls = Fault(first, 0, acts=frozenset({Act.READ})), 0
        try:
            found = picture(fs)
        except Error:
            found = expected
        assert found == expected


def test_a_failed_write_over_a_whole_chunk_keeps_what_was_there() -> None:
    ground = bare_ground(SETUP, replace(TINY, buffer_bytes=1))
    host = Host()
    fs = ground.open(FaultyDir(host, copy.deepcopy(ground.host)))
    actor = Actor(fs)
    actor.act(("write", (b"foo",), (), 0, 50, 7, 0))  # not synced, and not lost either
    before = picture(fs)[b"/foo"][4]
    host.fault = Fault(0, errno.EIO, times=ALWAYS, acts=frozenset({Act.WRITE, Act.CREATE}))
    assert actor.act(("write", (b"foo",), (), 0, CHUNK, 9, 0)) == errno.EIO
    host.fault = None
    assert picture(fs)[b"/foo"][4] == before


@pytest.mark.parametrize("seed", range(6))
def test_random_workloads_on_a_host_that_fills_up_now_and_then(seed: int) -> None:
    steps = random_workload(seed, 50)
    version = either_version(seed)
    calls = count_calls(bare_ground(version=version), steps, SPACE)
    for first in range(seed, calls, 9):
        ground = bare_ground(version=version)
        endure(ground, steps, Fault(first, errno.ENOSPC, times=2, acts=SPACE))


def test_a_full_host_loses_nothing_and_works_again_once_there_is_room() -> None:
    ground = bare_ground(SETUP)
    host = Host()
    recorded = RecordingDir.over(copy.deepcopy(ground.host))
    fs = ground.open(FaultyDir(host, recorded))
    actor = Actor(fs)
    assert actor.act(("write", (b"foo",), (), 0, 50, 1, 0)) == 50
    host.fault = Fault(0, errno.ENOSPC, times=ALWAYS, acts=SPACE)
    results = {
        actor.act(("write", (b"foo",), (), 5000 * number, 5000, 1, 0)) for number in range(40)
    }
    assert errno.ENOSPC in results
    assert results <= {5000, errno.ENOSPC}
    assert actor.act(("unlink", (b"A", b"foo"), (), 0, 0, 0, 0)) == 0
    with pytest.raises(FsError) as caught:
        fs.syncfs()
    assert caught.value.errno == errno.ENOSPC
    host.fault = None
    assert actor.act(("create", (b"new",), (), 0, 0, 0, 0)) == 0
    assert actor.act(("write", (b"new",), (), 0, 9000, 1, 0)) == 9000
    fs.syncfs()
    expected = picture(fs)
    trace = recorded.trace
    for state in CrashStates(trace, per_point=8, first=len(trace.events)):
        assert picture(ground.open(state.host)) == expected


def test_what_was_accepted_and_lost_is_told_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who never asked for a sync hears of the loss from nobody but whoever closes the volume."""
    ground = bare_ground()
    fs = ground.open(HostDir.at(tmp_path))
    fs.mknod(ROOT_INO, b"first", 0o100644, 0, 0, 0)
    fs.syncfs()
    with monkeypatch.context() as patch:

        def fail(_fd: int) -> None:
            raise OSError(errno.EIO, "the host failed")

        patch.setattr(os, "fsync", fail)
        patch.setattr(os, "fdatasync", fail)
        fs.mknod(ROOT_INO, b"second", 0o100644, 0, 0, 0)
        with pytest.raises(FsError):
            fs.syncfs()
    with pytest.raises(FsError):
        fs.close()
    ground.open(HostDir.at(tmp_path)).close()


class TestShortCounts:
    """pread(2) and pwrite(2) may move fewer bytes than asked; the host file goes on by itself."""

    def test_short_reads_and_writes_change_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real_read, real_write = os.preadv, os.pwrite

        def short_read(fd: int, buffers: list[memoryview], offset: int) -> int:
            (buf,) = buffers
            return real_read(fd, [buf[: max(1, len(buf) // 3)]], offset)

        def short_write(fd: int, raw: bytes | bytearray | memoryview, offset: int) -> int:
            return real_write(fd, memoryview(raw)[: max(1, len(raw) // 3)], offset)

        monkeypatch.setattr(os, "preadv", short_read)
        monkeypatch.setattr(os, "pwrite", short_write)
        ground = bare_ground()
        model = copy.deepcopy(ground.model)
        fs = ground.open(HostDir.at(tmp_path))
        actor, model_actor = Actor(fs), Actor(model)
        for step in WORKLOAD:
            if isinstance(step, tuple):
                assert actor.act(step) == model_actor.act(step)
            elif step == "fsync":
                fs.syncfs()
        fs.close()
        fs = ground.open(HostDir.at(tmp_path))
        assert picture(fs) == picture(model)
        fs.close()


_CROWD: list[Step] = [
    *SETUP[:-1],
    *[("create", (b"A", b"n%d" % number), (), 0, 0, 0, 0) for number in range(120)],
    ("mkdir", (b"D",), (), 0, 0, 0, 0),
    ("mkdir", (b"D", b"E"), (), 0, 0, 0, 0),
    "syncfs",
]
"""Enough names for a tree of several pages: an operation reads the host more than once."""


@pytest.mark.parametrize(
    "operation",
    [
        ("create", (b"A", b"new"), (), 0, 0, 0, 0),
        ("mkdir", (b"D", b"new"), (), 0, 0, 0, 0),
        ("symlink", (b"D", b"new"), (b"foo",), 0, 0, 0, 0),
        ("link", (b"foo",), (b"A", b"new"), 0, 0, 0, 0),
        ("unlink", (b"A", b"n9"), (), 0, 0, 0, 0),
        ("rmdir", (b"D", b"E"), (), 0, 0, 0, 0),
        ("rename", (b"D", b"E"), (b"A", b"new"), 0, 0, 0, 0),
        ("rename", (b"foo",), (b"A", b"n7"), 0, 0, 0, 0),
        ("exchange", (b"D", b"E"), (b"foo",), 0, 0, 0, 0),
        ("chmod", (b"A", b"n3"), (), 0, 0, 0, 0o640),
        ("setxattr", (b"A", b"foo"), (), 0, 50, 1, 0),
        ("truncate", (b"foo",), (), 100, 0, 0, 0),
    ],
    ids=lambda operation: operation[0],
)
def test_an_operation_on_names_happens_or_not_when_a_read_fails(
    operation: tuple[object, ...],
) -> None:
    """No half of a rename, wherever the host stops reading."""
    ground = bare_ground(_CROWD)
    model = copy.deepcopy(ground.model)
    before = picture(model)
    Actor(model).act(operation)
    outcomes = (before, picture(model))
    reads = frozenset({Act.READ})
    count = 1
    first = 0
    while first < count:
        host = Host()
        fs = ground.open(FaultyDir(host, copy.deepcopy(ground.host)))
        host.fault, host.calls = Fault(first, errno.EIO, acts=reads), 0
        result = Actor(fs).act(operation)
        if host.failed:
            assert result == errno.EIO
            count = first + 2
        host.fault = None
        assert picture(fs) in outcomes, f"read {first} of {operation}"
        fs.close()
        first += 1
    assert count > 1, "nothing was read"
