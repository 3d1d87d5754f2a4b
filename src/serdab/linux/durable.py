# SPDX-License-Identifier: Apache-2.0
"""Files of the user's own directories, by their paths: whole, and on disk, or not there.

Above: ``trust``, ``instance``. Below: ``dirfd``, which does it for every other directory.
"""

from __future__ import annotations

import os

from serdab.linux.dirfd import DirFd


def write_durably(path: str, content: bytes, *, mode: int = 0o600) -> None:
    """Replace the file at ``path`` in one step; it is on disk, with its name, on return.

    Raises:
        OSError: it cannot be written; the error names ``path``.
    """
    directory, name = os.path.split(path)
    try:
        with DirFd.at(directory or ".") as place:
            place.replace_whole(name, content, mode=mode)
    except OSError as exc:
        exc.filename = path
        raise


def create_durably(path: str, content: bytes, *, mode: int = 0o600) -> bool:
    """Create the file at ``path`` whole or not at all; return False if one was there before.

    Content and name are on disk on return, so whatever is derived from them may be used.

    Raises:
        OSError: it cannot be written; the error names ``path``.
    """
    directory, name = os.path.split(path)
    try:
        with DirFd.at(directory or ".") as place:
            return place.create_whole(name, content, mode=mode)
    except OSError as exc:
        exc.filename = path
        raise


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    with DirFd.at(path or ".") as place:
        place.sync()
