# SPDX-License-Identifier: Apache-2.0
"""Walks a source tree in the one order that an image is written in.

Entries of a directory are sorted by their bytes; all of a directory's entries get their inode
numbers before the walk goes down into its first subdirectory. Hard links are one inode, at the
first visit. Nothing of the host gets in: no owner, inode number, directory time or order.

Security: the tree is a descriptor, and others may rename in it. A directory is gone into, and a
file is read, only as what was listed: same device and inode number, a file a regular one. A hard
link to a file elsewhere is content like any other.

Above: ``imagebuild``, which takes a tree from whoever is a :class:`Source`: from the host here,
from another image in ``imagesource``. Below: the source tree on the host.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

from serdab.errors import UsageError
from serdab.linux.dirfd import DirFd, word_for
from serdab.linux.dirtree import Descent, listing
from serdab.linux.files import next_data
from serdab.linux.identity import identity, identity_of
from serdab.structs import field, frozen, mutable
from serdab.vfs.acl import ACL_NAMES, dump_acl, parse_unordered
from serdab.vfs.api import ROOT_INO, Inode
from serdab.vfs.attributes import clamped_time

_SECOND: Final = 1_000_000_000
_DTYPE_SHIFT: Final = 12
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_CHANGED: Final = frozenset({errno.ELOOP, errno.ENOENT, errno.ENXIO, errno.EISDIR})


@mutable
class SourceEntry:
    """One inode of the image to be. ``content`` replaces the file at ``path`` on the host.

    ``host``: (st_dev, st_ino) of what stands there, None for what is added.
    """

    inode: Inode
    path: bytes
    host: tuple[int, int] | None
    content: bytes | None = None
    target: bytes = b""
    xattrs: list[tuple[bytes, bytes]] = field(default_factory=list)


@frozen
class Name:
    """One directory entry of the image to be."""

    parent: int
    name: bytes
    ino: int
    dtype: int


@frozen
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
        """Yield the content of a regular file in pieces of ``unit`` bytes, the last one shorter.

        Of a file of several pieces, one that lies in a hole may be empty.
        """
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
#: Is told of what cannot be sealed: its path, and what it is.
LeftOut = Callable[[bytes, str], None]


class Walk:
    """Produces entries and names. ``clamp_s`` is the latest mtime in seconds, or None.

    Without ``left_out`` a device or a socket is an error. ``close`` it: it holds a descriptor of
    the directory where it is.
    """

    def __init__(
        self,
        source: DirFd,
        additions: Additions,
        *,
        clamp_s: int | None,
        owner: Owner,
        left_out: LeftOut | None = None,
    ) -> None:
        self._here = Descent(source)
        self._additions = additions
        self._clamp_s = clamp_s
        self._owner = owner
        self._left_out = left_out
        self._next_ino = ROOT_INO
        self._seen: dict[tuple[int, int], SourceEntry] = {}
        self.names: list[Name] = []

    def close(self) -> None:
        """Let go of the tree."""
        self._here.close()

    def entries(self) -> Iterator[SourceEntry]:
        """Yield each inode once. ``nlink`` is final when the walk is over."""
        status = os.fstat(self._here.fd)
        root = self._new(b"", identity_of(status), status.st_mode, 0)
        root.inode.nlink = 2
        root.inode.parent_ino = ROOT_INO
        root.xattrs = _kept_xattrs(self._here.fd, ".")
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
        fd = self._open(entry)
        with open(fd, "rb", buffering=0):
            data = 0  # where the next content begins, from here on
            for start in range(0, size, unit):
                end = min(start + unit, size)
                if data < end and size > unit:
                    data = next_data(fd, start, size)
                if data >= end:
                    yield b""
                    continue
                yield self._read(fd, start, end, entry)
            if os.fstat(fd).st_size != size:
                raise self._changed(entry)

    def _open(self, entry: SourceEntry) -> int:
        """Open the file that was listed, and nothing else that may have got its name since."""
        above, _, name = entry.path.rpartition(b"/")
        directory = self._here.go(os.fsdecode(above))
        try:
            fd = os.open(name, _READ, dir_fd=directory)
        except PermissionError as exc:
            label = self._here.label(os.fsdecode(name))
            raise PermissionError(exc.errno, exc.strerror, label) from exc
        except OSError as exc:
            if exc.errno in _CHANGED:
                raise self._changed(entry) from exc
            raise
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or identity_of(status) != entry.host:
            os.close(fd)
            raise self._changed(entry)
        return fd

    def _read(self, fd: int, start: int, end: int, entry: SourceEntry) -> bytes:
        parts = []
        while start < end:
            part = os.pread(fd, end - start, start)
            if not part:
                raise self._changed(entry)
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _changed(self, entry: SourceEntry) -> UsageError:
        name = entry.path.rpartition(b"/")[2]
        return UsageError(
            "the file changed while it was being sealed",
            stage="build",
            subject=self._here.label(os.fsdecode(name)),
            hint="build again when nothing writes to the tree",
        )

    def _new(
        self, path: bytes, host: tuple[int, int] | None, mode: int, mtime_s: int
    ) -> SourceEntry:
        uid, gid = self._owner(path)
        inode = Inode(self._next_ino, mode, uid, gid)
        self._next_ino += 1
        if self._clamp_s is not None:
            mtime_s = min(mtime_s, self._clamp_s)
        when_ns = clamped_time(mtime_s * _SECOND)
        inode.atime_ns = inode.mtime_ns = inode.ctime_ns = inode.btime_ns = when_ns
        return SourceEntry(inode, path, host)

    def _directory(self, parent: SourceEntry) -> Iterator[SourceEntry]:
        found: dict[bytes, os.DirEntry[str]] = {}
        if parent.host is not None:
            fd = self._here.go(os.fsdecode(parent.path))
            if identity(fd) != parent.host:
                raise self._changed(parent)
            found = {os.fsencode(entry.name): entry for entry in listing(fd)}
        added = self._additions.below(parent.path)
        for name in sorted({*found, *added}):
            path = parent.path + b"/" + name if parent.path else name
            child = self._child(path, found.get(name))
            if child is None:
                continue
            entry, fresh = child
            self.names.append(
                Name(parent.inode.ino, name, entry.inode.ino, entry.inode.mode >> _DTYPE_SHIFT)
            )
            if stat.S_ISDIR(entry.inode.mode):
                parent.inode.nlink += 1
                entry.inode.nlink = 2
                entry.inode.parent_ino = parent.inode.ino
            if fresh:
                yield entry

    def _child(
        self, path: bytes, found: os.DirEntry[str] | None
    ) -> tuple[SourceEntry, bool] | None:
        """Return an entry and whether it is new; None of what is left out."""
        content = self._additions.files.get(path)
        if content is not None:
            entry = self._new(path, None, stat.S_IFREG | 0o644, 0)
            entry.content = content
            entry.inode.size = len(content)
            return entry, True
        if found is None:
            mode = self._additions.directories.get(path, 0o755)
            return self._new(path, None, stat.S_IFDIR | mode, 0), True
        # Of the name as it is in the open directory; what it means later is compared with this.
        status = os.stat(found.name, dir_fd=self._here.fd, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if path in self._additions.directories and kind != stat.S_IFDIR:
            raise UsageError(
                "a mount point must be a directory",
                stage="build",
                subject=self._here.label(found.name),
            )
        if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO):
            if self._left_out is not None:
                self._left_out(path, word_for(status.st_mode))
                return None
            raise UsageError(
                "cannot be sealed: neither file, directory, symlink nor FIFO",
                stage="build",
                subject=self._here.label(found.name),
                hint="remove it from the tree; devices and sockets are made at run time",
            )
        host = identity_of(status)
        is_linked = status.st_nlink > 1 and kind != stat.S_IFDIR
        if is_linked and host in self._seen:
            entry = self._seen[host]
            entry.inode.nlink += 1
            return entry, False
        regular = kind == stat.S_IFREG
        mtime_s = int(status.st_mtime_ns // _SECOND) if regular else 0
        entry = self._new(path, host, kind | (status.st_mode & 0o7777), mtime_s)
        if kind == stat.S_IFLNK:
            entry.inode.mode = stat.S_IFLNK | 0o777
            try:
                entry.target = os.fsencode(os.readlink(found.name, dir_fd=self._here.fd))
            except OSError as exc:
                if exc.errno == errno.EINVAL:
                    raise self._changed(entry) from exc  # no link any more
                raise
            entry.inode.size = len(entry.target)
        elif regular:
            entry.inode.size = status.st_size
        if is_linked:
            self._seen[host] = entry
        if kind != stat.S_IFLNK:
            entry.xattrs = _kept_xattrs(self._here.fd, found.name)
        return entry, True


def _kept_xattrs(directory: int, name: str) -> list[tuple[bytes, bytes]]:
    """Return the ``user.*`` attributes, and the POSIX ACLs without which the mode would allow more;
    the others speak of the host, not of the program.

    There is no getxattrat(2) before Linux 6.13, and a file that may not be read has attributes too:
    so by the magic link of the directory, and of the name itself, which may be a link by now.
    """
    path = f"/proc/self/fd/{directory}/{name}"
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:
            raise
        return []  # the file system has no attributes
    found = (
        (os.fsencode(attribute), os.getxattr(path, attribute, follow_symlinks=False))
        for attribute in names
        if attribute.startswith("user.") or os.fsencode(attribute) in ACL_NAMES
    )
    return sorted(
        # Users and groups stand in any order in an ACL of a kernel's file system.
        (name, dump_acl(parse_unordered(value)) if name in ACL_NAMES else value)
        for name, value in found
    )
