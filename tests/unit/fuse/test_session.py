# SPDX-License-Identifier: Apache-2.0
"""The session, with a socket in the place of /dev/fuse."""

from __future__ import annotations

import errno
import os
import random
import struct
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from serdab.errors import AuthenticationError, FsError
from serdab.fuse.abi import MINOR, ROOT_ALIAS, ROOT_ALIAS_NODEID, InitFlag, Opcode
from serdab.fuse.operations import ServeOptions
from serdab.fuse.session import Session, SessionOptions
from serdab.vfs.api import DirEntry, Inode
from serdab.vfs.memfs import MemFs
from tests.unit.fuse.peer import Peer

KERNEL_FLAGS = 0x73FFFFFB
_UNANSWERED = (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.NOTIFY_REPLY, Opcode.INTERRUPT)


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as made:
        yield made


def init_body(major: int = 7, minor: int = MINOR) -> bytes:
    return struct.pack("=IIIII44x", major, minor, 131072, KERNEL_FLAGS, 0)


class TestInit:
    def test_it_asks_for_large_requests_and_no_writeback_cache(self, peer: Peer) -> None:
        error, body = peer.call(Opcode.INIT, 0, init_body())
        assert error == 0
        fields = struct.unpack("=IIIIHHIIHHI28x", body)
        major, minor, readahead, flags, _, _, max_write, time_gran, max_pages, _, _ = fields
        assert (major, minor) == (7, MINOR)
        assert readahead == max_write == 1 << 20
        assert (time_gran, max_pages) == (1, 256)
        assert flags & InitFlag.DO_READDIRPLUS
        assert flags & InitFlag.HANDLE_KILLPRIV_V2
        assert not flags & InitFlag.WRITEBACK_CACHE
        assert not flags & (1 << 3), "O_TRUNC would be lost with OPEN"

    def test_it_asks_for_nothing_the_kernel_did_not_offer(self, peer: Peer) -> None:
        body = struct.pack("=IIII", 7, 31, 131072, int(InitFlag.MAX_PAGES))
        _, reply = peer.call(Opcode.INIT, 0, body)
        assert struct.unpack_from("=I", reply, 12)[0] == InitFlag.MAX_PAGES

    def test_a_newer_major_version_is_asked_to_come_down(self, peer: Peer) -> None:
        error, body = peer.call(Opcode.INIT, 0, init_body(major=8, minor=0))
        assert error == 0
        assert struct.unpack_from("=II", body) == (7, MINOR)

    def test_a_kernel_that_is_too_old_is_refused_with_a_hint(self, peer: Peer) -> None:
        error, _ = peer.call(Opcode.INIT, 0, init_body(minor=26))
        assert error == errno.EPROTO
        assert any("too old" in line for line in peer.log)

    def test_a_changing_file_system_is_not_cached(self) -> None:
        class Changing(MemFs):
            cache_timeout_s = 0.0

        with Peer(Changing()) as peer:
            _, body = peer.call(Opcode.INIT, 0, init_body())
            flags = struct.unpack_from("=I", body, 12)[0]
            assert flags & InitFlag.AUTO_INVAL_DATA
            assert not flags & InitFlag.CACHE_SYMLINKS
            assert peer.call(Opcode.LOOKUP, 1, b"none\0")[0] == errno.ENOENT
            assert peer.call(Opcode.OPEN, 1, bytes(8)) == (0, bytes(16))


