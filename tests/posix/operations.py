# SPDX-License-Identifier: Apache-2.0
"""Random operations that often meet each other, and the tree that they begin with."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from serdab.vfs.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry, dump_acl
from tests.posix.subject import Step

NAMES: Final = ("a", "b", "c", "d1", "d2")
FOLDERS: Final = ("", "d1", "d2", "d1/d1", "d1/d2", "d2/d2", "s")
SIZES: Final = (0, 1, 511, 4095, 4096, 4097, 32768, 65536, 131071, 131072, 131073, 300_000)
OTHER_USER: Final = (7, 8)

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
_STAMPS: Final = (0, 10**18, 1_234_567_890_123_456_789, 1)

_ACL_NAMES: Final = ("system.posix_acl_access", "system.posix_acl_default")


def _some_acl(chance: random.Random) -> bytes:
    """Return an ACL, often of those that say no more than a mode; now and then none at all."""
    if chance.random() < 0.1:
        return b"\2\0\0\0" + bytes(chance.choice((0, 5, 8)))
    tags = [(tag, 0xFFFFFFFF) for tag in (USER_OBJ, GROUP_OBJ, OTHER)]
    if chance.random() < 0.7:
        tags += [(MASK, 0xFFFFFFFF)]
        tags += chance.sample([(USER, 7), (USER, 9), (GROUP, 8), (GROUP, 70_000)], k=2)
    return dump_acl([AclEntry(tag, chance.randrange(8), name) for tag, name in tags])


Maker = tuple[int, str, Callable[[], tuple[object, ...]]]


def populate(root: Path) -> None:
    """Make what the lower layer holds; both trees begin with it."""
    for folder in ("d1/d1", "d1/d2", "d2"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(("a", "d1/a", "d1/b", "d1/d1/c", "d2/a")):
        (root / name).write_bytes(bytes([65 + number]) * (number * 40_001))
        os.chmod(root / name, (0o644, 0o600, 0o755, 0o444, 0o666)[number])
    (root / "s").symlink_to("d1")
    (root / "d2/b").symlink_to("../d1/b")
    (root / "c").hardlink_to(root / "d1/b")
    for path in (*sorted(root.rglob("*"), reverse=True), root):
        kind = path.lstat().st_mode
        if stat.S_ISDIR(kind):
            path.chmod(0o755)
        # An image keeps the times of files only.
        stamp = 10**18 if stat.S_ISREG(kind) else 0
        os.utime(path, ns=(stamp, stamp), follow_symlinks=False)


def steps(
    chance: random.Random,
    count: int,
    *,
    on_disk: bool = False,
    set_id: bool = True,
    preallocation: bool = False,
    lazy: bool = False,
    executable: bool = True,
) -> list[Step]:
    """Return random operations.

    ``set_id``: with such bits on files. ``preallocation``: with fallocate(2) that promises room,
    which a sealed volume refuses. ``on_disk``: with what ext4 knows and tmpfs does not. ``lazy``:
    what is stored through a mapping may stay in memory; without it, each store is followed by
    msync(2). Not ``executable``: one of the two is mounted noexec, where nobody may execute a file.
    """

    def path() -> str:
        name = os.path.join(chance.choice(FOLDERS), chance.choice(NAMES))
        ending = chance.choices(("", "/", "/.", "/..", "x" * 250), (60, 2, 1, 1, 1))[0]
        return name + ending

    def slot() -> int:
        return chance.randrange(4)

    def size() -> int:
        return chance.choice(SIZES)

    def offset() -> int:
        return chance.choice((*SIZES, 1 << 33)) if chance.random() < 0.1 else size()

    access = (os.O_RDWR, os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_APPEND)
    creation = (
        0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC, os.O_TRUNC, os.O_CREAT,
        os.O_DIRECTORY, os.O_NOFOLLOW,
    )  # fmt: skip
    ranges: tuple[int, ...] = (_PUNCH_HOLE | _KEEP_SIZE,)
    if preallocation:
        ranges += (0, _KEEP_SIZE)
    if on_disk:
        ranges += (_ZERO_RANGE, _ZERO_RANGE | _KEEP_SIZE)
    rights = (os.R_OK, os.W_OK, os.X_OK) if executable else (os.R_OK, os.W_OK)
    makers: list[Maker] = [
        (9, "open", lambda: (slot(), path(), chance.choice(access) | chance.choice(creation),
                             chance.choice((0o600, 0o666, 0o755)))),
        (1, "open", lambda: (slot(), chance.choice(FOLDERS) or ".", os.O_TMPFILE | os.O_RDWR,
                             0o640)),
        (1, "materialise", lambda: (slot(), path())),
        (9, "pwrite", lambda: (slot(), chance.randbytes(size()), offset())),
        (6, "pread", lambda: (slot(), size(), offset())),
        (2, "ftruncate", lambda: (slot(), offset())),
        (3, "fallocate", lambda: (slot(), chance.choice(ranges), size(), size())),
        (1, "fsync", lambda: (slot(),)),
        (4, "fstat", lambda: (slot(),)),
        (2, "copy", lambda: (slot(), slot(), size(), size(), size())),
        (2, "store", lambda: (slot(), size(), chance.randbytes(chance.choice((1, 100, 5000))),
                           not (lazy and chance.random() < 0.5))),
        (2, "unmap", lambda: (slot(),)),
        (3, "seek", lambda: (slot(), offset(), chance.choice((os.SEEK_DATA, os.SEEK_HOLE)))),
        (2, "truncate", lambda: (path(), offset())),
        (6, "mkdir", lambda: (path(), chance.choice((0o755, 0o2775, 0o700)))),
        (2, "rmdir", lambda: (path(),)),
        (4, "unlink", lambda: (path(),)),
        (7, "rename", lambda: (path(), path(), chance.choice((0, 0, 1, 2, 3)))),
        (4, "link", lambda: (path(), path())),
        (2, "symlink", lambda: (chance.choice(("a", "d1/b", "none", "d2", "x" * 300)), path())),
        (1, "readlink", lambda: (path(),)),
        (1, "mknod", lambda: (path(), stat.S_IFIFO | 0o644)),
        (3, "chmod", lambda: (path(), chance.choice(
            (0o644, 0o755, 0o750, 0o1777, 0o6755 if set_id else 0o700)))),
        (3, "chown", lambda: (path(), *chance.choice(
            ((-1, -1), (-1, 0), (-1, 8), (0, -1), (7, -1), (7, 8))))),
        (3, "utime", lambda: (path(), chance.choice(_STAMPS))),
        (5, "lstat", lambda: (path(),)),
        (2, "stat", lambda: (path(),)),
        (1, "access", lambda: (path(), chance.choice(rights))),
        (2, "listdir", lambda: (chance.choice(FOLDERS),)),
        (2, "setxattr", lambda: (path(), f"user.{chance.randrange(2)}",
                                 chance.randbytes(chance.choice((0, 5, 900))),
                                 chance.choice((0, 0, 1, 2)))),
        (1, "getxattr", lambda: (path(), f"user.{chance.randrange(2)}")),
        (1, "removexattr", lambda: (path(), f"user.{chance.randrange(2)}")),
        (1, "listxattr", lambda: (path(),)),
    ]  # fmt: skip
    if on_disk:
        makers += [
            (4, "setxattr", lambda: (path(), chance.choice(_ACL_NAMES), _some_acl(chance),
                                     chance.choice((0, 0, 1, 2)))),
            (2, "getxattr", lambda: (path(), chance.choice(_ACL_NAMES))),
            (1, "removexattr", lambda: (path(), chance.choice(_ACL_NAMES))),
        ]  # fmt: skip
    weights = [weight for weight, _, _ in makers]
    made: list[Step] = []
    for _, name, make in chance.choices(makers, weights=weights, k=count):
        step: Step = (name, make())
        # Mappings are the caller's, whoever that is.
        if chance.random() < 0.15 and name not in ("store", "unmap"):
            step = ("as", (*OTHER_USER, step))
        made.append(step)
    return made
