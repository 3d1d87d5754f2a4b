# SPDX-License-Identifier: Apache-2.0
"""A small sealed volume to be attacked, and what every attack must come to.

The volume has two segments, a log with several commits and files of every kind of storage. After
an attack everything is read: it was refused, or each file reads as it was, or fails with an error.
"""

from __future__ import annotations

import copy
import logging
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from serdab.crypto.aead import TAG_BYTES
from serdab.crypto.kdf import KeySchedule
from serdab.errors import Error, FsError
from serdab.keys import Key
from serdab.sefs import keyspace as ks
from serdab.sefs.anchor import SLOT_BYTES, AnchorState, load_anchor
from serdab.sefs.hostdir import HostDir
from serdab.sefs.intentlog import PAGE, log_cipher, read_log
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.memorydir import MemoryDir, MemoryFile
from serdab.sefs.segment import ABSENT, HOLE, POINTER, POINTER_BYTES
from serdab.sefs.volume import open_volume_in
from serdab.vfs.api import ROOT_INO, SetAttr
from serdab.vfs.union import Union

KEY = Key(b"key under attack")
SMALL = VolumeLimits(log_growth_bytes=4096, buffer_bytes=16 << 10, inline_commit_bytes=1 << 10)
CHUNK = 4096
_LOG_HEAD = 64

Entry = tuple[object, ...]
Picture = dict[bytes, Entry]


@dataclass(slots=True)
class Survey:
    """What could be read of a volume, and what could not."""

    picture: Picture = field(default_factory=dict)
    errors: list[Exception] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refused: bool = False


class _Listener(logging.Handler):
    def __init__(self, survey: Survey) -> None:
        super().__init__(logging.WARNING)
        self._survey = survey

    def emit(self, record: logging.LogRecord) -> None:
        self._survey.warnings.append(record.getMessage())


_LOG = logging.getLogger("serdab.sefs")


def open_host(
    host: MemoryDir, *, key: Key = KEY, read_only: bool = True, version: int = ks.V2
) -> Union:
    """Mount a host directory in memory; ``version`` is that of a new volume."""
    volume = open_volume_in(
        host, key=key, create=not host.files, read_only=read_only, chunk_size=CHUNK,
        page_size=1024, limits=SMALL, version=version,
    )  # fmt: skip
    return Union(volume, None)


def survey(host: MemoryDir, *, key: Key = KEY) -> Survey:
    """Mount and read everything that can be read."""
    found = Survey()
    listener = _Listener(found)
    _LOG.addHandler(listener)
    _LOG.propagate = False
    try:
        try:
            fs = open_host(host, key=key)
        except (Error, FsError) as exc:
            found.errors.append(exc)
            found.refused = True
            return found
        _visit(fs, ROOT_INO, b"", found)
        fs.close()
    finally:
        _LOG.propagate = True
        _LOG.removeHandler(listener)
        host.close()
    return found


def _visit(fs: Union, ino: int, path: bytes, found: Survey) -> None:
    try:
        inode = fs.getattr(ino)
        body: object = b""
        if stat.S_ISREG(inode.mode):
            buf = bytearray(inode.size)
            count = fs.read_into(ino, 0, memoryview(buf))
            body = bytes(buf[:count])
        elif stat.S_ISLNK(inode.mode):
            body = fs.readlink(ino)
        xattrs = tuple((name, fs.getxattr(ino, name)) for name in fs.listxattr(ino))
        found.picture[path] = (
            inode.mode, inode.nlink, inode.uid, inode.gid, inode.rdev, inode.size,
            inode.mtime_ns, inode.ctime_ns, inode.btime_ns, body, xattrs,
        )  # fmt: skip
        if not stat.S_ISDIR(inode.mode):
            return
        # The end of a listing that failed is as much an error as a file that cannot be read.
        for entry in fs.readdir(ino, 2):
            _visit(fs, entry.ino, path + b"/" + entry.name, found)
    except (Error, FsError) as exc:
        found.errors.append(exc)


