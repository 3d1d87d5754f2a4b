# SPDX-License-Identifier: Apache-2.0
"""The file systems in memory that programs mount: their sizes, and when those are free again.

Above: ``mounts``. Below: ``shares``, ``linux.shutdowns``. A size is given back when the file system
is shut down, not when it is unmounted: whoever has a file open keeps all of it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import final

from serdab.libos.intake import CallError
from serdab.libos.loop import Loop
from serdab.libos.shares import RamfsShares, tmpfs_options
from serdab.linux.shutdowns import Shutdowns

_OPTIONS = "source=ramfs,mode=1777"


@final
class RamfsMounts:
    """``memory_bytes()`` returns the memory limit of the instance, None: there is none."""

    def __init__(self, loop: Loop, memory_bytes: Callable[[], int | None]) -> None:
        self._loop = loop
        self._memory_bytes = memory_bytes
        self._shares: RamfsShares | None = None
        self._shutdowns: Shutdowns | None = None
        self._sizes: dict[int, int] = {}

    def take(self) -> int | None:
        """Return the size of one that is about to be mounted, None: the kernel's default.

        Raises:
            CallError: ENOSPC, the share of the memory limit is used up.
        """
        if self._shares is None:
            self._shares = RamfsShares(self._memory_bytes())
        size = self._shares.take()
        if size == 0:
            reason = (
                "mount: what programs mount in memory has its share of the memory limit already "
                "(resource_limits.user_space_max_size)"
            )
            raise CallError(errno.ENOSPC, reason)
        return size

    def mounted(self, root_fd: int, size: int | None) -> None:
        """Watch one that was mounted with a size that was taken."""
        if size is None:
            return
        try:
            if self._shutdowns is None:
                self._shutdowns = Shutdowns()
                self._loop.watch(self._shutdowns.fileno(), self._readable)
            self._sizes[self._shutdowns.watch(root_fd)] = size
        except OSError:
            return  # no more watches for this user: the size stays taken while the instance lives

    def not_mounted(self, size: int | None) -> None:
        """Give back what was taken for one that was not mounted."""
        if self._shares is not None:
            self._shares.give_back(size)

    def _readable(self) -> None:
        if self._shutdowns is not None and self._shares is not None:
            for number in self._shutdowns.read():
                self._shares.give_back(self._sizes.pop(number, None))

    def end(self) -> None:
        """The sandbox is gone."""
        if self._shutdowns is not None:
            self._loop.unwatch(self._shutdowns.fileno())
            self._shutdowns.close()
            self._shutdowns = None


def options(size: int | None) -> str:
    """Return the options of such a mount."""
    return _OPTIONS + tmpfs_options(size)
