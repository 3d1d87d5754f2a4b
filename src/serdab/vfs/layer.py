# SPDX-License-Identifier: Apache-2.0
"""What the union asks of its layers. ``sefs`` implements both protocols.

A writable layer over a lower one is a *delta on inodes*, not on paths: an inode keeps its number
when it is first changed, the upper layer holds only the records, names and chunks that differ.
So renaming a lower directory writes two names, changing the mode of a huge file writes one inode
record, hard links and inode numbers hold by construction.

Above: ``union``. Below: ``api``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from serdab.vfs.api import Inode, StatFs
from serdab.vfs.steps import Chores, Steps


class Dirent(NamedTuple):
    """The target of a name. ``ino`` 0 is a whiteout: the lower layer's name is gone."""

    ino: int
    dtype: int


WHITEOUT: Final = Dirent(0, 0)


class Layer(Protocol):
    """A tree of files that can be read."""

    @property
    def max_ino(self) -> int:
        """The highest inode number in use."""
        ...

    @property
    def root_mac(self) -> bytes:
        """32 bytes that stand for the exact content."""
        ...

    @property
    def has_acls(self) -> bool:
        """Whether it can hold POSIX ACLs."""
        ...

    def inode(self, ino: int) -> Inode | None:
        """Return a fresh copy of the record, or None."""
        ...

    def dirent(self, parent: int, name: bytes) -> Dirent | None: ...

    def dirents(self, parent: int, position: int) -> Iterator[tuple[int, bytes, Dirent]]:
        """Yield (position, name, entry) from ``position`` on, ordered by (position, name)."""
        ...

    def target(self, ino: int) -> bytes:
        """Return the target of a symbolic link."""
        ...

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        """Return a value with its leading marker byte; empty bytes say that it was removed."""
        ...

    def xattrs(self, ino: int, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield (name, value with its marker byte) of the names after one, in order."""
        ...

    def read_into(self, ino: int, offset: int, buf: memoryview) -> int:
        """Fill ``buf`` with content; return the count, short at end of file only."""
        ...

    def data_ranges(self, ino: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the (start, end) ranges that are stored, clipped to the given one, in order.

        Empty ones are signs of progress: before them is nothing that was not yielded.
        """
        ...

    def stored_bytes(self) -> int:
        """Return the bytes this layer takes on the host."""
        ...

    def close(self) -> None: ...


class WritableLayer(Layer, Protocol):
    """A layer that takes changes. It knows its lower layer: unwritten parts are read from there."""

    def taken_bytes(self, inode: Inode) -> int:
        """Return how much of a file's content takes space, not more than its size."""
        ...

    def is_measured(self, inode: Inode) -> bool:
        """Return whether ``taken_bytes`` answers at once."""
        ...

    def measure(self, inode: Inode) -> Iterator[None]:
        """Do the steps after which ``taken_bytes`` answers at once."""
        ...

    def held_bytes(self, inode: Inode, start: int, end: int) -> int:
        """Return how much of a range this layer stores for this file alone."""
        ...

    @property
    def chores(self) -> Chores:
        """What is left to do while nobody waits; who does a step of it calls ``next``."""
        ...

    def let_be_served(self) -> None:
        """From now on somebody does the chores, one step between two requests."""
        ...

    def live_inode(self, ino: int) -> Inode | None:
        """Return *the* object of an inode with unsaved changes, or None."""
        ...

    def admit(self, growth: int = 0, rewritten: int = 0) -> None:
        """Called before an operation changes anything: the one place that may refuse it.

        ``growth`` is about how many bytes it adds; 0 for what only takes away or rewrites;
        ``rewritten`` is how many bytes of content it stores in place of others.

        Raises:
            FsError: ENOSPC (no room to make the change durable) or EROFS.
        """
        ...

    def new_ino(self) -> int: ...

    def put_inode(self, inode: Inode) -> None:
        """The record changed. The object is read again when the change is saved."""
        ...

    def drop_inode(self, inode: Inode) -> None:
        """Forget the record, content, attributes and whiteouts; the names are gone already.

        Of what takes long the rest becomes a chore, and the inode an orphan until it is done.
        """
        ...

    def put_orphan(self, ino: int) -> None:
        """The inode has no name left but is in use; a crash must free it."""
        ...

    def clear_orphan(self, ino: int) -> None:
        """The inode has a name again."""
        ...

    def put_dirent(self, parent: int, name: bytes, entry: Dirent) -> None: ...

    def remove_dirent(self, parent: int, name: bytes) -> None: ...

    def put_target(self, ino: int, target: bytes) -> None: ...

    def put_xattr(self, ino: int, name: bytes, marked: bytes) -> None: ...

    def remove_xattr(self, ino: int, name: bytes) -> None: ...

    def read(self, inode: Inode, offset: int, buf: memoryview) -> int:
        """Like ``read_into``, for an inode that this layer has changed."""
        ...

    def write(self, inode: Inode, offset: int, data: memoryview) -> None:
        """Store content. The caller sets ``inode.size`` afterwards."""
        ...

    def truncate(self, inode: Inode, size: int) -> Iterator[None]:
        """Forget content from ``size`` on, in steps, from the end: the inode's size follows.

        The caller sets ``inode.size`` afterwards.
        """
        ...

    def punch(self, inode: Inode, offset: int, length: int) -> Iterator[None]:
        """Make a range read as zeros and free what it held, in steps, from its start."""
        ...

    def common_chunk(self, source: Inode, into: Inode) -> int:
        """Return how long the chunks are that one file may have of another, without a copy.

        0: it can have none.
        """
        ...

    def share(self, source: Inode, first: int, into: Inode, start: int, count: int) -> int:
        """Let chunks of a file, numbered from ``start`` on, be those of another one.

        The caller sets the size of ``into`` afterwards: behind it must be nothing, if the last
        chunk goes to the end of the source. Returns how many were shared.

        Raises:
            FsError: ENOSPC, or the host failed.
        """
        ...

    def ranges(self, inode: Inode, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Like ``data_ranges``, for an inode that this layer has changed."""
        ...

    def commit(self) -> None:
        """Make everything answered so far durable.

        Raises:
            OSError: the host failed; what was not durable before still is not.
        """
        ...

    def commit_steps(self) -> Steps[None]:
        """Like ``commit``, in steps."""
        ...

    def tick(self) -> float | None: ...

    def statfs(self) -> StatFs: ...