class SealedVolume:
    """A volume that was closed, or killed with commits in its log."""

    def __init__(self, *, closed: bool, version: int = ks.V2) -> None:
        self.host = MemoryDir("host")
        fs = open_host(self.host, read_only=False, version=version)
        self.history = [copy.deepcopy(self.host)]
        fill(fs)
        if closed:
            fs.close()
        self.host = copy.deepcopy(self.host)
        self.host.close()
        first = survey(self.host)
        assert not first.errors
        assert not first.warnings
        self.picture = first.picture
        self.commits = list(self._commits())
        """The tree after each commit of either anchor's log, and before the first."""

    def _commits(self) -> Iterator[Picture]:
        yield self.picture
        anchor, _, _ = load_anchor(self.host.open("anchor"), KEY, "host")
        newest = anchor.state.epoch % 2 * SLOT_BYTES
        for emptied in ((), (newest,)):
            for path, file in self.files():
                for start in range(0, len(file.content), PAGE) if path.startswith("log/") else ():
                    host = self.copy()
                    for slot in emptied:
                        host.files["anchor"].content[slot : slot + SLOT_BYTES] = bytes(SLOT_BYTES)
                    content = file_at(host, path).content
                    content[start:] = bytes(len(content) - start)
                    found = survey(host)
                    if not found.errors:
                        yield found.picture

    def copy(self) -> MemoryDir:
        return copy.deepcopy(self.host)

    def files(self) -> Iterator[tuple[str, MemoryFile]]:
        yield from files_of(self.host)

    def check(
        self, host: MemoryDir, *, must_notice: bool, what: str = "", cut: bool = False
    ) -> Survey:
        """Read everything: refused, an error, or the right bytes.

        With ``cut`` the end of the log may be gone: an older commit is as good, as long as all
        that is read belongs to the same one. Only a record elsewhere can tell (promise 4).
        """
        found = survey(host)
        fits = [
            all(commit.get(path) == entry for path, entry in found.picture.items())
            and (bool(found.errors) or found.picture.keys() == commit.keys())
            for commit in (self.commits if cut else [self.picture])
        ]
        assert any(fits), f"{what}: not what was sealed"
        if must_notice:
            assert found.errors or found.warnings, f"{what}: nobody noticed"
        return found


def files_of(host: MemoryDir) -> Iterator[tuple[str, MemoryFile]]:
    """Yield every host file by its path."""
    for name in sorted(host.files):
        yield name, host.files[name]
    for folder in sorted(host.dirs):
        for name in sorted(host.dirs[folder].files):
            yield f"{folder}/{name}", host.dirs[folder].files[name]


def file_at(host: MemoryDir, path: str) -> MemoryFile:
    """Return a host file by its path."""
    folder, _, name = path.rpartition("/")
    return (host.dirs[folder] if folder else host).files[name]


def fill(fs: Union) -> None:
    """Make files of every kind; part in the tree, part in the log, all of it durable."""
    noise = bytes(range(256)) * 64
    folder = fs.mkdir(ROOT_INO, b"folder", 0o755, 1, 2)
    for name, size in ((b"inline", 30), (b"chunk", 2500), (b"chunks", 5000)):
        inode = fs.mknod(folder.ino, name, stat.S_IFREG | 0o640, 0, 3, 4)
        fs.write(inode.ino, 0, memoryview(noise[:size]), kill_suidgid=False)
    fs.symlink(ROOT_INO, b"link", b"folder/chunk", 0, 0)
    fs.mknod(ROOT_INO, b"device", stat.S_IFCHR | 0o600, 0x0501, 0, 0)
    fs.setxattr(folder.ino, b"user.note", b"value of an attribute", 0)
    for number in range(8):
        made = fs.mknod(folder.ino, b"many %d" % number, stat.S_IFREG | 0o600, 0, 0, 0)
        fs.write(made.ino, 0, memoryview(b"%d" % number * 50), kill_suidgid=False)
    fs.syncfs()  # a checkpoint: the first of its session
    for turn in range(3):
        inode = fs.lookup(folder.ino, b"chunk")
        fs.write(inode.ino, 100 * turn, memoryview(b"in the log"), kill_suidgid=False)
        fs.setattr(folder.ino, SetAttr(mode=0o700 + turn))
        fs.syncfs()  # a commit each
    chunks = fs.lookup(folder.ino, b"chunks")
    fs.write(chunks.ino, 0, memoryview(noise[7 : 7 + CHUNK]), kill_suidgid=False)
    fs.syncfs()


