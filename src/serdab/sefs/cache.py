# SPDX-License-Identifier: Apache-2.0
"""A least-recently-used cache bounded by the bytes it holds. Above: readers of records."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


_most_bytes = sys.maxsize


def cap_caches(most_bytes: int) -> None:
    """Let caches that are made from now on hold no more; for a process with little memory."""
    global _most_bytes
    _most_bytes = most_bytes


class ByteCache(Generic[K, V]):
    """Maps keys to values, each of a stated size in bytes."""

    __slots__ = ("_entries", "_limit", "_used")

    def __init__(self, limit_bytes: int) -> None:
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._limit = min(limit_bytes, _most_bytes)
        self._used = 0

    def get(self, key: K) -> V | None:
        """Return the value and mark it as used, or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, size_bytes: int) -> None:
        """Keep a value; the least recently used ones make room."""
        old = self._entries.pop(key, None)
        if old is not None:
            self._used -= old[1]
        self._entries[key] = (value, size_bytes)
        self._used += size_bytes
        while self._used > self._limit and len(self._entries) > 1:
            _, (_, freed) = self._entries.popitem(last=False)
            self._used -= freed

    def drop(self, key: K) -> None:
        """Forget a key, if it is there."""
        old = self._entries.pop(key, None)
        if old is not None:
            self._used -= old[1]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._used = 0
