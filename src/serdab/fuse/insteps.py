# SPDX-License-Identifier: Apache-2.0
"""The operations of a file system that may take long, in steps: its own, or in one if it has none.

Above: ``operations``. Below: a :class:`~serdab.vfs.api.FileSystem`, ``vfs.steps``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, final

from serdab.vfs.api import DirEntry, FileSystem, Inode, SetAttr
from serdab.vfs.steps import Steps

_FORGOTTEN: Final = 128
"""So many inodes are forgotten in one step."""


@final
class InSteps:
    """Every method is the generator of the operation of its name."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        if hasattr(fs, "stepwise"):
            fs.stepwise = True
        self.setattr: Callable[[int, SetAttr], Steps[Inode]] = self._steps("setattr")
        self.fallocate: Callable[[int, int, int, int], Steps[None]] = self._steps("fallocate")
        self.lseek: Callable[[int, int, int], Steps[int]] = self._steps("lseek")
        self.listxattr: Callable[[int], Steps[list[bytes]]] = self._steps("listxattr")
        self.fsync: Callable[..., Steps[None]] = self._steps("fsync")
        self.syncfs: Callable[[], Steps[None]] = self._steps("syncfs")
        self.readdir: Callable[[int, int], Iterator[DirEntry | int]] = getattr(
            fs, "readdir_steps", fs.readdir
        )

    def _steps(self, name: str) -> Callable[..., Any]:
        own: Callable[..., Any] | None = getattr(self._fs, f"{name}_steps", None)
        return own or _in_one(getattr(self._fs, name))

    def forget(
        self, forgotten: Iterable[tuple[int, int]], is_gone: Callable[[int], None]
    ) -> Steps[None]:
        """Forget (nodeid, nlookup) pairs. What else is counted meanwhile adds up all the same.

        ``is_gone`` is told of those that the kernel holds no more.
        """
        for count, (nodeid, nlookup) in enumerate(forgotten, 1):
            if self._fs.forget(nodeid, nlookup):
                is_gone(nodeid)
            if count % _FORGOTTEN == 0:
                yield None


def _in_one(plain: Callable[..., Any]) -> Callable[..., Any]:
    def steps(*arguments: Any, **named: Any) -> Steps[Any]:  # noqa: ANN401 - as it has them
        yield from ()  # none at all
        return plain(*arguments, **named)

    return steps
