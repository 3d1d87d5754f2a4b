# SPDX-License-Identifier: Apache-2.0
"""What happens to the attributes of an inode, as Linux's own file systems do it. Pure.

Above: ``union``. Below: ``api``.
"""

from __future__ import annotations

import stat
from typing import Final

from serdab.vfs.api import NOW_NS, Inode

_MIN_NS: Final = -(1 << 63)
_MAX_NS: Final = (1 << 63) - 1


def clamped_time(when_ns: int) -> int:
    """Clamp a time to what is stored, as timestamp_truncate() of the kernel does."""
    return max(_MIN_NS, min(when_ns, _MAX_NS))


def stored_time(when_ns: int, now_ns: int) -> int:
    """Return what is stored of a time of SetAttr."""
    return now_ns if when_ns == NOW_NS else clamped_time(when_ns)


def one_name_less(inode: Inode) -> None:
    """Count a name less; an image may have lied about their number."""
    inode.nlink = max(inode.nlink - 1, 0)


def drop_suidgid(inode: Inode) -> None:
    """Clear what a write by somebody else must clear (chown(2), write(2))."""
    if stat.S_ISDIR(inode.mode):
        return
    inode.mode &= ~stat.S_ISUID
    if inode.mode & stat.S_IXGRP:
        inode.mode &= ~stat.S_ISGID
