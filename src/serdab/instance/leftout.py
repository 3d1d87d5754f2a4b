# SPDX-License-Identifier: Apache-2.0
"""Tells what of a tree is not sealed or copied, a line each, and of many the number.

A root file system from elsewhere has devices below dev/, and perhaps sockets: an instance gets its
own at boot. Above: ``treesealer``, ``bomplan``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

_MOST_LINES: Final = 8


@final
class LeftOut:
    """Takes notes, and ``say``s the first of them at once, the number of the others at the end."""

    def __init__(self, tree: str, say: Callable[[str], None]) -> None:
        self._tree = tree
        self._say = say
        self._count = 0

    def note(self, path: str, what: str) -> None:
        """Note what is left out: what messages call it, and what it is."""
        self._count += 1
        if self._count <= _MOST_LINES:
            self._say(f"{path} is {what}: left out")

    def end(self) -> None:
        """Say how many more there were."""
        if self._count > _MOST_LINES:
            self._say(f"{self._tree}: {self._count - _MOST_LINES} more are left out")
