# SPDX-License-Identifier: Apache-2.0
"""The same random operations on the file system in memory and on the kernel's tmpfs.

After each operation both must have answered alike (result or errno), and at the end both trees
must be alike: types, modes, owners, link counts, sizes, content, targets, extended attributes.
"""

from __future__ import annotations

import ctypes
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from serdab.linux.files import renameat2
from serdab.linux.libc import check, libc

pytestmark = [pytest.mark.fuse, pytest.mark.root]

Step: TypeAlias = tuple[str, tuple[object, ...]]

NAMES = ("a", "b", "c", "d1", "d2")
FOLDERS = ("", "d1", "d2", "d1/d1", "d1/d2", "d2/d2")
SIZES = (0, 1, 511, 4095, 4096, 4097, 65536, 131071, 131072, 131073, 300_000)


class Subject:
    """One of the two trees, with descriptors that are kept open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[int, int] = {}

    def at(self, name: str) -> str:
        return os.path.join(self.root, name)

    def close(self) -> None:
        for fd in self.files.values():
            os.close(fd)

    def apply(self, step: Step) -> object:
        """Return what a program sees of one operation."""
        name, arguments = step
        try:
            return getattr(self, f"do_{name}")(*arguments)
        except OSError as exc:
            return f"errno {exc.errno}"

    def do_open(self, slot: int, path: str, flags: int, mode: int) -> object:
        if slot in self.files:
            os.close(self.files.pop(slot))
        self.files[slot] = os.open(self.at(path), flags | os.O_NONBLOCK, mode)
        return stat.S_IFMT(os.fstat(self.files[slot]).st_mode)

    def _fd(self, slot: int) -> int:
        return self.files.get(slot, 1_000_000)  # EBADF where none is open

    def do_pwrite(self, slot: int, data: bytes, offset: int) -> object:
        return os.pwrite(self._fd(slot), data, offset)

    def do_pread(self, slot: int, count: int, offset: int) -> object:
        fd = self._fd(slot)
        if slot in self.files:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, count, offset)

    def do_ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self._fd(slot), size)

    def do_fallocate(self, slot: int, mode: int, offset: int, length: int) -> object:
        return check(
            libc.fallocate(self._fd(slot), mode, ctypes.c_long(offset), ctypes.c_long(length)), ""
        )

    def do_fsync(self, slot: int) -> None:
        os.fsync(self._fd(slot))

    def do_fstat(self, slot: int) -> object:
        return self._status(os.fstat(self._fd(slot)))

    def do_copy(self, slot: int, target: int, count: int, offset: int, offset_out: int) -> object:
        return os.copy_file_range(self._fd(slot), self._fd(target), count, offset, offset_out)

    def do_truncate(self, path: str, size: int) -> None:
        os.truncate(self.at(path), size)

    def do_mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self.at(path), mode)

    def do_rmdir(self, path: str) -> None:
        os.rmdir(self.at(path))

    def do_unlink(self, path: str) -> None:
        os.unlink(self.at(path))

    def do_rename(self, path: str, target: str, flags: int) -> None:
        renameat2(-100, os.fsencode(self.at(path)), -100, os.fsencode(self.at(target)), flags)

    def do_link(self, path: str, target: str) -> None:
        os.link(self.at(path), self.at(target), follow_symlinks=False)

    def do_symlink(self, target: str, path: str) -> None:
        os.symlink(target, self.at(path))

    def do_mknod(self, path: str, mode: int) -> None:
        os.mknod(self.at(path), mode)

    def do_chmod(self, path: str, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def do_chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(self.at(path), uid, gid, follow_symlinks=False)

    def do_utime(self, path: str, stamp: int) -> object:
        os.utime(self.at(path), ns=(stamp, stamp), follow_symlinks=False)
        return os.lstat(self.at(path)).st_mtime_ns

    def do_lstat(self, path: str) -> object:
        return self._status(os.lstat(self.at(path)))

    def do_listdir(self, path: str) -> object:
        return sorted(os.listdir(self.at(path)))

    def do_setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self.at(path), name, value, flags)

    def do_getxattr(self, path: str, name: str) -> object:
        return os.getxattr(self.at(path), name)

    def do_removexattr(self, path: str, name: str) -> None:
        os.removexattr(self.at(path), name)

    @staticmethod
    def _status(status: os.stat_result) -> object:
        is_sized = stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)
        return (
            oct(status.st_mode),
            status.st_nlink,
            status.st_uid,
            status.st_gid,
            status.st_size if is_sized else None,
        )

    def tree(self) -> dict[str, object]:
        """Return all that there is to see."""
        found: dict[str, object] = {}
        for folder, folders, names in os.walk(self.root):
            for name in (".", *folders, *names):
                path = os.path.join(folder, name)
                status = os.lstat(path)
                entry: list[object] = [self._status(status)]
                if stat.S_ISREG(status.st_mode):
                    fd = os.open(path, os.O_RDONLY)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                    entry.append(os.pread(fd, 1 << 22, 0))
                    os.close(fd)
                    entry += [(key, os.getxattr(path, key)) for key in sorted(os.listxattr(path))]
                elif stat.S_ISLNK(status.st_mode):
                    entry.append(os.readlink(path))
                found[os.path.relpath(path, self.root)] = entry
        return found


def steps(chance: random.Random, count: int, *, set_id: bool = True) -> list[Step]:
    """Return random operations that often meet each other; ``set_id``: bits on files, too."""

    def path() -> str:
        return os.path.join(chance.choice(FOLDERS), chance.choice(NAMES))

    def slot() -> int:
        return chance.randrange(4)

    def size() -> int:
        return chance.choice(SIZES)

    access = (os.O_RDWR, os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_APPEND)
    creation = (0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC, os.O_TRUNC)
    makers: list[tuple[int, str, Callable[[], tuple[object, ...]]]] = [
        (9, "open", lambda: (slot(), path(), chance.choice(access) | chance.choice(creation),
                             chance.choice((0o600, 0o666, 0o755)))),
        (9, "pwrite", lambda: (slot(), chance.randbytes(size()), size())),
        (6, "pread", lambda: (slot(), size(), size())),
        (2, "ftruncate", lambda: (slot(), size())),
        (2, "fallocate", lambda: (slot(), chance.choice((0, 1, 3)), size(), size())),
        (1, "fsync", lambda: (slot(),)),
        (4, "fstat", lambda: (slot(),)),
        (2, "copy", lambda: (slot(), slot(), size(), size(), size())),
        (2, "truncate", lambda: (path(), size())),
        (6, "mkdir", lambda: (path(), chance.choice((0o755, 0o2775, 0o700)))),
        (2, "rmdir", lambda: (path(),)),
        (4, "unlink", lambda: (path(),)),
        (7, "rename", lambda: (path(), path(), chance.choice((0, 0, 1, 2, 3)))),
        (4, "link", lambda: (path(), path())),
        (2, "symlink", lambda: (chance.choice(("a", "d1/b", "none", "x" * 300)), path())),
        (1, "mknod", lambda: (path(), stat.S_IFIFO | 0o644)),
        (3, "chmod", lambda: (path(), chance.choice(
            (0o644, 0o755, 0o750, 0o1777, 0o6755 if set_id else 0o700)))),
        (3, "chown", lambda: (path(), *chance.choice(
            ((-1, -1), (-1, 0), (-1, 8), (0, -1), (7, -1), (7, 8))))),
        (1, "utime", lambda: (path(), chance.choice((0, 10**18, 1_234_567_890_123_456_789)))),
        (5, "lstat", lambda: (path(),)),
        (2, "listdir", lambda: (chance.choice(FOLDERS),)),
        (2, "setxattr", lambda: (path(), f"user.{chance.randrange(2)}",
                                 chance.randbytes(chance.choice((0, 5, 3000))),
                                 chance.choice((0, 0, 1, 2)))),
        (1, "getxattr", lambda: (path(), f"user.{chance.randrange(2)}")),
        (1, "removexattr", lambda: (path(), f"user.{chance.randrange(2)}")),
    ]  # fmt: skip
    weights = [weight for weight, _, _ in makers]
    return [(name, make()) for _, name, make in chance.choices(makers, weights=weights, k=count)]


@pytest.mark.parametrize("seed", range(12))
def test_random_operations_answer_as_tmpfs_does(mem: Path, tmpfs: Path, seed: int) -> None:
    ours, theirs = Subject(mem), Subject(tmpfs)
    history: list[Step] = []
    try:
        for step in steps(random.Random(seed), 1500):
            history.append(step)
            answer, expected = ours.apply(step), theirs.apply(step)
            assert answer == expected, f"seed {seed}, step {len(history)}: {step!r:.300}"
        assert ours.tree() == theirs.tree()
    finally:
        ours.close()
        theirs.close()
