# SPDX-License-Identifier: Apache-2.0
"""Which ids there are in our own user namespace, and which of them is the machine's root.

euid 0 says neither: root of a container may have one id, or 65536 (user_namespaces(7)).

Above: ``libos.idmaps``. Below: the kernel.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

#: (first, count), as they are called here.
Ranges = tuple[tuple[int, int], ...]
EVERY_ID: Final[Ranges] = ((0, (1 << 32) - 1),)
_NOT_MAPPED: Final = 65534  # overflowuid of proc_sys_kernel(5)
_OF_HOST_ROOT: Final = "/proc/sys/kernel/core_pattern"


def mapped(name: str) -> Ranges:
    """Return the ids that exist here; ``name`` is ``uid_map`` or ``gid_map``."""
    try:
        with open(f"/proc/self/{name}", encoding="ascii") as file:
            lines = [tuple(map(int, line.split())) for line in file]
    except OSError:
        return EVERY_ID  # without /proc nothing starts; that is said elsewhere
    return tuple((first, count) for first, _, count in sorted(lines))


def host_root() -> int | None:
    """Return what kuid 0 is called here; None if nobody here is that.

    A map tells what our 0 is one namespace further out only. So a file is looked at that the kernel
    gives to kuid 0 in every namespace. An id that is not mapped is shown as 65534, so what is
    shown as that counts as none: nobody maps kuid 0 there.
    """
    ids = mapped("uid_map")
    try:
        owner = os.stat(_OF_HOST_ROOT).st_uid
    except OSError:
        owner = 0  # it cannot be told: the worse is assumed
    return owner if owner != _NOT_MAPPED and holds(ids, owner, 1) else None


def holds(ranges: Ranges, first: int, count: int) -> bool:
    """Return whether all of ``count`` ids from ``first`` on are in one of the ranges."""
    return any(start <= first and first + count <= start + size for start, size in ranges)


def without(ranges: Ranges, number: int | None) -> Ranges:
    """Return the ranges without one id."""
    if number is None:
        return ranges
    parts = []
    for first, count in ranges:
        end = first + count
        if first <= number < end:
            parts += [(first, number - first), (number + 1, end - number - 1)]
        else:
            parts.append((first, count))
    return tuple(part for part in parts if part[1])