class _Full(MemFs):
    """Has no room before something was forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.tries = 0
        self.is_full = True

    def readlink(self, ino: int) -> bytes:
        self.tries += 1
        if self.is_full:
            raise FsError(errno.ENOSPC)
        return b"target"

    def forget(self, ino: int, nlookup: int) -> bool:
        self.is_full = False
        return True


class TestNoRoom:
    def test_what_was_forgotten_makes_room_for_a_request_that_was_handed_out_before_it(
        self,
    ) -> None:
        fs = _Full()
        peer = Peer(fs)
        peer.send_raw(peer.pack(Opcode.READLINK, 1, unique=77))
        peer.send_raw(peer.pack(Opcode.FORGET, 2, bytes(8), unique=79))
        with peer:
            assert peer.receive(77) == (0, b"target")
        assert fs.tries == 2

    def test_where_nothing_was_forgotten_it_is_refused_after_a_second_try(self) -> None:
        fs = _Full()
        with Peer(fs) as peer:
            assert peer.call(Opcode.READLINK, 1) == (errno.ENOSPC, b"")
            assert peer.call(Opcode.READLINK, 1) == (errno.ENOSPC, b"")
        assert fs.tries == 4

    def test_while_others_go_on_asking_it_is_refused_in_the_end(self) -> None:
        peer = Peer(_Full())
        peer.send_raw(peer.pack(Opcode.READLINK, 1, unique=77))
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                peer.send_raw(peer.pack(Opcode.GETATTR, 1, bytes(16), unique=79))

        asking = threading.Thread(target=ask)
        with peer:
            asking.start()
            assert peer.receive(77) == (errno.ENOSPC, b"")
            done.set()
            asking.join()

    def test_of_many_that_find_no_room_each_is_answered(self) -> None:
        peer = Peer(_Full())
        for unique in range(3, 103):
            peer.send_raw(peer.pack(Opcode.READLINK, 1, unique=unique))
        with peer:
            answers = [peer.socket.recv(100) for _ in range(100)]
        answered = sorted(struct.unpack_from("=IiQ", answer)[2] for answer in answers)
        assert answered == list(range(3, 103))


class TestFewerRequests:
    @pytest.mark.parametrize(
        "opcode",
        [
            Opcode.OPEN,
            Opcode.OPENDIR,
            Opcode.FLUSH,
            Opcode.ACCESS,
            Opcode.CREATE,
            Opcode.POLL,
            Opcode.BMAP,
            Opcode.GETLK,
            Opcode.SETLK,
            Opcode.SETLKW,
        ],
    )
    def test_what_the_kernel_does_better_itself_is_not_supported(
        self, peer: Peer, opcode: Opcode
    ) -> None:
        assert peer.call(opcode, 1, bytes(48))[0] == errno.ENOSYS

    def test_an_absent_name_is_an_entry_that_may_be_remembered(self, peer: Peer) -> None:
        error, body = peer.call(Opcode.LOOKUP, 1, b"none\0")
        assert error == 0
        node, _, valid_s = struct.unpack_from("=QQQ", body)
        assert node == 0
        assert valid_s > 10**8

    def test_ioctl_is_no_tty(self, peer: Peer) -> None:
        assert peer.call(Opcode.IOCTL, 1, bytes(32))[0] == errno.ENOTTY


class _Broken(MemFs):
    def __init__(self, failure: BaseException) -> None:
        super().__init__()
        self.failure = failure

    def readlink(self, ino: int) -> bytes:
        raise self.failure


class TestErrors:
    @pytest.mark.parametrize(
        ("failure", "expected", "is_logged"),
        [
            (FsError(errno.EDQUOT), errno.EDQUOT, False),
            (FileNotFoundError(errno.ENOENT, "x"), errno.ENOENT, False),
            (OSError("no number"), errno.EIO, True),
            (OSError(5000, "not a number of Linux"), errno.EIO, True),
            (AuthenticationError("chunk 3 does not verify"), errno.EIO, True),
            (MemoryError(), errno.ENOMEM, False),
            (ZeroDivisionError("a defect"), errno.EIO, True),
            (RecursionError(), errno.EIO, True),
        ],
        ids=repr,
    )
    def test_what_a_file_system_raises_becomes_an_errno_and_the_server_lives(
        self, failure: Exception, expected: int, is_logged: bool
    ) -> None:
        with Peer(_Broken(failure)) as peer:
            assert peer.call(Opcode.READLINK, 1)[0] == expected
            peer.assert_alive()
            assert len(peer.log) == is_logged

    def test_a_defect_is_logged_in_one_line_with_its_traceback(self) -> None:
        with Peer(_Broken(ZeroDivisionError("a defect"))) as peer:
            peer.call(Opcode.READLINK, 1)
        (line,) = peer.log
        assert "ZeroDivisionError: a defect" in line
        assert "readlink" in line
        assert "\n" not in line

    def test_an_attribute_out_of_range_is_an_error_and_no_crash(self) -> None:
        class Odd(MemFs):
            def getattr(self, ino: int) -> Inode:
                return Inode(1, 0o40755, uid=-1)

        with Peer(Odd()) as peer:
            assert peer.call(Opcode.GETATTR, 1, bytes(16))[0] == errno.EIO

    def test_nothing_of_a_failed_read_leaves_the_server(self) -> None:
        class Tampered(MemFs):
            def read_into(self, ino: int, offset: int, buf: memoryview) -> int:
                buf[:6] = b"secret"
                raise AuthenticationError("chunk 0 does not verify")

        with Peer(Tampered()) as peer:
            body = struct.pack("=QQIIQII", 0, 0, 4096, 0, 0, 0, 0)
            assert peer.call(Opcode.READ, 2, body) == (errno.EIO, b"")


class TestHostileRequests:
    def test_an_unknown_opcode_is_not_supported(self, peer: Peer) -> None:
        for opcode in (0, 7, 19, 48, 49, 54, 63, 4096, 0xFFFFFFFF):
            assert peer.call(opcode, 1, b"x" * 32)[0] == errno.ENOSYS

    def test_a_truncated_header_gets_no_answer_and_does_no_harm(self, peer: Peer) -> None:
        whole = peer.pack(Opcode.GETATTR, 1, bytes(16))
        for size in range(1, 40):
            peer.send_raw(whole[:size])
        peer.assert_alive()
        assert len(peer.log) == 39

    def test_every_opcode_truncated_at_every_byte(self, peer: Peer) -> None:
        peer.socket.settimeout(20)
        for opcode in Opcode:
            if opcode in _UNANSWERED:
                continue
            for size in (0, 1, 7, 8, 9, 15, 16, 17, 23, 24, 31, 32, 39, 40, 41, 55, 56, 87, 88):
                peer.call(opcode, 1, b"\xff" * size)
        peer.assert_alive()

    def test_random_requests_never_kill_the_server(self, peer: Peer) -> None:
        chance = random.Random(20)
        peer.call(Opcode.INIT, 0, init_body())
        numbers = [int(opcode) for opcode in Opcode] + [0, 7, 100, 1 << 31]
        for round_ in range(6000):
            body = bytearray(chance.randbytes(chance.choice((0, 8, 16, 24, 40, 56, 88, 120))))
            if chance.random() < 0.6:
                body += chance.choice((b"a\0", b"b\0c\0", b"..\0", b".\0", b"a/b\0", b"\0", b"d"))
            if chance.random() < 0.7:
                for at in range(0, len(body) - 8, 8):
                    if chance.random() < 0.8:
                        # Small numbers get past the first checks.
                        body[at : at + 8] = struct.pack("=Q", chance.choice((0, 1, 2, 3, 64)))
            opcode = chance.choice(numbers)
            message = bytearray(peer.pack(opcode, chance.randrange(6), bytes(body), unique=4))
            if chance.random() < 0.1:
                message[chance.randrange(len(message))] ^= 1 << chance.randrange(8)
            if chance.random() < 0.1:
                message = message[: chance.randrange(1, len(message) + 1)]
            peer.send_raw(bytes(message))
            if round_ % 20 == 0:
                peer.assert_alive()
        peer.assert_alive()
        assert not [line for line in peer.log if "defect" in line]


class _Collisions(MemFs):
    """Entries whose positions collide in runs."""

    def __init__(self, runs: list[tuple[int, list[bytes]]]) -> None:
        super().__init__()
        self.runs = runs

    def readdir(self, ino: int, cookie: int) -> Iterator[DirEntry]:
        for at, names in self.runs:
            if at > cookie:
                for name in names:
                    yield DirEntry(at, name, 1, 4)

    def lookup_ino(self, ino: int, parent: int) -> Inode:
        self.looked_up = getattr(self, "looked_up", 0) + 1
        return super().lookup_ino(ino, parent)


def read_directory(peer: Peer, opcode: int, room: int) -> list[list[bytes]]:
    """Return the names in each batch, read as the kernel reads them: on from the last cookie."""
    batches: list[list[bytes]] = []
    cookie = 0
    while True:
        body = struct.pack("=QQIIQII", 0, cookie, room, 0, 0, 0, 0)
        error, listing = peer.call(opcode, 1, body)
        if error:
            raise OSError(error, os.strerror(error))
        if not listing:
            return batches
        fixed = 24 if opcode == Opcode.READDIR else 152
        names, at = [], 0
        while at < len(listing):
            _, cookie, count, _ = struct.unpack_from("=QQII", listing, at + fixed - 24)
            names.append(listing[at + fixed : at + fixed + count])
            at += (fixed + count + 7) & ~7
        batches.append(names)


class TestReaddir:
    @pytest.mark.parametrize("opcode", [Opcode.READDIR, Opcode.READDIRPLUS])
    def test_a_batch_never_splits_a_run_of_one_cookie(self, opcode: Opcode) -> None:
        runs = [
            (at, [b"%03d-%d" % (at, n) for n in range(1 + (at * 7) % 5)]) for at in range(1, 200)
        ]
        every = [name for _, names in runs for name in names]
        run_of = {name: at for at, names in runs for name in names}
        for room in (1024, 1100, 1313, 4096):
            with Peer(_Collisions(runs)) as peer:
                batches = read_directory(peer, opcode, room)
                assert [name for batch in batches for name in batch] == every
                for batch, following in pairwise(batches):
                    assert run_of[batch[-1]] != run_of[following[0]]

    def test_a_lookup_is_counted_only_for_entries_that_were_sent(self) -> None:
        fs = _Collisions([(at, [b"%03d" % at]) for at in range(1, 50)])
        with Peer(fs) as peer:
            batches = read_directory(peer, Opcode.READDIRPLUS, 1024)
        assert sum(map(len, batches)) == 49
        assert fs.looked_up == 49

    def test_a_run_that_fits_no_buffer_is_an_error_and_not_a_silent_loss(self) -> None:
        fs = _Collisions([(1, [b"%0200d" % n for n in range(20)])])
        with Peer(fs) as peer, pytest.raises(OSError, match="Input/output"):
            read_directory(peer, Opcode.READDIR, 1024)

    def test_an_entry_that_cannot_be_looked_up_is_listed_without_attributes(self) -> None:
        class Damaged(MemFs):
            def lookup_ino(self, ino: int, parent: int) -> Inode:
                raise FsError(errno.EIO)

        fs = Damaged()
        fs.mknod(1, b"file", 0o100644, 0, 0, 0)
        with Peer(fs) as peer:
            assert read_directory(peer, Opcode.READDIRPLUS, 4096) == [[b".", b"..", b"file"]]


class TestExtendedAttributes:
    @pytest.mark.parametrize("shows", [True, False])
    def test_trusted_ones_are_shown_to_root_and_in_no_sandbox(self, shows: bool) -> None:
        options = SessionOptions(serve=ServeOptions(shows_trusted=shows))
        with Peer(options=options) as peer:
            for name in (b"trusted.a", b"user.b", b"trusted.c"):
                peer.fs.setxattr(1, name, b"value", 0)
            for uid in (0, 1000):
                expected = b"user.b\0"
                if shows and uid == 0:
                    expected = b"trusted.a\0user.b\0trusted.c\0"
                listed = peer.call(Opcode.LISTXATTR, 1, struct.pack("=II", 100, 0), uid=uid)
                assert listed == (0, expected)
                error, size = peer.call(Opcode.LISTXATTR, 1, struct.pack("=II", 0, 0), uid=uid)
                assert (error, struct.unpack("=II", size)[0]) == (0, len(expected))

    def test_asking_for_the_size_and_too_little_room(self, peer: Peer) -> None:
        peer.fs.setxattr(1, b"user.a", b"value", 0)
        ask = struct.pack("=II", 0, 0) + b"user.a\0"
        assert peer.call(Opcode.GETXATTR, 1, ask) == (0, struct.pack("=II", 5, 0))
        ask = struct.pack("=II", 4, 0) + b"user.a\0"
        assert peer.call(Opcode.GETXATTR, 1, ask) == (errno.ERANGE, b"")
        ask = struct.pack("=II", 5, 0) + b"user.a\0"
        assert peer.call(Opcode.GETXATTR, 1, ask) == (0, b"value")
        assert peer.call(Opcode.LISTXATTR, 1, bytes(8)) == (0, struct.pack("=II", 7, 0))
        assert peer.call(Opcode.LISTXATTR, 1, struct.pack("=II", 7, 0)) == (0, b"user.a\0")
        assert peer.call(Opcode.LISTXATTR, 1, struct.pack("=II", 6, 0)) == (errno.ERANGE, b"")

    def test_what_cannot_be_asked_for_is_not_listed(self, peer: Peer) -> None:
        """A volume may hold ACLs; a program that copies all that is listed would fail on them."""
        peer.fs.setxattr(1, b"user.a", b"value", 0)
        peer.fs.setxattr(1, b"system.posix_acl_access", b"value", 0)
        assert peer.call(Opcode.LISTXATTR, 1, struct.pack("=II", 99, 0)) == (0, b"user.a\0")


class _Ticking(MemFs):
    def __init__(self, delay_s: float | None) -> None:
        super().__init__()
        self.delay_s = delay_s
        self.ticks = threading.Semaphore(0)

    def tick(self) -> float | None:
        self.ticks.release()
        return self.delay_s


class TestTimedWork:
    def test_an_idle_file_system_is_called_again_after_the_time_it_named(self) -> None:
        fs = _Ticking(0.01)
        with Peer(fs):
            for _ in range(4):
                assert fs.ticks.acquire(timeout=20)

    def test_a_file_system_without_a_wish_is_asked_again_after_activity(self) -> None:
        fs = _Ticking(None)
        with Peer(fs) as peer:
            assert fs.ticks.acquire(timeout=20)
            assert not fs.ticks.acquire(timeout=0.5)
            peer.assert_alive()
            assert fs.ticks.acquire(timeout=20)

    def test_a_session_that_is_never_idle_does_timed_work_too(self) -> None:
        fs = _Ticking(0.01)
        with Peer(fs) as peer:
            deadline = time.monotonic() + 20
            ticks = 0
            while ticks < 3 and time.monotonic() < deadline:
                for _ in range(300):
                    peer.assert_alive()
                while fs.ticks.acquire(blocking=False):
                    ticks += 1
            assert ticks >= 3

    def test_timed_work_that_fails_does_not_end_the_service(self) -> None:
        class Failing(MemFs):
            def tick(self) -> float | None:
                raise ValueError("a defect")

        with Peer(Failing()) as peer:
            deadline = time.monotonic() + 20
            while not any("a defect" in line for line in peer.log):
                assert time.monotonic() < deadline
                peer.assert_alive()
            peer.assert_alive()


class _Ahead(MemFs):
    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Semaphore(0)

    def ahead(self) -> None:
        self.asked.release()


def test_a_file_system_may_prepare_what_comes_next_while_no_request_is_there() -> None:
    fs = _Ahead()
    with Peer(fs) as peer:
        peer.assert_alive()
        assert fs.asked.acquire(timeout=20)


class TestStopping:
    def test_stop_ends_a_session_that_sleeps(self) -> None:
        peer = Peer()
        with peer:
            peer.assert_alive()
            peer.session.stop()
            peer._thread.join(20)
            assert not peer._thread.is_alive()

    def test_a_readable_wake_descriptor_ends_the_session(self) -> None:
        read_end, write_end = os.pipe()
        peer = Peer()
        try:
            session = Session(
                peer._device.fileno(), peer.fs, options=SessionOptions(wake_fd=read_end)
            )
            thread = threading.Thread(target=session.run, daemon=True)
            thread.start()
            os.write(write_end, b"x")
            thread.join(20)
            assert not thread.is_alive()
        finally:
            os.close(read_end)
            os.close(write_end)
            peer.socket.close()
            peer._device.close()


class TestTheSecondInodeOfTheRoot:
    """The root of an instance is mounted by it, see :data:`abi.ROOT_ALIAS`."""

    OPTIONS = SessionOptions(serve=ServeOptions(is_root=True))

    def test_the_first_who_asks_gets_it_and_it_is_the_root(self) -> None:
        fs = MemFs()
        fs.mkdir(1, b"below", 0o755, 0, 0)
        with Peer(fs, self.OPTIONS) as peer:
            error, body = peer.call(Opcode.LOOKUP, 1, ROOT_ALIAS + b"\0")
            assert error == 0
            (nodeid,) = struct.unpack_from("=Q", body)
            assert nodeid == ROOT_ALIAS_NODEID
            error, body = peer.call(Opcode.LOOKUP, nodeid, b"below\0")
            assert error == 0
            assert struct.unpack_from("=Q", body)[0] == fs.lookup(1, b"below").ino
            moved = struct.pack("=QII", nodeid, 0, 0) + b"below\0moved\0"
            assert peer.call(Opcode.RENAME2, nodeid, moved)[0] == 0
            assert fs.lookup(1, b"moved").mode

    def test_a_file_of_that_name_is_what_it_is_for_all_others(self) -> None:
        fs = MemFs()
        ino = fs.mkdir(1, ROOT_ALIAS, 0o755, 0, 0).ino
        for options, first in ((self.OPTIONS, ROOT_ALIAS_NODEID), (SessionOptions(), ino)):
            with Peer(fs, options) as peer:
                for expected in (first, ino):
                    error, body = peer.call(Opcode.LOOKUP, 1, ROOT_ALIAS + b"\0")
                    assert (error, *struct.unpack_from("=Q", body)) == (0, expected)
