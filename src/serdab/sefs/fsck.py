# SPDX-License-Identifier: Apache-2.0
"""Verifies a sealed file system to the last byte, and salvages what verifies into a new volume.

Above: ``cli.fsck``. Below: ``damage``, ``volumecheck``; ``vfs.union`` for the view by path.

Every page of the tree is read; then every name is followed from the root and every stored byte of
every file read; then link counts are held against the names, and the items of a volume against what
is named at all. Damage in one place never stops the check of the rest, and is told by path where a
path is known.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

from serdab.errors import Error, FormatError, FsError
from serdab.sefs import keyspace as ks
from serdab.sefs.damage import Report, tolerant_items
from serdab.sefs.tree import Tree
from serdab.sefs.volume import Volume
from serdab.sefs.volumecheck import VolumeCheck
from serdab.vfs.api import ROOT_INO, FileSystem, Inode

_UNIT: Final = 1 << 20
Progress = Callable[[int], None]


def check(
    open_fs: Callable[[], FileSystem],
    trees: list[Tree],
    progress: Progress | None = None,
    *,
    upper: Volume | None = None,
) -> Report:
    """Verify all pages of ``trees``, and by path everything that the file system shows of them.

    ``upper`` is the volume among them, if there is one: it should hold nothing that no name leads
    to. ``progress`` is called with the content bytes read so far. The file system is not closed.
    """
    report = Report()
    held: set[int] = set()
    if upper is not None and upper.log_problem is not None:
        report.add("intent log", upper.log_problem.message)
    for tree in trees:
        if upper is not None and tree is upper.tree:
            held = VolumeCheck(upper, report).run()
            continue
        for _ in tolerant_items(tree, report):
            pass
    try:
        fs = open_fs()
    except (Error, FsError) as exc:
        report.add("/", exc)
        return report
    walk = _Walk(fs, report, progress)
    walk.run()
    if report.is_clean():  # what is damaged hides names: everything below would be told again
        for ino in sorted(held - walk.named()):
            report.add(f"inode {ino}", "is stored, and no name leads to it")
    return report


class _Walk:
    """Follows every name from the root."""

    def __init__(self, fs: FileSystem, report: Report, progress: Progress | None) -> None:
        self._fs = fs
        self._report = report
        self._progress = progress
        self._names: dict[int, int] = {}
        self._counts: dict[int, tuple[str, int]] = {}
        self._buf = bytearray(_UNIT)
        self._seen = {ROOT_INO}

    def named(self) -> set[int]:
        """Return the inodes that a name led to, and the root."""
        return self._seen | self._names.keys()

    def run(self) -> None:
        stack: list[tuple[int, str]] = [(ROOT_INO, "")]
        seen = self._seen
        while stack:
            ino, prefix = stack.pop()
            self._report.directories += 1
            subdirs = 0
            for path, inode in self._children(ino, prefix):
                if stat.S_ISDIR(inode.mode):
                    subdirs += 1
                    if inode.ino in seen:
                        self._report.add(path, "a directory with two names")
                        continue
                    seen.add(inode.ino)
                    if inode.parent_ino not in (0, ino):
                        self._report.add(path, "its record names another parent")
                    stack.append((inode.ino, path))
                else:
                    self._file(path, inode)
            self._expect(prefix or "/", ino, 2 + subdirs)
        for ino, (path, count) in self._counts.items():
            if self._names[ino] != count:
                self._report.add(path, f"link count {count}, names {self._names[ino]}")

    def _expect(self, path: str, ino: int, count: int) -> None:
        try:
            found = self._fs.getattr(ino).nlink
        except (Error, FsError) as exc:
            self._report.add(path, exc)
            return
        if found != count:
            self._report.add(path, f"link count {found} where {count} are due")

    def _children(self, ino: int, prefix: str) -> Iterator[tuple[str, Inode]]:
        try:
            entries = [(entry.name, entry.ino, entry.dtype) for entry in self._fs.readdir(ino, 0)]
        except (Error, FsError) as exc:
            self._report.add(prefix or "/", f"the directory cannot be listed: {exc}")
            return
        for name, child, dtype in entries:
            if name in (b".", b".."):
                continue
            path = f"{prefix}/{os.fsdecode(name)}"
            try:
                inode = self._fs.getattr(child)
            except (Error, FsError) as exc:
                self._report.add(path, exc)
                continue
            if inode.mode >> 12 != dtype:
                self._report.add(path, "name and inode disagree on the type")
            yield path, inode

    def _file(self, path: str, inode: Inode) -> None:
        first = inode.ino not in self._names
        self._names[inode.ino] = self._names.get(inode.ino, 0) + 1
        self._counts.setdefault(inode.ino, (path, inode.nlink))
        if not first:
            return
        self._report.files += 1
        if stat.S_ISREG(inode.mode):
            self._content(path, inode)
        elif stat.S_ISLNK(inode.mode):
            try:
                self._fs.readlink(inode.ino)
            except (Error, FsError) as exc:
                self._report.add(path, exc)

    def _content(self, path: str, inode: Inode) -> None:
        offset = 0
        with memoryview(self._buf) as view:
            while offset < inode.size:
                try:
                    start = self._fs.lseek(inode.ino, offset, os.SEEK_DATA)
                except FsError as exc:
                    if exc.errno == errno.ENXIO:
                        return  # nothing but a hole is left
                    raise
                except Error as exc:
                    self._report.add(path, f"where its content lies cannot be read: {exc}")
                    return
                want = min(_UNIT, inode.size - start)
                try:
                    self._fs.read_into(inode.ino, start, view[:want])
                except (Error, FsError) as exc:
                    self._report.add(path, f"within bytes {start} to {start + want}: {exc}")
                self._report.content_bytes += want
                offset = start + want
                if self._progress is not None:
                    self._progress(self._report.content_bytes)


def salvage(damaged: Volume, into: Volume, progress: Progress | None = None) -> Report:
    """Copy what verifies of one volume into a new one over the same lower layer.

    A chunk that does not verify becomes a hole, and its file is named in the report; a page that
    does not verify takes its items with it. The damaged volume is only read.
    """
    report = Report()
    paths = _Paths()
    writes = damaged.logged_writes()
    for key, value in damaged.items_now(lambda tree: tolerant_items(tree, report)):
        kind = key[8] if len(key) > 8 else 0
        ino = int.from_bytes(key[:8], "big")
        if kind == ks.T_DIRENT:
            paths.add(ino, key, value)
        if kind in (ks.T_INODE, ks.T_INLINE, ks.T_XATTR, ks.T_DIRENT, ks.T_ORPHAN):
            _restore(damaged, into, key, value, report)
        elif kind == ks.T_EXTENTS:
            group = int.from_bytes(key[9:], "big")
            for chunk, problem in damaged.copy_group(into, ino, group):
                report.add(f"inode {ino}", f"chunk {chunk}: {problem}")
            report.content_bytes += len(value)
            if progress is not None:
                progress(report.content_bytes)
    for ino, offset, raw in writes:
        inode = into.inode(ino)
        if inode is not None:
            into.write(inode, offset, memoryview(raw))
    into.restore_counter(damaged.max_ino + 1)
    into.commit()
    report.damaged = {paths.named(subject): text for subject, text in report.damaged.items()}
    return report


def _restore(damaged: Volume, into: Volume, key: bytes, value: bytes, report: Report) -> None:
    try:
        into.restore_item(key, value, damaged.version)
    except FormatError as exc:
        report.add(f"inode {int.from_bytes(key[:8], 'big')}", exc)


class _Paths:
    """Turns "inode N" into a path where the names of a volume allow it."""

    def __init__(self) -> None:
        self._names: dict[int, tuple[int, bytes]] = {}

    def add(self, parent: int, key: bytes, value: bytes) -> None:
        try:
            entry = ks.parse_dirent(value)
            self._names[entry.ino] = parent, ks.parse_dirent_key(key)[1]
        except FormatError:
            return  # the check reports it

    def named(self, subject: str) -> str:
        word, _, number = subject.partition(" ")
        if word != "inode" or not number.isdecimal():
            return subject
        ino = int(number)
        parts: list[str] = []
        while ino in self._names and len(parts) < 256:
            ino, name = self._names[ino]
            parts.append(os.fsdecode(name))
        if not parts:
            return subject
        return ("/" if ino == ROOT_INO else "…/") + "/".join(reversed(parts))