def live_ranges(host: MemoryDir) -> dict[str, list[tuple[int, int]]]:
    """Return (start, end) of all bytes that the newest state rests on, by host file.

    Computed from the format, not by watching what is read: the newest anchor slot up to the end of
    its sealed part; of each segment that is referred to, the salt and the records; the commits of
    the log. Everything else is dead: the older slot, padding, noise, what was overwritten.
    """
    live: dict[str, list[tuple[int, int]]] = {}
    anchor, keys, _ = load_anchor(host.open("anchor"), KEY, "host")
    slot = anchor.state.epoch % 2 * SLOT_BYTES
    raw = bytes(host.files["anchor"].content)[slot : slot + SLOT_BYTES]
    live["anchor"] = [(slot, slot + len(raw.rstrip(b"\0")))]
    volume = open_volume_in(copy.deepcopy(host), key=KEY, read_only=True)
    pointers = {anchor.state.table}
    extents: dict[bytes, bytes] = {}
    for where, page in volume.tree.pages():
        pointers.add(where)
        if page.level == 0:
            extents.update(item for item in page.items() if item[0][8] == ks.T_EXTENTS)
    volume.close()
    if anchor.state.log:
        spans, newer = _log_spans(host, keys, anchor.state)
        live[f"log/{anchor.state.log:08x}"] = spans
        extents.update(newer)
    for value in extents.values():
        pointers |= set(_slots(value))
    for pointer in pointers - {ABSENT, HOLE}:
        segment, offset, stored, _, _ = POINTER.unpack(pointer)
        spans = live.setdefault(f"seg/{segment:08x}", [(0, 32)])
        spans.append((offset, offset + stored))
    return live


def _slots(value: bytes) -> Iterator[bytes]:
    for start in range(0, len(value), POINTER_BYTES):
        yield value[start : start + POINTER_BYTES]


def _log_spans(
    host: MemoryDir, keys: KeySchedule, state: AnchorState
) -> tuple[list[tuple[int, int]], dict[bytes, bytes]]:
    """Return where the commits of the log lie, and the extents they set."""
    cipher = log_cipher(keys, state.log, state.log_salt)
    file = host.dirs["log"].files[f"{state.log:08x}"]
    spans, extents, page = [], {}, 0
    for _, _, commit in read_log(file, cipher, state.sequence, state.chain):
        start = page * PAGE
        head = cipher.open_(2 * page, bytes(file.content[start : start + _LOG_HEAD]), b"")
        _, body, _, _, _, pages, _ = struct.unpack("<QII16sQII", head)
        spans.append((start, start + _LOG_HEAD + body + TAG_BYTES))
        page += pages
        extents.update({key: value or b"" for key, value in commit.items if key[8] == ks.T_EXTENTS})
    return spans, extents


def to_disk(host: MemoryDir, folder: Path) -> Path:
    """Write a host directory in memory to a real one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in host.files.items():
        (folder / name).write_bytes(file.content)
    for name, below in host.dirs.items():
        to_disk(below, folder / name)
    return folder


def open_disk(folder: Path) -> Union:
    """Mount a real host directory."""
    volume = open_volume_in(HostDir.at(folder), key=KEY, limits=SMALL)
    return Union(volume, None)
