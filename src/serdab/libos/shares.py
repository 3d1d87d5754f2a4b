# SPDX-License-Identifier: Apache-2.0
"""How the memory limit of an instance is divided among what its programs make us keep. Pure.

Above: ``boot``, ``mounts``. Beside ``limits``, which binds the programs themselves.

Of a limit M: the file systems in memory take a quarter each of M, /dev/shm, those of the
configuration together, and those that programs mount together; so programs are left with a quarter
of it even where all three are full. What fs servers take is counted apart, so that no program's
memory ends one: each mount of a program stands for ``MOUNT_BYTES``, and there are as many as fit
into M. A temporary writable layer lies in the memory of its server; it has ``writable_size``, or M.
Without a limit only counts bind, and file systems in memory have the kernel's default, half of the
memory there is (tmpfs(5)).
"""

from __future__ import annotations

from typing import Final

from serdab.structs import frozen

#: What the fs server of a mount takes at most: its caches are sized for that.
MOUNT_BYTES: Final = 24 << 20
#: So many mounts are admitted under any limit.
LEAST_MOUNTS: Final = 4
#: The servers of root and init FS, their nursery, the host directories of the configuration.
BASE_BYTES: Final = 384 << 20
_PARTS: Final = 4
_LEAST_RAMFS: Final = 64 << 10


@frozen
class Shares:
    """The shares of a limit, None: there is none. ``ramfs_count`` are configured."""

    memory_bytes: int | None
    ramfs_count: int = 0

    @property
    def shm_bytes(self) -> int | None:
        """The size of /dev/shm."""
        return None if self.memory_bytes is None else self.memory_bytes // _PARTS

    @property
    def ramfs_bytes(self) -> int | None:
        """The size of each file system in memory that the configuration names."""
        if self.memory_bytes is None or not self.ramfs_count:
            return None
        return self.memory_bytes // _PARTS // self.ramfs_count

    def layer_bytes(self, writable_size: int | None) -> int:
        """Return the size of a writable layer in memory; 0: the default."""
        return writable_size or self.memory_bytes or 0

    def mounts(self, wanted: int) -> int:
        """Return how many mounts there may be, where the configuration admits ``wanted``."""
        if self.memory_bytes is None:
            return wanted
        return min(wanted, max(LEAST_MOUNTS, self.memory_bytes // MOUNT_BYTES))

    def servers_bytes(self, mounts: int, layer_bytes: int) -> int:
        """Return what all fs servers take at most."""
        return BASE_BYTES + mounts * MOUNT_BYTES + 2 * layer_bytes


class RamfsShares:
    """The sizes of what programs mount in memory: each gets half of what is left."""

    def __init__(self, memory_bytes: int | None) -> None:
        self._left = None if memory_bytes is None else memory_bytes // _PARTS

    def take(self) -> int | None:
        """Return a size; None: without a limit; 0: nothing is left."""
        if self._left is None:
            return None
        size = self._left // 2 & ~0xFFF
        if size < _LEAST_RAMFS:
            return 0
        self._left -= size
        return size

    def give_back(self, size: int | None) -> None:
        """A file system of that size is gone, and nobody is in it any more."""
        if self._left is not None and size is not None:
            self._left += size


def tmpfs_options(size_bytes: int | None) -> str:
    """Return the mount options for a size, with as many inodes as pages; "" for the default."""
    if size_bytes is None:
        return ""
    # An empty file takes no page, but memory of the kernel.
    return f",size={size_bytes},nr_inodes={max(size_bytes >> 12, 64)}"
