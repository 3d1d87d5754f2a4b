# SPDX-License-Identifier: Apache-2.0
"""Applies a commit of the intent log to what is in memory; nothing is written to the host.

Above: ``journal``. Below: ``items``, ``content``.
"""

from __future__ import annotations

from serdab.errors import FormatError
from serdab.sefs import keyspace as ks
from serdab.sefs.content import Content
from serdab.sefs.intentlog import Commit
from serdab.sefs.items import Items
from serdab.vfs.api import Inode


def replay(commit: Commit, items: Items, content: Content, version: int) -> None:
    """Apply what a commit says, in its order: discards, items, small writes.

    Raises:
        FormatError: an authentic commit that cannot be.
    """
    for ino, first, end in commit.discards:
        content.replay_discard(ino, first, end)
    content.references.begin_replay()
    for key, value in commit.items:
        if len(key) < 9:
            raise FormatError("log item with an impossible key")
        if key[8] == ks.T_EXTENTS:
            ino, group = int.from_bytes(key[:8], "big"), int.from_bytes(key[9:], "big")
            content.replay_extents(ino, group, value or b"")
            continue
        if key[8] == ks.T_SHARED:
            content.references.item_replayed(key)
        items.put(key, value)
        if key[8] == ks.T_INLINE:
            content.replay_inline(int.from_bytes(key[:8], "big"))
        elif key[8] == ks.T_INODE:
            _replay_inode(content, int.from_bytes(key[:8], "big"), value, version)
    content.references.replayed()
    for ino, offset, raw in commit.writes:
        content.replay_write(content.live_inode(ino) or _inode(items, ino, version), offset, raw)
    content.save_extents()
    items.pending.clear()


def _replay_inode(content: Content, ino: int, value: bytes | None, version: int) -> None:
    if value is None:
        content.replay_drop(ino)
        return
    # An inode with dirty content is one object: it takes the newer record.
    live = content.live_inode(ino)
    if live is not None:
        ks.copy_inode(ks.parse_inode(ino, value, version), live)


def _inode(items: Items, ino: int, version: int) -> Inode:
    raw = items.get(ks.key(ino, ks.T_INODE))
    if raw is None:
        raise FormatError("log write to no inode", subject=f"inode {ino}")
    return ks.parse_inode(ino, raw, version)
