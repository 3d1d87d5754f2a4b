# SPDX-License-Identifier: Apache-2.0
"""Copies a volume under another key, as the next state of the same history.

Above: ``instance.rekey``. Below: ``volume``.

Own content is opened and sealed anew, once. What the volume takes from its lower layer stays a
reference (same inode, same offset), so the new lower layer must hold the same files under the same
numbers. Names, attributes, holes, whiteouts and inode numbers are items that are put as they are.

The copy keeps the uuid and the commit number of the original, its last checkpoint gets the next
number (:func:`close_for_copy` sees to it that it can). To whoever remembers the original
(``trust.freshness``) the copy is a later state of it and the original, from the moment the copy is
remembered, an older one. Had the original been written to in the meantime, both would claim the
same number: that is a fork, and refused.

A copy that was cut off goes on behind its last checkpoint: it holds all items of the original up to
a key, and says, sealed, which state of which volume it is a copy of.

A copy may be of a later version than the original. The parents of directories are not recorded in
version 1: their records say 0 until they change.

Security: the copy's key is another one, or it is of another version, whose keys all differ. So the
same uuid brings no pair of key and nonce back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from serdab.errors import AuthenticationError, Error, FormatError
from serdab.keys import Key
from serdab.linux.dirfd import DirFd
from serdab.sefs import keyspace as ks
from serdab.sefs.anchor import ANCHOR_NAME
from serdab.sefs.hostplace import Place, writable_place
from serdab.sefs.position import Position
from serdab.sefs.slots import stored_bytes
from serdab.sefs.tree import Tree, load_child
from serdab.sefs.volume import Volume, open_volume
from serdab.vfs.layer import Layer

_BATCH_BYTES: Final = 32 << 20
_BATCH_CONTENT: Final = 1 << 30
"""So much of items in memory, or of content in segments: then a checkpoint of the copy takes it."""
_OVERHEAD: Final = 512
_ATTEMPTS: Final = 16
_PUT_AS_THEY_ARE: Final = frozenset((ks.T_INODE, ks.T_INLINE, ks.T_XATTR, ks.T_DIRENT, ks.T_ORPHAN))
_FIRST: Final = b""
_LAST: Final = b"\xff" * 9

Progress = Callable[[int], None]


class _Batches:
    """Says where the copy of a volume makes its checkpoints."""

    def __init__(self) -> None:
        self._bytes = self._content = 0

    def is_full_with(self, key: bytes, value: bytes) -> bool:
        """Count an item; return whether a checkpoint is due after it."""
        self._bytes += len(value) + _OVERHEAD
        if key[8] == ks.T_EXTENTS:
            self._content += stored_bytes(value)
        if self._bytes < _BATCH_BYTES and self._content < _BATCH_CONTENT:
            return False
        self._bytes = self._content = 0
        return True


def _count_batches(original: Volume, start: bytes) -> int:
    batches = _Batches()
    items = original.tree.scan(start, _LAST)
    return sum(batches.is_full_with(key, value) for key, value in items)


def close_for_copy(original: Volume) -> None:
    """Close a volume that is open for writing so that :func:`copy_volume` can number its copy.

    A copy of many batches makes many checkpoints, which count from 0: were the original's number
    smaller, the copy's would leave a gap, into which the original could be written on unseen.

    Raises:
        FsError: the host refused.
    """
    if original.durable_mac != original.root_mac or original.state.log:
        original.checkpoint()
    batches = _count_batches(original, _FIRST)
    least = 2 * batches + _ATTEMPTS if batches else 1
    if original.state.epoch < least:
        original.checkpoint(above_epoch=least)
    original.close()


def copy_volume(
    original: Volume,
    into: Place,
    *,
    key: Key,
    lower: Layer | None,
    source: bytes,
    version: int = ks.V2,
    progress: Progress | None = None,
) -> None:
    """Copy a volume that was closed into the host directory ``into``; durable on return.

    What the directory holds is a part of the same copy, or removed. ``source`` says where the key
    comes from, ``version`` of which format the copy is. ``progress`` is called with the content
    bytes done.

    Raises:
        AuthenticationError, FormatError: something of the original does not verify; or it is of a
            later version than the copy.
        FsError: the host refused.
    """
    if version < original.version:
        raise FormatError(
            "a copy of an older version cannot hold all of it",
            expected=f"version {original.version}",
            found=f"version {version}",
        )
    position = original.position
    if position is None or original.durable_mac != original.root_mac:
        raise FormatError(
            "a volume that was not closed cannot be copied", expected="no commit after its tree"
        )
    with writable_place(into) as place:
        _copy_into(original, position, place, key=key, lower=lower, source=source,
                   version=version, progress=progress)  # fmt: skip


def _copy_into(
    original: Volume,
    position: Position,
    into: DirFd,
    *,
    key: Key,
    lower: Layer | None,
    source: bytes,
    version: int,
    progress: Progress | None,
) -> None:
    copy = _take_up(original, position, into, key=key, lower=lower, version=version)
    if copy is None:
        for name in into.names():
            into.remove(name)
        copy = open_volume(
            into,
            key=key,
            lower=lower,
            create=True,
            source=source,
            chunk_size=original.state.chunk_size,
            page_size=original.state.page_size,
            heir_of=position,
            version=version,
        )
    try:
        if copy.state.epoch <= position.epoch:
            _copy_items(original, copy, progress)
            copy.restore_counter(original.max_ino + 1)
            copy.checkpoint(above_epoch=position.epoch)
    except BaseException:
        copy.abandon()
        raise
    copy.close()


def _take_up(
    original: Volume,
    position: Position,
    into: DirFd,
    *,
    key: Key,
    lower: Layer | None,
    version: int,
) -> Volume | None:
    """Return a copy of just this state that was cut off, if there is one worth going on with."""
    if not into.exists(ANCHOR_NAME):
        return None
    try:
        copy = open_volume(into, key=key, lower=lower)
    except (Error, OSError):
        return None  # whatever it is, it is no work of ours
    state = copy.state
    is_of_this = (copy.version, copy.uuid, state.sequence, state.chain) == (
        version,
        position.uuid,
        position.sequence,
        position.chain,
    )
    left = _count_batches(original, _reached(copy.tree))
    if is_of_this and (state.epoch > position.epoch or state.epoch + left < position.epoch):
        return copy
    copy.abandon()
    return None


def _reached(tree: Tree) -> bytes:
    """Return the last key of the original that a copy holds."""
    if not tree.root.pointer:
        return _FIRST
    page = tree.store.load_page(tree.root.pointer, level=tree.root.level)
    while page.level:
        page = load_child(tree.store, page, len(page.keys) - 1)
    # Without an inode: the copy's own notes, or what is put again at no cost.
    return page.keys[-1] if any(page.keys[-1][:8]) else _FIRST


def _copy_items(original: Volume, copy: Volume, progress: Progress | None) -> None:
    batches = _Batches()
    done = 0
    reached = _reached(copy.tree)
    for key, value in original.tree.scan(reached, _LAST):
        if key == reached:
            continue
        kind = key[8]
        if kind in _PUT_AS_THEY_ARE:
            copy.restore_item(key, value, original.version)
        elif kind == ks.T_EXTENTS:
            _copy_chunks(original, copy, key)
            done += stored_bytes(value)
            if progress is not None:
                progress(done)
        # Who owns the records of a segment is written anew with the records themselves.
        if batches.is_full_with(key, value):
            copy.checkpoint()


def _copy_chunks(original: Volume, copy: Volume, key: bytes) -> None:
    ino, group = int.from_bytes(key[:8], "big"), int.from_bytes(key[9:], "big")
    for chunk, problem in original.copy_group(copy, ino, group):
        raise AuthenticationError(
            "a file of the writable layer is damaged",
            subject=f"inode {ino}, chunk {chunk}",
            found=problem,
            hint="nothing was changed; `serdab fsck` names the file, `fsck --repair` salvages "
            "the rest",
        )
