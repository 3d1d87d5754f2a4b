# SPDX-License-Identifier: Apache-2.0
"""Renames directories that an overlay keeps in a layer below (an instance in a container's image).

overlayfs refuses that with EXDEV, unless it may note where a directory came from (``redirect_dir``
in the kernel's documentation of overlayfs), which engines leave off. A copy lies in the upper layer
alone, and can be renamed. It takes the original's place, which is not one step; what lies on disk
is the state::

    copies/NAME  copies/NAME.whole  NAME           what it is         what finish() does
    -----------  -----------------  -------------  -----------------  --------------------------
    part         -                  original       being copied       removes the copy
    whole        there              part, nothing  being replaced     removes NAME, moves in
    -            there              copy           in place           removes the note

NAME is the path with its slashes escaped. The note is a file, since a file can always be renamed
and removed in one step: so it holds too where all of this became a layer itself.

Everything here happens under the lock of ``run/``: whoever takes it finishes first (``switch``).

Above: ``publish``, ``switch``. Below: ``layout``.

Security: as in ``switch``: nothing is verified and no link is followed. A copy is made of files and
directories only, and only what this file may have copied is put back.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final
from urllib.parse import quote, unquote

from serdab.errors import UsageError
from serdab.instance.layout import MOVED_COPIES as COPIES
from serdab.instance.layout import MOVED_PLACES
from serdab.linux.dirfd import DirFd, word_for
from serdab.linux.dirtree import listing

_WHOLE: Final = ".whole"
_PIECE_BYTES: Final = 1 << 30

Alone = Callable[[], AbstractContextManager[object]]
"""Locks ``run/`` where the caller has not."""


def rename(root: DirFd, old: str, new: str) -> None:
    """Rename a directory below ``root``, in whatever layer it is. Caller holds ``run/``."""
    try:
        root.rename(old, new)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        make_movable(root, old)
        root.rename(old, new)


def make_movable(root: DirFd, path: str) -> None:
    """Put a copy of the directory ``path`` in its place. Caller holds ``run/``.

    A failure leaves the original.

    Raises:
        OSError: the host refuses, or has no room.
        UsageError: something else than files and directories is in it.
    """
    finish(root)
    name = quote(path, safe="")
    copy, note = f"{COPIES}/{name}", f"{COPIES}/{name}{_WHOLE}"
    try:
        root.make(COPIES, mode=0o700).close()
        _copy(root, path, copy)
        root.sync(COPIES)
        root.sync()
    except BaseException:
        root.remove(COPIES)
        raise
    root.write_new(note, b"")
    root.sync(COPIES)
    finish(root)


def finish(root: DirFd) -> None:
    """Bring to its end what was cut off, or take it back. Caller holds ``run/``."""
    for note in root.names(COPIES):
        name = note.removesuffix(_WHOLE)
        path = unquote(name)
        if name == note or not path.startswith(MOVED_PLACES) or ".." in path.split("/"):
            continue
        copy = f"{COPIES}/{name}"
        if root.is_directory(copy):
            root.remove(path)
            _put(root, copy, path)
        root.remove(f"{COPIES}/{note}")
        root.sync(COPIES)
    root.remove(COPIES)


def _put(root: DirFd, copy: str, path: str) -> None:
    try:
        root.rename(copy, path)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        # The copy became a layer in its turn, or lies on another file system than its place.
        _copy(root, copy, path)
    root.sync(os.path.dirname(path))


def is_movable(root: DirFd, path: str, spare: str) -> bool:
    """Return whether a directory can be renamed; ``spare`` is a name that is free."""
    try:
        root.rename(path, spare)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        return False
    root.rename(spare, path)
    return True


def _copy(root: DirFd, source: str, target: str) -> None:
    """Copy a tree with modes, owners and times, durably."""
    pending = [""]
    with root.directory(source) as old, root.make(target, mode=0o700) as new:
        while pending:
            path = pending.pop()
            with old.directory(path) as here, new.make(path, mode=0o700) as there:
                for entry in listing(here.fd):
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{path}/{entry.name}".lstrip("/"))
                    else:
                        _copy_file(here, entry.name, there)
                _like(there.fd, os.fstat(here.fd))
                os.fsync(there.fd)


def _copy_file(here: DirFd, name: str, there: DirFd) -> None:
    status = here.status(name)
    if status is None or not stat.S_ISREG(status.st_mode):
        raise UsageError(
            "a directory of a lower layer cannot be copied",
            subject=here.name(name),
            expected="files and directories",
            found="something that changes" if status is None else word_for(status.st_mode),
            hint="remove it: nothing of ours is such a thing",
        )
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with (
        open(here.open_file(name), "rb", buffering=0) as reader,
        open(there.open(name, flags), "wb", buffering=0) as writer,
    ):
        status = os.fstat(reader.fileno())
        copy_content(reader.fileno(), writer.fileno())
        _like(writer.fileno(), status)
        os.fsync(writer.fileno())


def copy_content(source: int, target: int) -> None:
    """Copy a file into an empty one, sharing blocks where the file system can."""
    copy: Callable[[int, int, int], int] = os.copy_file_range
    while True:
        try:
            if copy(source, target, _PIECE_BYTES) == 0:
                return
        except OSError as exc:
            # copy_file_range(2): files of two layers may be of two file systems.
            if exc.errno != errno.EXDEV or copy is _send:
                raise
            copy = _send


def _send(source: int, target: int, count: int) -> int:
    return os.sendfile(target, source, None, count)


def _like(fd: int, status: os.stat_result) -> None:
    mine = os.fstat(fd)
    if (mine.st_uid, mine.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
