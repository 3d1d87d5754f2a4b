# SPDX-License-Identifier: Apache-2.0
"""A writable sealed volume as a layer: inodes, names, attributes and content by number.

Above: ``vfs.union`` (as the upper layer, or alone), ``fsck``. Below: ``journal`` (how it becomes
durable), ``items``, ``content``.

Threads: one.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from typing import Final, final

from serdab.errors import Error, FormatError, FsError, UsageError
from serdab.keys import Key
from serdab.sefs import keyspace as ks
from serdab.sefs.anchor import (
    ANCHOR_NAME,
    MAX_SOURCE,
    Anchor,
    AnchorState,
    load_anchor,
    volume_keys,
)
from serdab.sefs.anchorfile import NEW_ANCHOR
from serdab.sefs.boundeddir import BoundedDir, limits_for, whole_size
from serdab.sefs.hostdir import Dir
from serdab.sefs.hostplace import Place, open_place
from serdab.sefs.items import Items
from serdab.sefs.journal import Journal
from serdab.sefs.limits import DEFAULT_LIMITS, VolumeLimits, fitted
from serdab.sefs.lowerbinding import bind
from serdab.sefs.memorydir import MemoryDir
from serdab.sefs.page import Item
from serdab.sefs.position import History, Position, checkpoint_mac, logged_mac
from serdab.sefs.removals import Removals
from serdab.sefs.segment import Usage
from serdab.sefs.sharing import Sharing
from serdab.sefs.slots import LowerPart
from serdab.sefs.tree import Tree
from serdab.vfs.acl import ACL_NAMES
from serdab.vfs.api import ROOT_INO, Inode, StatFs
from serdab.vfs.layer import Dirent, Layer
from serdab.vfs.steps import Chores, Steps

CHUNK_SIZE: Final = 32 << 10
PAGE_SIZE: Final = 8 << 10
_DONE: Final = object()

log = logging.getLogger("serdab.sefs")


@final
class Volume:
    """Implements :class:`serdab.vfs.layer.WritableLayer`."""

    def __init__(
        self,
        directory: Dir,
        key: Key,
        anchor: Anchor | None,
        *,
        source: bytes,
        lower: Layer | None,
        read_only: bool,
        chunk_size: int = CHUNK_SIZE,
        page_size: int = PAGE_SIZE,
        limits: VolumeLimits = DEFAULT_LIMITS,
        heir_of: Position | None = None,
        version: int = ks.V2,
    ) -> None:
        """``version``, like the sizes, counts where there is no ``anchor`` yet."""
        self.lower = lower
        self.version = version if anchor is None else anchor.version
        if anchor is None:
            begin = heir_of or Position(os.urandom(16), 0, 0, bytes(16))
            self.uuid = begin.uuid
            self._source = source
            first = lower.max_ino + 1 if lower is not None else ROOT_INO
            state = AnchorState(
                epoch=0, sequence=begin.sequence, chain=begin.chain,
                root=b"", root_level=0, table=b"",
                next_ino=first, next_segment=1, next_log=1, log=0, log_salt=b"",
                lower=(lower.root_mac,) if lower is not None else (),
                chunk_size=chunk_size, page_size=page_size, live_bytes=0,
                previous=bytes(16),
            )  # fmt: skip
        else:
            self.uuid = anchor.uuid
            self._source = anchor.source
            state = anchor.state
        self._journal = Journal(
            directory,
            volume_keys(key, self.uuid, self.version),
            state,
            version=self.version,
            uuid=self.uuid,
            source=self._source,
            tag=anchor.tag if anchor is not None else None,
            lower=lower,
            read_only=read_only,
            limits=limits,
        )
        self._orphans: set[int] = set()
        self._items = self._journal.items
        self._content = self._journal.content
        self._live_inodes = self._journal.inodes
        self.chores: Chores = self._journal.ahead.chores
        self._removals = Removals(self._journal, self.chores, self._forget, self._keep_as_orphan)
        self._sharing = Sharing(self._content, self.version)

    def recover(self, *, tolerant: bool = False) -> None:
        """Check the root and replay the log. ``tolerant``: leave damage for fsck to report."""
        self._journal.recover(tolerant=tolerant)
        if not tolerant:
            self._removals.take_up(self.inode, self._orphans)

    # Layer: reading -----------------------------------------------------------------------

    @property
    def has_acls(self) -> bool:
        return self.version != ks.V1

    @property
    def max_ino(self) -> int:
        return self._journal.next_ino - 1

    @property
    def root_mac(self) -> bytes:
        """The MAC of the last checkpoint."""
        return checkpoint_mac(self.version, self.uuid, self.state)

    @property
    def state(self) -> AnchorState:
        """What the newest checkpoint says."""
        return self._journal.state

    @property
    def read_only(self) -> bool:
        """Whether nothing is ever written."""
        return self._journal.read_only

    @property
    def log_problem(self) -> Error | None:
        """Why the log could not be read to its end; only a volume opened ``tolerant`` has one."""
        return self._journal.log_problem

    @property
    def history(self) -> History:
        """What is remembered of this volume's past, and who is told of its present."""
        return self._journal.history

    @property
    def position(self) -> Position | None:
        """Where the durable state stands; None while nothing of the volume is on the host."""
        return self._journal.position

    @property
    def durable_mac(self) -> bytes:
        """The MAC of the last durable state: that of its checkpoint, unless commits followed."""
        position = self.position
        if position is None or position.sequence == self.state.sequence:
            return self.root_mac
        return logged_mac(self.version, self.root_mac, position)

    def contradicts(self, earlier: Position) -> bool:
        """Return whether the history of this volume shows another state at an earlier position."""
        return self.history.contradicts(earlier, self.uuid, self.state, self._journal.tag)

    def inode(self, ino: int) -> Inode | None:
        raw = self._items.get(ks.key(ino, ks.T_INODE))
        return None if raw is None else ks.parse_inode(ino, raw, self.version)

    def dirent(self, parent: int, name: bytes) -> Dirent | None:
        raw = self._items.get(ks.dirent_key(parent, name))
        return None if raw is None else ks.parse_dirent(raw)

    def dirents(self, parent: int, position: int) -> Iterator[tuple[int, bytes, Dirent]]:
        start = ks.dirent_start(parent, position)
        for key, value in self._items.scan(ks.key(parent, ks.T_DIRENT), start):
            yield *ks.parse_dirent_key(key), ks.parse_dirent(value)

    def target(self, ino: int) -> bytes:
        return self._items.get(ks.key(ino, ks.T_INLINE)) or b""

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        marked = self._items.get(ks.xattr_key(ino, name))
        return marked if marked is None else ks.check_xattr(name, marked, self.version)

    def xattrs(self, ino: int, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        start = ks.xattr_key(ino, after) + b"\0" if after else b""
        for key, value in self._items.scan(ks.key(ino, ks.T_XATTR), start):
            yield key[9:], ks.check_xattr(key[9:], value, self.version)

    def read_into(self, ino: int, offset: int, buf: memoryview) -> int:
        inode = self.live_inode(ino) or self.inode(ino)
        return 0 if inode is None else self._content.read(inode, offset, buf)

    def data_ranges(self, ino: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        inode = self.live_inode(ino) or self.inode(ino)
        return iter(()) if inode is None else self._content.ranges(inode, start, end)

    def read(self, inode: Inode, offset: int, buf: memoryview) -> int:
        return self._content.read(inode, offset, buf)

    def ranges(self, inode: Inode, start: int, end: int) -> Iterator[tuple[int, int]]:
        return self._content.ranges(inode, start, end)

    def taken_bytes(self, inode: Inode) -> int:
        return self._content.taken_bytes(inode)

    def held_bytes(self, inode: Inode, start: int, end: int) -> int:
        return self._content.held_bytes(inode, start, end)

    def stored_bytes(self) -> int:
        return self._journal.segments.used_bytes

    def statfs(self) -> StatFs:
        total, free = self._journal.room()
        # posix_fallocate(3) writes a byte into each unit.
        unit = 4096
        return StatFs(
            unit, total // unit, free // unit, 1 << 32, (1 << 32) - self._journal.next_ino
        )

    # WritableLayer: changing --------------------------------------------------------------

    def live_inode(self, ino: int) -> Inode | None:
        return self._live_inodes.get(ino) or self._content.live_inode(ino)

    def new_ino(self) -> int:
        ino = self._journal.next_ino
        if ino > ks.MAX_INO:
            raise FsError(errno.ENOSPC)
        self._journal.next_ino += 1
        self._items.young.add(ino.to_bytes(8, "big"))
        return ino

    def put_inode(self, inode: Inode) -> None:
        self._journal.put_inode(inode)

    def drop_inode(self, inode: Inode) -> None:
        self._removals.drop(inode)

    def _forget(self, ino: int) -> None:
        """Of an inode there is nothing left."""
        self._journal.inodes.pop(ino, None)
        self._items.drop(ks.key(ino, ks.T_INODE))
        if ino in self._orphans:
            self.clear_orphan(ino)
        self._journal.touch()

    def _keep_as_orphan(self, inode: Inode) -> None:
        """An inode is gone, and not all of it: whatever ends this, the next session goes on."""
        self.put_inode(inode)
        if inode.ino not in self._orphans:
            self.put_orphan(inode.ino)

    def put_orphan(self, ino: int) -> None:
        self._orphans.add(ino)
        self._journal.orphans.add(ino)
        self._journal.touch()

    def clear_orphan(self, ino: int) -> None:
        self._orphans.discard(ino)
        if ino in self._journal.orphans:
            self._journal.orphans.remove(ino)  # most are forgotten before a commit sees them
        else:
            self._items.put(ks.orphan_key(ino), None)
        self._journal.touch()

    def put_dirent(self, parent: int, name: bytes, entry: Dirent) -> None:
        self._items.put(ks.dirent_key(parent, name), ks.dump_dirent(entry))
        self._journal.touch()

    def remove_dirent(self, parent: int, name: bytes) -> None:
        self._items.put(ks.dirent_key(parent, name), None)
        self._journal.touch()

    def put_target(self, ino: int, target: bytes) -> None:
        self._items.put(ks.key(ino, ks.T_INLINE), target)
        self._journal.touch()

    def put_xattr(self, ino: int, name: bytes, marked: bytes) -> None:
        if name in ACL_NAMES:
            if self.version == ks.V1:
                raise FsError(errno.EOPNOTSUPP)
            try:
                ks.check_xattr(name, marked, self.version)
            except FormatError:
                raise FsError(errno.EINVAL) from None
        self._items.put(ks.xattr_key(ino, name), marked)
        self._journal.touch()

    def remove_xattr(self, ino: int, name: bytes) -> None:
        self._items.put(ks.xattr_key(ino, name), None)
        self._journal.touch()

    def write(self, inode: Inode, offset: int, data: memoryview) -> None:
        with self._journal.host_errors:
            self._content.write(inode, offset, data)
        self._journal.touch()

    def truncate(self, inode: Inode, size: int) -> Iterator[None]:
        return self._changing(self._content.truncate_steps(inode, size))

    def punch(self, inode: Inode, offset: int, length: int) -> Iterator[None]:
        return self._changing(self._content.punch_steps(inode, offset, length))

    def _changing(self, steps: Iterator[None]) -> Iterator[None]:
        while True:
            with self._journal.host_errors:
                is_done = next(steps, _DONE) is _DONE
            if is_done:
                self._journal.touch()
                return
            # A piece is done; the next one is admitted like any change.
            self._journal.touch()
            yield
            self._journal.admit()

    def is_measured(self, inode: Inode) -> bool:
        return self._content.is_measured(inode)

    def measure(self, inode: Inode) -> Iterator[None]:
        return self._content.measure_steps(inode)

    def common_chunk(self, source: Inode, into: Inode) -> int:
        return self._sharing.common_chunk(source, into)

    def share(self, source: Inode, first: int, into: Inode, start: int, count: int) -> int:
        with self._journal.host_errors:
            done = self._sharing.share(source, first, into, start, count)
        self._journal.touch()
        return done

    # Version 2: nothing of this is reached from outside yet, but by sharing ----------------

    def set_record_size(self, inode: Inode, size: int) -> None:
        """See :meth:`Sharing.set_record_size`."""
        self._sharing.set_record_size(inode, size)
        self.put_inode(inode)

    def reserve(self, inode: Inode, first: int, count: int) -> None:
        """See :meth:`Sharing.reserve`."""
        self._sharing.reserve(inode, first, count)
        self._journal.touch()

    def refer_below(self, inode: Inode, chunk: int, part: LowerPart) -> None:
        """See :meth:`Sharing.refer_below`; the caller sets the size afterwards."""
        self._sharing.refer_below(inode, chunk, part)
        self._journal.touch()

    # Durability ---------------------------------------------------------------------------

    def admit(self, growth: int = 0, rewritten: int = 0) -> None:
        self._journal.admit(growth, rewritten)

    def let_be_served(self) -> None:
        self._journal.ahead.is_served = True

    def commit(self) -> None:
        self._journal.commit()

    def commit_steps(self) -> Steps[None]:
        return self._journal.commit_steps()

    def tick(self) -> float | None:
        return self._journal.tick()

    def close(self) -> None:
        if not self._journal.read_only:
            self._removals.finish()
        self._journal.close()

    def abandon(self) -> None:
        """Close without writing: the host keeps what was found, as after a refusal."""
        self._journal.abandon()

    def checkpoint(self, *, above_epoch: int = 0) -> None:
        """Make everything durable as a volume that is closed; its number will be greater.

        Raises:
            FsError: the host refused.
        """
        self._journal.history.begin_above(above_epoch)
        self._journal.checkpoint()

    def belong_to(self, root_mac: bytes) -> None:
        """Name another lower layer from the next checkpoint on: one that holds the same."""
        self._journal.anchor.name_lower(root_mac)

    # What fsck asks -----------------------------------------------------------------------

    @property
    def current_items(self) -> Items:
        """All items as they are now."""
        return self._items

    def slot(self, ino: int, chunk: int) -> bytes:
        """Return the extent slot of a chunk."""
        return self._content.slot(ino, chunk)

    def shared_records(self) -> dict[tuple[int, int], int]:
        """Return how many extents name each record, (segment, number), that several do."""
        return self._content.references.all_shared()

    @property
    def reserved_bytes(self) -> int:
        """What extents that are reserved and not written will take, as it is counted."""
        return self._journal.segments.reserved_bytes

    def usage_by_segment(self) -> dict[int, Usage]:
        """Return how much of each segment is used and live, as it is counted."""
        return self._journal.segments.usage

    # Salvage ------------------------------------------------------------------------------

    @property
    def source(self) -> bytes:
        """Where the key comes from, as the volume remembers it."""
        return self._source

    @property
    def tree(self) -> Tree:
        """The tree of the newest checkpoint."""
        return self._items.tree

    def items_now(self, stored: Callable[[Tree], Iterator[Item]]) -> Iterator[Item]:
        """Yield all items as they are now; ``stored`` reads those of the tree."""
        changed = self._items.mem
        for key, value in stored(self._items.tree):
            if key not in changed:
                yield key, value
        for key, newer in self._items.changes():
            if newer is not None:
                yield key, newer

    def logged_writes(self) -> list[tuple[int, int, bytes]]:
        """Return (ino, offset, content) of what the log holds and no item does.

        Called before :meth:`items_now`, whose inodes and extents fit it then.
        """
        self._journal.save_items()
        return self._content.uncommitted()

    def restore_item(self, key: bytes, value: bytes, version: int) -> None:
        """Put an item of another volume, of that version, as it is.

        Raises:
            FormatError: an inode record that this version of the format cannot hold, or none can.
        """
        if version != self.version and key[8] == ks.T_INODE:
            inode = ks.parse_inode(int.from_bytes(key[:8], "big"), value, version)
            value = ks.dump_inode(inode, self.version)
        self._items.put(key, value)
        self._journal.touch()

    def restore_counter(self, next_ino: int) -> None:
        """Number new inodes from here on."""
        self._journal.next_ino = max(self._journal.next_ino, next_ino)

    def copy_group(self, into: Volume, ino: int, group: int) -> Iterator[tuple[int, str]]:
        """Copy the chunks of an extent item; yield (chunk, problem) of those that do not verify."""
        yield from self._content.records.copy_group(into._content.records, ino, group)
        into._journal.touch()


def open_volume(
    path: Place,
    *,
    key: Key,
    lower: Layer | None = None,
    create: bool = False,
    read_only: bool = False,
    source: bytes = b"{}",
    chunk_size: int = CHUNK_SIZE,
    page_size: int = PAGE_SIZE,
    limits: VolumeLimits = DEFAULT_LIMITS,
    tolerant: bool = False,
    heir_of: Position | None = None,
    version: int = ks.V2,
) -> Volume:
    """Open the volume in a host directory, under a lock (shared if read-only).

    ``create`` makes a new one of an empty directory; nothing else is ever formatted over.
    ``source`` is stored, authenticated but in clear: where the key comes from. ``tolerant`` opens
    a volume whose tree or log is damaged, for fsck. ``heir_of`` is the state of another volume
    whose history a new one goes on with (see ``volumecopy``). ``version`` is that of the format in
    which a new one is made.

    Raises:
        UsageError: no such directory.
        FormatError: not a volume, and not empty.
        WrongKeyError, AuthenticationError, BusyError.
        LayerMismatch: the volume belongs to another lower layer.
    """
    return open_volume_in(
        open_place(path), key=key, lower=lower, create=create, read_only=read_only,
        source=source, chunk_size=chunk_size, page_size=page_size, limits=limits,
        tolerant=tolerant, heir_of=heir_of, version=version,
    )  # fmt: skip


def open_volume_in(
    directory: Dir,
    *,
    key: Key,
    lower: Layer | None = None,
    create: bool = False,
    read_only: bool = False,
    source: bytes = b"{}",
    chunk_size: int = CHUNK_SIZE,
    page_size: int = PAGE_SIZE,
    limits: VolumeLimits = DEFAULT_LIMITS,
    tolerant: bool = False,
    heir_of: Position | None = None,
    version: int = ks.V2,
) -> Volume:
    """Open the volume in an open directory; see :func:`open_volume`."""
    try:
        if len(source) > MAX_SOURCE:
            raise UsageError("the key source is too long", found=f"{len(source)} bytes")
        directory.lock(exclusive=not read_only)
        names = set(directory.names())
        anchor = None
        if ANCHOR_NAME in names:
            file = directory.open(ANCHOR_NAME)
            try:
                anchor, _, problems = load_anchor(file, key, directory.label)
            finally:
                file.close()
            for problem in problems:
                log.warning("%s/anchor: %s; the other slot is used", directory.label, problem)
            anchor = bind(anchor, lower, directory.label)
        elif not create or names - {NEW_ANCHOR}:
            raise FormatError(
                "not a sealed volume",
                subject=directory.label,
                expected="an anchor, or an empty directory" if create else "an anchor",
                found="neither" if create else "none",
                hint="a directory that holds anything is never formatted over",
            )
        volume = Volume(
            directory, key, anchor, source=source, lower=lower, read_only=read_only,
            chunk_size=chunk_size, page_size=page_size,
            limits=fitted(limits, directory.free_bytes()[0]), heir_of=heir_of, version=version,
        )  # fmt: skip
        volume.recover(tolerant=tolerant)
    except BaseException:
        directory.close()
        raise
    return volume


def memory_volume(lower: Layer | None) -> Volume:
    """Return a volume that ends with the process, under a random key."""
    return open_volume_in(MemoryDir(), key=Key.generate(), lower=lower, create=True)


def bounded_volume(lower: Layer | None, max_bytes: int) -> Volume:
    """Return one whose live data takes at most so much memory; writes beyond it get ENOSPC."""
    directory = BoundedDir(whole_size(max_bytes))
    limits = limits_for(max_bytes)
    return open_volume_in(directory, key=Key.generate(), lower=lower, create=True, limits=limits)
