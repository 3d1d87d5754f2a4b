# SPDX-License-Identifier: Apache-2.0
"""Random work on a volume with all that version 2 has of file content, beside a plain model."""

from __future__ import annotations

import copy
import random

from serdab.errors import FsError
from serdab.sefs.fsck import check
from serdab.sefs.image import Image
from serdab.sefs.limits import VolumeLimits
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.slots import LowerPart
from serdab.sefs.volume import Volume, open_volume_in
from serdab.structs import replace
from serdab.vfs.api import ROOT_INO, SetAttr
from serdab.vfs.union import Union
from tests.attack.sealedvolume import KEY

CHUNK = 4096
NAMES = tuple(b"%d" % number for number in range(6))
LIMITS = VolumeLimits(
    segment_bytes=100_000, buffer_bytes=8192, log_growth_bytes=4096, inline_commit_bytes=2048,
    dirty_bytes=40_000,
)  # fmt: skip


class SharedModel:
    """A volume and what its files should hold."""

    def __init__(self, seed: int, lower: Image | None = None) -> None:
        self.rng = random.Random(seed)
        self.lower = lower
        self.host = MemoryDir("host")
        self.files: dict[bytes, bytearray] = {}
        self.sizes: dict[bytes, int] = {}
        self.done: set[str] = set()
        self.fs = self.open()

    def open(self) -> Union:
        volume = open_volume_in(
            self.host, key=KEY, lower=self.lower, create=not self.host.files, chunk_size=CHUNK,
            page_size=1024, limits=replace(LIMITS),
        )  # fmt: skip
        return Union(volume, self.lower)

    @property
    def volume(self) -> Volume:
        volume = self.fs._upper
        assert isinstance(volume, Volume)
        return volume

    def kill(self) -> None:
        """Take the host as it is after a commit, and open that."""
        self.fs.syncfs()
        self.host = copy.deepcopy(self.host)
        self.host.close()
        self.fs = self.open()

    def close(self) -> None:
        self.fs.close()
        self.host = copy.deepcopy(self.host)
        self.host.close()

    def run(self, steps: int) -> None:
        acts = (self._write, self._write, self._write, self._share, self._share, self._truncate,
                self._punch, self._reserve, self._unlink, self._commit, self._checkpoint,
                self._below)  # fmt: skip
        for _ in range(steps):
            act = self.rng.choice(acts)
            act()
            self.done.add(act.__name__)

    def expect(self) -> None:
        """Compare all content, and have fsck look at everything."""
        for name, body in self.files.items():
            ino = self.fs.lookup(ROOT_INO, name).ino
            buf = bytearray(len(body) + 10)
            assert self.fs.read_into(ino, 0, memoryview(buf)) == len(body)
            assert buf[: len(body)] == body, name
        volume = self.volume
        report = check(lambda: self.fs, [volume.tree], upper=volume)
        assert not report.damaged

    # Steps --------------------------------------------------------------------------------

    def _chosen(self) -> tuple[bytes, int]:
        """Return a file, made if need be."""
        name = self.rng.choice(NAMES)
        if name in self.files:
            return name, self.fs.lookup(ROOT_INO, name).ino
        inode = self.fs.mknod(ROOT_INO, name, 0o100600, 0, 0, 0)
        self.sizes[name] = self.rng.choice((0, 0, 8192))
        self.volume.set_record_size(inode, self.sizes[name])
        self.files[name] = bytearray()
        return name, inode.ino

    def _chunk(self, name: bytes) -> int:
        return self.sizes[name] or CHUNK

    def _write(self) -> None:
        name, ino = self._chosen()
        body = self.files[name]
        start = self.rng.randrange(50_000)
        raw = self.rng.randbytes(self.rng.choice((10, 1500, 4096, 8192, 20_000)))
        if self.rng.random() < 0.5:
            start -= start % 8192
        self.fs.write(ino, start, memoryview(raw), kill_suidgid=False)
        self._grow(body, start + len(raw))
        body[start : start + len(raw)] = raw

    @staticmethod
    def _grow(body: bytearray, size: int) -> None:
        body.extend(bytes(max(0, size - len(body))))

    def _share(self) -> None:
        name, ino = self._chosen()
        other, target = self._chosen()
        size = self._chunk(name)
        first, start, count = (self.rng.randrange(6) for _ in range(3))
        if name == other and abs(first - start) < count:
            return
        source, into = self.fs.getattr(ino), self.fs.getattr(target)
        if not self.volume.common_chunk(source, into):
            try:
                self.volume.share(source, first, into, start, count)
            except FsError:
                return
            raise AssertionError("records of two sizes were shared")
        # As a caller has to: nothing beyond the end of the source, whole chunks but for the last.
        count = max(0, min(count, -(-source.size // size) - first))
        if not count:
            return
        count = self.volume.share(source, first, into, start, count)
        self.sizes[other] = self.sizes[name]
        taken = bytes(self.files[name][first * size : (first + count) * size])
        taken += bytes(count * size - len(taken))
        body = self.files[other]
        end = start * size + count * size
        into.size = max(into.size, end)
        self.volume.put_inode(into)
        self._grow(body, end)
        body[start * size : end] = taken

    def _truncate(self) -> None:
        name, ino = self._chosen()
        body = self.files[name]
        size = self.rng.choice((0, len(body) // 2, len(body) - len(body) % CHUNK, 100))
        self.fs.setattr(ino, SetAttr(size=size))
        self._grow(body, size)
        del body[size:]

    def _punch(self) -> None:
        name, ino = self._chosen()
        body = self.files[name]
        start, length = self.rng.randrange(40_000), self.rng.randrange(1, 20_000)
        self.fs.fallocate(ino, 3, start, length)
        end = min(start + length, len(body))
        if start < end:
            body[start:end] = bytes(end - start)

    def _reserve(self) -> None:
        _, ino = self._chosen()
        inode = self.fs.getattr(ino)
        self.volume.reserve(inode, self.rng.randrange(8), self.rng.randrange(1, 5))

    def _below(self) -> None:
        if self.lower is None:
            return
        name, ino = self._chosen()
        below = self.fs.lookup(self.fs.lookup(ROOT_INO, b"bin").ino, b"chunks")
        size = self._chunk(name)
        part = LowerPart(below.ino, self.rng.randrange(190_000), self.rng.randrange(1, size + 1))
        raw = bytearray(part.length)
        self.lower.read_into(part.ino, part.offset, memoryview(raw))
        chunk = self.rng.randrange(6)
        inode = self.fs.getattr(ino)
        self.volume.refer_below(inode, chunk, part)
        end = (chunk + 1) * size
        inode.size = max(inode.size, end)
        self.volume.put_inode(inode)
        self._grow(self.files[name], end)
        self.files[name][chunk * size : end] = bytes(raw) + bytes(size - len(raw))

    def _unlink(self) -> None:
        name = self.rng.choice(NAMES)
        if name in self.files:
            ino = self.fs.lookup(ROOT_INO, name).ino
            self.fs.unlink(ROOT_INO, name)
            self.fs.forget(ino, 1 << 30)
            del self.files[name], self.sizes[name]

    def _commit(self) -> None:
        self.fs.syncfs()

    def _checkpoint(self) -> None:
        self.volume.checkpoint()
