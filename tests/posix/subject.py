# SPDX-License-Identifier: Apache-2.0
"""One of two trees that get the same operations, and all that a program sees of it.

Only the standard library: this runs inside an instance too. What file systems may answer
differently is left out here (access times, sizes of directories, how finely holes are told), or
turned into what must be alike: a time is either one that was set, or "now". tmpfs leaves times
alone where ext4 does not (truncation to the size that is there), so times count beside ext4 only.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

Step: TypeAlias = tuple[str, tuple[object, ...]]

BLOCK: Final = 4096
_NONE_OPEN: Final = 1_000_000  # EBADF where no descriptor is open
_SET_BEFORE_NS: Final = 1_600_000_000 * 10**9  # what steps set lies before, any "now" after it
_AT_FDCWD: Final = -100

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


@contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Be another user for the file system; root comes back (only root calls this)."""
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def when(time_ns: int) -> int | str:
    """Return a time that a step has set, or "now": clocks of two file systems differ."""
    return time_ns if time_ns < _SET_BEFORE_NS else "now"


class Subject:
    """A tree, with descriptors and mappings that are kept open."""

    def __init__(self, root: Path, *, timed: bool = False) -> None:
        self.root = root
        self.timed = timed
        self.files: dict[int, int] = {}
        self.held: dict[int, mmap.mmap] = {}

    def at(self, name: object) -> str:
        return os.path.join(self.root, str(name))

    def close(self) -> None:
        """Close what is open: a file system can be unmounted then."""
        for held in self.held.values():
            held.close()
        for fd in self.files.values():
            os.close(fd)
        self.held.clear()
        self.files.clear()

    def apply(self, step: Step) -> object:
        """Return what a program sees of one operation."""
        name, arguments = step
        try:
            return getattr(self, f"do_{name}")(*arguments)
        except OSError as exc:
            return errno.errorcode.get(exc.errno or 0, str(exc.errno))

    def do_as(self, uid: int, gid: int, step: Step) -> object:
        with acting_as(uid, gid):
            return self.apply(step)

    # Open files ---------------------------------------------------------------------------

    def _fd(self, slot: int) -> int:
        return self.files.get(slot, _NONE_OPEN)

    def do_open(self, slot: int, path: str, flags: int, mode: int) -> object:
        if slot in self.files:
            os.close(self.files.pop(slot))
        self.files[slot] = os.open(self.at(path), flags | os.O_NONBLOCK, mode)
        return stat.S_IFMT(os.fstat(self.files[slot]).st_mode)

    def do_materialise(self, slot: int, path: str) -> None:
        """linkat(2) of an open file: how one made with O_TMPFILE gets a name."""
        os.link(f"/proc/self/fd/{self._fd(slot)}", self.at(path), follow_symlinks=True)

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
        offset_c, length_c = ctypes.c_long(offset), ctypes.c_long(length)
        return _check(_libc.fallocate(self._fd(slot), mode, offset_c, length_c))

    def do_fsync(self, slot: int) -> None:
        os.fsync(self._fd(slot))

    def do_fstat(self, slot: int) -> object:
        return self._status(os.fstat(self._fd(slot)))

    def do_copy(self, slot: int, target: int, count: int, offset: int, offset_out: int) -> object:
        return os.copy_file_range(self._fd(slot), self._fd(target), count, offset, offset_out)

    def do_store(self, slot: int, place: int, data: bytes, synced: bool) -> object:
        """Store through a shared mapping, which stays until the next one or an `unmap`.

        Not ``synced``, nobody has told the file system yet.
        """
        self.do_unmap(slot)
        fd = self._fd(slot)
        status = os.fstat(fd)
        size = min(status.st_size, 1 << 20)
        if not (stat.S_ISREG(status.st_mode) and size):
            return "nothing to map"
        held = self.held[slot] = mmap.mmap(fd, size)
        place %= size
        part = data[: size - place]
        held[place : place + len(part)] = part
        if synced:
            held.flush()
        return len(part)

    def do_unmap(self, slot: int) -> None:
        if slot in self.held:
            self.held.pop(slot).close()

    def do_seek(self, slot: int, offset: int, whence: int) -> object:
        """Where the next data or hole is: how finely is ours to choose, what is true is not."""
        fd = self._fd(slot)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return "no file"  # a directory's offsets are its own affair
        size = status.st_size
        try:
            found = os.lseek(fd, offset, whence)
        except OSError as exc:
            if not (exc.errno == errno.ENXIO and whence == os.SEEK_DATA and offset < size):
                raise
            found = size  # a hole up to the end
        if not offset <= found <= size:
            return f"{found} is not between {offset} and {size}"
        if whence == os.SEEK_DATA and any(os.pread(fd, min(found - offset, 1 << 20), offset)):
            return f"data before {found}"
        return "there"

    # Names --------------------------------------------------------------------------------

    def do_truncate(self, path: str, size: int) -> None:
        os.truncate(self.at(path), size)

    def do_mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self.at(path), mode)

    def do_rmdir(self, path: str) -> None:
        os.rmdir(self.at(path))

    def do_unlink(self, path: str) -> None:
        os.unlink(self.at(path))

    def do_rename(self, path: str, target: str, flags: int) -> None:
        names = os.fsencode(self.at(path)), os.fsencode(self.at(target))
        _check(_libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], flags))

    def do_link(self, path: str, target: str) -> None:
        os.link(self.at(path), self.at(target), follow_symlinks=False)

    def do_symlink(self, target: str, path: str) -> None:
        os.symlink(target, self.at(path))

    def do_readlink(self, path: str) -> object:
        return os.readlink(self.at(path))

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

    def do_stat(self, path: str) -> object:
        return self._status(os.stat(self.at(path)))

    def do_access(self, path: str, mode: int) -> object:
        return os.access(self.at(path), mode, effective_ids=True)

    def do_listdir(self, path: str) -> object:
        """Names and types as getdents64(2) says them; inode numbers must be those of stat(2)."""
        listed = []
        with os.scandir(self.at(path)) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                kind = (entry.is_dir(follow_symlinks=False), entry.is_symlink())
                listed.append((entry.name, kind, entry.inode() == status.st_ino))
        return sorted(listed)

    def do_setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self.at(path), name, value, flags)

    def do_getxattr(self, path: str, name: str) -> object:
        return os.getxattr(self.at(path), name)

    def do_removexattr(self, path: str, name: str) -> None:
        os.removexattr(self.at(path), name)

    def do_listxattr(self, path: str) -> object:
        return sorted(name for name in os.listxattr(self.at(path)) if name.startswith("user."))

    # All there is -------------------------------------------------------------------------

    def _status(self, status: os.stat_result) -> tuple[object, ...]:
        is_sized = stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)
        return (
            oct(status.st_mode),
            status.st_nlink,
            status.st_uid,
            status.st_gid,
            status.st_size if is_sized else None,
            when(status.st_mtime_ns) if self.timed else None,
        )

    def tree(self) -> dict[str, object]:
        """Return all that there is to see."""
        found: dict[str, object] = {}
        first_names: dict[int, str] = {}
        for folder, folders, names in os.walk(self.root):
            folders.sort()
            for name in (".", *folders, *sorted(names)):
                path = os.path.join(folder, name)
                status = os.lstat(path)
                entry: list[object] = [self._status(status)]
                if stat.S_ISREG(status.st_mode):
                    entry.append(content(path))
                elif stat.S_ISLNK(status.st_mode):
                    entry.append(os.readlink(path))
                if not stat.S_ISLNK(status.st_mode):
                    entry += [(key, os.getxattr(path, key)) for key in sorted(os.listxattr(path))]
                relative = os.path.relpath(path, self.root)
                if not stat.S_ISDIR(status.st_mode):  # which names are the same file
                    entry.append(first_names.setdefault(status.st_ino, relative))
                found[relative] = entry
        return found


def content(path: str) -> dict[int, bytes]:
    """Return the blocks that are not zero, by offset; holes are skipped as cp(1) skips them."""
    blocks: dict[int, bytes] = {}
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        size, place = os.fstat(fd).st_size, 0
        while place < size:
            try:
                start = os.lseek(fd, place, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno != errno.ENXIO:
                    raise
                break  # nothing but a hole up to the end
            place = os.lseek(fd, start, os.SEEK_HOLE)
            for offset in range(start - start % BLOCK, place, BLOCK):
                block = os.pread(fd, BLOCK, offset)
                if any(block):
                    blocks[offset] = block
    finally:
        os.close(fd)
    return blocks
