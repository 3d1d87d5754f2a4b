# SPDX-License-Identifier: Apache-2.0
"""The table of docs/format.md: what each operation leaves in the log, and what replay makes of it.

Each row is done to a file that a commit has, on a real volume; then the next commit is read from
the log, and the volume is opened a second time beside the first.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from serdab.keys import Key
from serdab.sefs import keyspace as ks
from serdab.sefs.anchor import load_anchor, volume_keys
from serdab.sefs.intentlog import Commit, log_cipher, read_log
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.segment import file_name
from serdab.sefs.volume import Volume, open_volume_in
from serdab.vfs.api import ROOT_INO, SetAttr
from serdab.vfs.union import Union
from tests.property.fsops import picture

KEY: Final = Key(b"table of the log")
CHUNK: Final = 4096
FORMAT: Final = Path(__file__).parents[2] / "docs/format.md"
_NAMES: Final = {getattr(ks, name): name[2:] for name in vars(ks) if re.fullmatch("T_[A-Z]+", name)}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    log = logging.getLogger("serdab.sefs")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


def rows() -> dict[str, tuple[str, str]]:
    """Return operation -> (in the log, in memory after replay) of the table."""
    _, _, rest = FORMAT.read_text().partition("| operation | in the log |")
    found = {}
    for line in rest.split("\n\n", 1)[0].splitlines()[2:]:
        operation, logged, held = (cell.strip() for cell in line.strip("|").split("|"))
        found[operation] = logged, held
    return found


@dataclass
class Ground:
    """A mounted volume, and one file of it that the log has."""

    host: MemoryDir
    volume: Volume
    fs: Union
    ino: int

    @classmethod
    def make(cls, version: int) -> Ground:
        host = MemoryDir("host")
        volume = open_volume_in(
            host, key=KEY, create=True, chunk_size=CHUNK, page_size=1024, version=version
        )
        fs = Union(volume, None)
        for name in (b"other", b"source"):
            fs.forget(fs.mknod(ROOT_INO, name, 0o100600, 0, 0, 0).ino, 1)
        fs.syncfs()
        ino = fs.mknod(ROOT_INO, b"file", 0o100600, 0, 0, 0).ino
        fs.forget(ino, 1)
        return cls(host, volume, fs, ino)

    def write(self, size: int, offset: int = 0, byte: int = 1) -> None:
        data = bytes([byte]) * size
        self.fs.write(self.ino, offset, memoryview(data), kill_suidgid=False)

    def resize(self, size: int) -> None:
        self.fs.setattr(self.ino, SetAttr(size=size))

    def flush(self) -> None:
        """As the limit of what is dirty does it."""
        self.volume._content.flush()
        self.volume._journal.touch()

    def unlink(self) -> None:
        self.fs.unlink(ROOT_INO, b"file")

    def held(self, volume: Volume) -> list[int]:
        """Return the chunks of the file that are in memory."""
        opened = volume._content._dirty.get(self.ino)
        return sorted(opened.chunks) if opened is not None else []


def _small(ground: Ground) -> None:
    ground.write(500)


def _inline(ground: Ground) -> None:
    ground.write(500)
    ground.flush()


def _records(ground: Ground) -> None:
    ground.write(2 * CHUNK)


def _in_use(ground: Ground) -> None:
    ground.write(500)
    ground.fs.lookup(ROOT_INO, b"file")
    ground.unlink()


def _twice(*steps: Callable[[Ground], None]) -> Callable[[Ground], None]:
    def both(ground: Ground) -> None:
        for step in steps:
            step(ground)

    return both


def _whole_copy(ground: Ground) -> None:
    fs = ground.fs
    source = fs.lookup(ROOT_INO, b"source").ino
    fs.write(source, 0, memoryview(bytes(2 * CHUNK)), kill_suidgid=False)
    assert fs.copy_file_range(source, 0, ground.ino, 0, 2 * CHUNK) == 2 * CHUNK
    fs.forget(source, 1)


def _copy(ground: Ground) -> None:
    fs = ground.fs
    source = fs.lookup(ROOT_INO, b"source").ino
    fs.write(source, 0, memoryview(b"source" * 50), kill_suidgid=False)
    fs.copy_file_range(source, 0, ground.ino, 10, 200)
    fs.forget(source, 1)


Step = Callable[[Ground], object]
ROWS: dict[str, tuple[Step, Step]] = {
    "small write": (_small, lambda g: g.write(9, 50)),
    "small write to an inline file": (_inline, lambda g: g.write(9, 50)),
    "write of a whole chunk": (_small, lambda g: g.write(CHUNK)),
    "growth by setting the size": (_small, lambda g: g.resize(900)),
    "flush of chunks": (lambda g: g.write(3000), lambda g: g.flush()),
    "flush into the inode": (_small, lambda g: g.flush()),
    "flush into the inode, and a write": (_small, _twice(Ground.flush, _small)),
    "truncation to nothing": (_small, lambda g: g.resize(0)),
    "truncation to nothing of an inline file": (_inline, lambda g: g.resize(0)),
    "truncation to nothing of records": (_records, lambda g: g.resize(0)),
    "truncation within a chunk": (_records, lambda g: g.resize(100)),
    "punching a whole chunk": (_records, lambda g: g.fs.fallocate(g.ino, 3, 0, 2 * CHUNK)),
    "punching a part": (_records, lambda g: g.fs.fallocate(g.ino, 3, 9, 100)),
    "copy of a part": (_small, _copy),
    "copy of whole chunks, version 2": (_small, _whole_copy),
    "unlinking": (_small, Ground.unlink),
    "unlinking an inline file": (_inline, Ground.unlink),
    "unlinking records": (_records, Ground.unlink),
    "unlinking after a flush into the inode": (_small, _twice(Ground.flush, Ground.unlink)),
    "another renamed over it": (
        _small, lambda g: g.fs.rename(ROOT_INO, b"other", ROOT_INO, b"file", 0),
    ),
    "unlinking while in use": (
        _small, lambda g: (g.fs.lookup(ROOT_INO, b"file"), g.unlink()),
    ),
    "the last use of an orphan": (_in_use, lambda g: g.fs.forget(g.ino, 1)),
}  # fmt: skip


def commits(host: MemoryDir) -> list[Commit]:
    """Return what the newest log holds."""
    anchor, _, _ = load_anchor(host.open("anchor"), KEY, "host")
    state = anchor.state
    cipher = log_cipher(volume_keys(KEY, anchor.uuid, anchor.version), state.log, state.log_salt)
    file = host.subdir("log").open(file_name(state.log))
    return [commit for _, _, commit in read_log(file, cipher, state.sequence, state.chain)]


def said(commit: Commit, ino: int) -> set[str]:
    """Return what a commit says of a file, in the words of the table."""
    words = set()
    for key, value in commit.items:
        if key == ks.orphan_key(ino) or key[:8] == ino.to_bytes(8, "big"):
            words.add(_NAMES[key[8]] + (" gone" if value is None else ""))
    words.update("discard" for number, _, _ in commit.discards if number == ino)
    words.update("write" for number, _, _ in commit.writes if number == ino)
    return words


def test_the_table_and_the_steps_name_the_same_operations() -> None:
    assert rows().keys() == ROWS.keys()


@pytest.mark.parametrize(
    ("operation", "version"),
    [
        (operation, version)
        for operation in ROWS
        for version in (ks.V1, ks.V2)
        if version == ks.V2 or not operation.endswith("version 2")
    ],
)
def test_an_operation_leaves_in_the_log_what_the_table_says(operation: str, version: int) -> None:
    logged, held = rows()[operation]
    before, step = ROWS[operation]
    ground = Ground.make(version)
    before(ground)
    ground.fs.syncfs()
    there = ground.held(ground.volume)
    count = len(commits(ground.host))
    step(ground)
    ground.fs.syncfs()
    written = commits(ground.host)
    assert len(written) == count + 1
    assert said(written[-1], ground.ino) == set(logged.split(", "))
    # Replay makes of it what the server that wrote it has: the same tree, the same in memory.
    again = open_volume_in(copy.deepcopy(ground.host), key=KEY, read_only=True)
    assert picture(Union(again, None)) == picture(ground.fs)
    expected = {"nothing": [], "chunk": [0], "what there was": there}[held]
    assert ground.held(again) == expected
    assert ground.held(ground.volume) == expected
