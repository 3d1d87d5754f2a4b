# SPDX-License-Identifier: Apache-2.0
"""Host directories by what the caller has of them: a path that the user named, or a descriptor.

Above: whoever opens an image or a volume. Below: ``hostdir``, ``linux.dirfd``.
"""

from __future__ import annotations

import os

from serdab.linux.dirfd import DirFd
from serdab.sefs.hostdir import HostDir

Place = os.PathLike[str] | DirFd
"""Where a sealed file system lies. A ``DirFd`` stays the caller's."""


def open_place(place: Place) -> HostDir:
    """Open a host directory, by a descriptor of its own: locks belong to what open(2) made.

    Raises:
        UsageError: a path that leads to no directory.
    """
    if not isinstance(place, DirFd):
        return HostDir.at(place)
    again = place.again()
    return HostDir(again.fd, again.path)


def label_of(place: Place) -> str:
    """Return what messages call it."""
    return place.path if isinstance(place, DirFd) else os.fspath(place)


def writable_place(place: Place) -> DirFd:
    """Open a host directory to write to, a path made if it is missing."""
    if isinstance(place, DirFd):
        return place.again()
    os.makedirs(place, mode=0o755, exist_ok=True)
    return DirFd.at(str(place))
