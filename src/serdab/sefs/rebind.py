# SPDX-License-Identifier: Apache-2.0
"""Proves that two images hold the same, and lets a volume above the one belong to the other.

An image that is sealed anew (by another format version, compressor or option) has another root MAC,
and a volume names the root MAC of what it lies above. What it takes from there is (inode, offset):
so it fits another image if that one has the same inodes under the same numbers, and no other.

Above: ``instance.rebind``. Below: ``image``, ``volume``.

Security:
    1. Both images verify, each up to a root MAC that came from elsewhere: the old one's from the
       sealed anchor of the volume, the new one's from the signed configuration.
    2. Everything is compared, to the last byte: records but for what a version or a builder decides
       (whether content is inline, how long records are, whether a parent is recorded), names,
       attributes, targets, content.
    3. The moment that counts is the anchor of a checkpoint, which is written as any other: up to it
       the volume belongs to the old image, from it on to the new one. A second one follows, so that
       damage of the newest slot does not bring the old one back.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Final

from serdab.errors import LayerMismatch
from serdab.sefs import keyspace as ks
from serdab.sefs.image import Image
from serdab.sefs.page import Item
from serdab.sefs.volume import Volume
from serdab.vfs.api import Inode

_UNIT: Final = 1 << 20
_END: Final = b"\xff" * 9
_COMPARED: Final = frozenset((ks.T_INODE, ks.T_XATTR, ks.T_DIRENT))
_FIELDS: Final = (
    "mode", "nlink", "uid", "gid", "rdev", "size", "atime_ns", "mtime_ns", "ctime_ns", "btime_ns",
    "lower_limit",
)  # fmt: skip

Progress = Callable[[int], None]


def prove_same(old: Image, new: Image, progress: Progress | None = None) -> None:
    """Compare two images. ``progress`` is called with the content bytes compared so far.

    Raises:
        LayerMismatch: they do not hold the same; it says where.
        AuthenticationError, FormatError: one of them is damaged.
    """
    if (old.max_ino, old.files) != (new.max_ino, new.files):
        raise _differs("the number of inodes", f"{old.max_ino}", f"{new.max_ino}")
    done = 0
    for one, other in zip_longest(_items(old), _items(new)):
        if one is None or other is None or one[0] != other[0]:
            raise _differs(_named(one, other), "the same item", "another, or none")
        key, value = one
        ino = int.from_bytes(key[:8], "big")
        if key[8] != ks.T_INODE:
            if value != other[1]:
                raise _differs(_named(one, other), "the same value", "another")
            continue
        inode = ks.parse_inode(ino, value, old.version)
        _compare_records(inode, ks.parse_inode(ino, other[1], new.version))
        if stat.S_ISLNK(inode.mode) and old.target(ino) != new.target(ino):
            raise _differs(f"inode {ino}", "the same target", "another")
        if stat.S_ISREG(inode.mode):
            _compare_content(old, new, inode)
            done += inode.size
            if progress is not None:
                progress(done)


def _items(image: Image) -> Iterator[Item]:
    for key, value in image.tree.scan(b"", _END):
        if len(key) > 8 and key[8] in _COMPARED:
            yield key, value


def _compare_records(one: Inode, other: Inode) -> None:
    for field in _FIELDS:
        expected, found = getattr(one, field), getattr(other, field)
        if expected != found:
            raise _differs(f"inode {one.ino}", f"{field} {expected}", f"{field} {found}")
    # A parent is not in the records of version 1.
    if one.parent_ino and other.parent_ino and one.parent_ino != other.parent_ino:
        raise _differs(f"inode {one.ino}", f"parent {one.parent_ino}", f"parent {other.parent_ino}")


def _compare_content(old: Image, new: Image, inode: Inode) -> None:
    expected, found = bytearray(_UNIT), bytearray(_UNIT)
    for start in range(0, inode.size, _UNIT):
        count = min(_UNIT, inode.size - start)
        with memoryview(expected) as one, memoryview(found) as other:
            old.read_into(inode.ino, start, one[:count])
            new.read_into(inode.ino, start, other[:count])
            if one[:count] != other[:count]:
                raise _differs(f"inode {inode.ino}", f"the same bytes from {start} on", "others")


def _named(one: Item | None, other: Item | None) -> str:
    key = (one or other or (b"",))[0]
    return f"inode {int.from_bytes(key[:8], 'big')}, an item of kind {key[8]}"


def _differs(subject: str, expected: str, found: str) -> LayerMismatch:
    return LayerMismatch(
        "the image does not hold what the one holds that the writable layer belongs to",
        subject=subject,
        expected=expected,
        found=found,
        hint="`serdab run --previous` opens the layer over its own image: copy out what is to be "
        "kept; `serdab reset` throws the layer away",
    )


def rebind(volume: Volume, lower: Image) -> None:
    """Let a volume belong to another image from now on; durable on return.

    Preconditions: the image was proved to hold what the volume's own one holds.

    Raises:
        FsError: the host refused; the volume belongs to the one or to the other.
    """
    volume.belong_to(lower.root_mac)
    volume.checkpoint()
    volume.checkpoint()
