# SPDX-License-Identifier: Apache-2.0
"""Walks a source tree in the one order that an image is written in.

Entries of a directory are sorted by their bytes; all of a directory's entries get their inode
numbers before the walk goes down into its first subdirectory. Hard links are one inode, at the
first visit. Nothing of the host gets in: no owner, inode number, directory time or order.

Above: ``imagebuild``, which takes a tree from whoever is a :class:`Source`: from the host here,
from another image in ``imagesource``. Below: the source tree on the host.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from serdab.errors import UsageError
from serdab.vfs.api import ROOT_INO, Inode

_SECOND: Final = 1_000_000_000
_DTYPE_SHIFT: Final = 12


@dataclass(slots=True)
class SourceEntry:
    """One inode of the image to be. ``content`` replaces the file at ``host_path``."""

    inode: Inode
    path: bytes
    host_path: bytes
    content: bytes | None = None
    target: bytes = b""
    xattrs: list[tuple[bytes, bytes]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Name:
    """One directory entry of the image to be."""

    parent: int
    name: bytes
    ino: int
    dtype: int


@dataclass(frozen=True, slots=True)
class Additions:
    """What is sealed besides the source tree, by path relative to the root (no leading slash).

    A directory is added where none is; a file replaces what the tree has at its path.
    """

    directories: Mapping[bytes, int] = field(default_factory=dict)
    files: Mapping[bytes, bytes] = field(default_factory=dict)

    def below(self, path: bytes) -> set[bytes]:
        """Return the names that the additions put directly into the directory at ``path``."""
        prefix = path + b"/" if path else b""
        return {
            added[len(prefix) :].split(b"/", 1)[0]
            for added in (*self.directories, *self.files)
            if added.startswith(prefix) and added != path
        }


class Source(Protocol):
    """A tree to be sealed."""

    names: list[Name]
    """Every directory entry; complete when :meth:`entries` is through."""

    def entries(self) -> Iterator[SourceEntry]:
        """Yield each inode once, in the order of its content in the image."""
        ...

    def pieces(self, entry: SourceEntry, unit: int) -> Iterator[bytes]:
        """Yield the content of a regular file in pieces of ``unit`` bytes, the last one shorter."""
        ...


def in_order(
    root: SourceEntry, listed: Callable[[SourceEntry], Iterator[SourceEntry]]
) -> Iterator[SourceEntry]:
    """Yield all of a directory before its first subdirectory: the order is part of the format.

    ``listed`` yields what is new in a directory, by the bytes of the names.
    """
    yield root
    stack = [root]
    while stack:
        children = []
        for entry in listed(stack.pop()):
            yield entry
            if stat.S_ISDIR(entry.inode.mode):
                children.append(entry)
        stack.extend(reversed(children))


Owner = Callable[[bytes], tuple[int, int]]


class Walk:
    """Produces entries and names. ``clamp_s`` is the latest mtime in seconds, or None."""

    def __init__(
        self, source: Path, additions: Additions, *, clamp_s: int | None, owner: Owner
    ) -> None:
        self._source = os.fsencode(source)
        self._additions = additions
        self._clamp_s = clamp_s
        self._owner = owner
        self._next_ino = ROOT_INO
        self._seen: dict[tuple[int, int], SourceEntry] = {}
        self.names: list[Name] = []

    def entries(self) -> Iterator[SourceEntry]:
        """Yield each inode once. ``nlink`` is final when the walk is over."""
        root_stat = os.stat(self._source)
        if not stat.S_ISDIR(root_stat.st_mode):
            raise UsageError("not a directory", subject=os.fsdecode(self._source))
        root = self._new(b"", self._source, root_stat.st_mode, 0)
        root.inode.nlink = 2
        yield from in_order(root, self._directory)

    def pieces(self, entry: SourceEntry, unit: int) -> Iterator[bytes]:
        """See :class:`Source`.

        Raises:
            UsageError: the file changed since it was listed.
        """
        size = entry.inode.size
        if entry.content is not None:
            for start in range(0, size, unit):
                yield entry.content[start : start + unit]
            return
        fd = os.open(entry.host_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, "rb", buffering=0):
            for start in range(0, size, unit):
                yield _read(fd, min(unit, size - start), entry)
            if os.fstat(fd).st_size != size:
                raise _changed(entry)

    def _new(self, path: bytes, host_path: bytes, mode: int, mtime_s: int) -> SourceEntry:
        uid, gid = self._owner(path)
        inode = Inode(self._next_ino, mode, uid, gid)
        self._next_ino += 1
        if self._clamp_s is not None:
            mtime_s = min(mtime_s, self._clamp_s)
        inode.atime_ns = inode.mtime_ns = inode.ctime_ns = inode.btime_ns = mtime_s * _SECOND
        return SourceEntry(inode, path, host_path)

    def _directory(self, parent: SourceEntry) -> Iterator[SourceEntry]:
        found: dict[bytes, os.DirEntry[bytes]] = {}
        if parent.host_path:
            with os.scandir(parent.host_path) as listing:
                found = {entry.name: entry for entry in listing}
        added = self._additions.below(parent.path)
        for name in sorted({*found, *added}):
            path = parent.path + b"/" + name if parent.path else name
            entry, fresh = self._child(path, found.get(name))
            self.names.append(
                Name(parent.inode.ino, name, entry.inode.ino, entry.inode.mode >> _DTYPE_SHIFT)
            )
            if stat.S_ISDIR(entry.inode.mode):
                parent.inode.nlink += 1
                entry.inode.nlink = 2
            if fresh:
                yield entry

    def _child(self, path: bytes, found: os.DirEntry[bytes] | None) -> tuple[SourceEntry, bool]:
        content = self._additions.files.get(path)
        if content is not None:
            entry = self._new(path, b"", stat.S_IFREG | 0o644, 0)
            entry.content = content
            entry.inode.size = len(content)
            return entry, True
        if found is None:
            mode = self._additions.directories.get(path, 0o755)
            return self._new(path, b"", stat.S_IFDIR | mode, 0), True
        status = found.stat(follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO):
            raise UsageError(
                "cannot be sealed: neither file, directory, symlink nor FIFO",
                stage="build",
                subject=os.fsdecode(found.path),
                hint="remove it from the tree; devices and sockets are made at run time",
            )
        if path in self._additions.directories and kind != stat.S_IFDIR:
            raise UsageError(
                "a mount point must be a directory",
                stage="build",
                subject=os.fsdecode(found.path),
            )
        identity = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and kind == stat.S_IFREG and identity in self._seen:
            entry = self._seen[identity]
            entry.inode.nlink += 1
            return entry, False
        regular = kind == stat.S_IFREG
        mtime_s = int(status.st_mtime_ns // _SECOND) if regular else 0
        entry = self._new(path, found.path, kind | (status.st_mode & 0o7777), mtime_s)
        if kind == stat.S_IFLNK:
            entry.inode.mode = stat.S_IFLNK | 0o777
            entry.target = os.readlink(found.path)
            entry.inode.size = len(entry.target)
        elif regular:
            entry.inode.size = status.st_size
            if status.st_nlink > 1:
                self._seen[identity] = entry
        if kind != stat.S_IFLNK:
            entry.xattrs = _user_xattrs(found.path)
        return entry, True


def _user_xattrs(path: bytes) -> list[tuple[bytes, bytes]]:
    """Return the ``user.*`` attributes; the others speak of the host, not of the program."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return []  # the file system has no attributes
    return sorted(
        (os.fsencode(name), os.getxattr(path, name, follow_symlinks=False))
        for name in names
        if name.startswith("user.")
    )


def _read(fd: int, length: int, entry: SourceEntry) -> bytes:
    parts = []
    while length:
        part = os.read(fd, length)
        if not part:
            raise _changed(entry)
        parts.append(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _changed(entry: SourceEntry) -> UsageError:
    return UsageError(
        "the file changed while it was being sealed",
        stage="build",
        subject=os.fsdecode(entry.host_path),
        hint="build again when nothing writes to the tree",
    )
