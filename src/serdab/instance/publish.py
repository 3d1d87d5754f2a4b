# SPDX-License-Identifier: Apache-2.0
"""Replaces ``build/`` as a whole: a build that fails or is killed leaves the old one.

Everything is written into a staging directory beside it, made durable, and swapped in by one
renameat2(2). The image that a writable layer refers to is kept in ``build/previous/<root MAC>/``
until ``reset``. Leftovers of killed builds are cleared by the next one, under its lock.

Security: the storage may have put anything at these names, and a program that sees the instance
directory may rename them at any moment.
    1. All that is written goes through the descriptor of the directory that was made here. Nobody
       but its owner can enter it until it is whole.
    2. That its name still means it is looked at before it is swapped in, and that ``build`` means
       it afterwards: else what was swapped is swapped back, and refused.
    3. No link is followed, and only what is named as an image, by a root MAC, is moved.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Final

from serdab.errors import UsageError
from serdab.instance import movable
from serdab.instance.layout import BUILD, BUILD_STAGING, IMAGE, PREVIOUS, Instance
from serdab.libos.caller import current_umask
from serdab.linux import dirtree
from serdab.linux.dirfd import DirFd, word_for
from serdab.sefs.imageformat import IMAGE_NAME

_NOTE: Final = ".image-root"
_MAC_DIGITS: Final = 64
ASIDE: Final = "-old"
"""Ends the name of what was in use where two directories cannot be exchanged."""


def begin(instance: Instance, alone: movable.Alone) -> DirFd:
    """Return a fresh, empty staging directory. Caller holds the build lock.

    ``alone`` locks ``run/``, for directories that are not simply renamed.

    Raises:
        UsageError: ``build/`` is something else than a directory.
    """
    root, aside = instance.root, BUILD_STAGING + ASIDE
    # Killed between the two renames of swap_in: put back what was in use.
    if root.is_directory(aside) and not root.exists(BUILD):
        _rename(root, aside, BUILD, alone)
    if root.exists(BUILD) and not root.is_directory(BUILD):
        status = root.status(BUILD)
        raise UsageError(
            "the place of what is built is taken",
            subject=instance.at(BUILD),
            expected="a directory",
            found="something that changes" if status is None else word_for(status.st_mode),
            hint="move it away; `serdab build` makes the directory anew",
        )
    for left in (aside, BUILD_STAGING):
        _rescue_previous(root, left, alone)
        root.remove(left)
    return take_up_staging(root, BUILD_STAGING)


def take_up_staging(root: DirFd, name: str) -> DirFd:
    """Open the directory ``name``, made if missing, which nobody else can enter from here on.

    A key that is built in lies in clear in it before anybody decides that it may be published.
    """
    made = root.make(name)
    try:
        os.fchmod(made.fd, 0o700)
    except BaseException:
        made.close()
        raise
    return made


def require_same(root: DirFd, name: str, made: DirFd) -> None:
    """Refuse if a name does not mean the directory that was written to.

    Raises:
        UsageError: somebody renamed it, or put something else in its place.
    """
    if not made.is_at(root, name):
        raise _exchanged(root, name)


def _exchanged(root: DirFd, name: str) -> UsageError:
    return UsageError(
        "what was made here was exchanged for something else",
        subject=root.name(name),
        expected="the directory that was written to",
        found="another, or none",
        hint="somebody renames in the instance: end that, and try again",
    )


def abandon(instance: Instance) -> None:
    """Remove what a failed build left."""
    instance.root.remove(BUILD_STAGING)


def copy_sealed(source: DirFd, relative: str, target: DirFd) -> None:
    """Copy a sealed image with its time, sharing blocks where the file system can.

    Not a hard link: a sealed file with a second name is refused by whoever opens it.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with (
        open(source.open_file(f"{relative}/{IMAGE_NAME}"), "rb") as reader,
        open(target.open(IMAGE_NAME, flags, mode=0o666), "wb") as writer,
    ):
        status = os.fstat(reader.fileno())
        movable.copy_content(reader.fileno(), writer.fileno())
        # The record of the build knows it (leftimage).
        os.utime(writer.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(writer.fileno())


def swap_in(
    instance: Instance,
    staging: DirFd,
    *,
    old_image: str | None,
    is_needed: Callable[[], bool],
    alone: movable.Alone,
) -> bool:
    """Make the staging directory ``build/``; return whether the old image was kept.

    ``old_image`` is the root MAC (hex) of an image that goes. ``is_needed`` says whether a writable
    layer refers to it, or may yet: it is asked when nobody can open it any more as the newest one.
    """
    root = instance.root
    if old_image is not None and root.is_directory(BUILD):
        # Named before the swap, so that a kill right after it loses nothing (see begin).
        with root.directory(BUILD) as build:
            build.remove(_NOTE)
            build.write_new(_NOTE, old_image.encode("ascii"))
    put_in_place(instance, BUILD_STAGING, staging, alone)
    kept = old_image is not None and is_needed()
    if root.exists(BUILD_STAGING):
        if not kept:
            root.remove(f"{BUILD_STAGING}/{_NOTE}")
        _rescue_previous(root, BUILD_STAGING, alone)
        root.remove(BUILD_STAGING)
    return kept


def put_in_place(
    instance: Instance, name: str, made: DirFd, alone: movable.Alone = nullcontext
) -> None:
    """Make the directory ``name`` beside ``build/`` that one, durably.

    The name means the old one afterwards. ``made``: what was written to.
    ``alone``: as in ``begin``.

    Raises:
        UsageError: somebody exchanged it for something else; ``build/`` is what it was.
    """
    root = instance.root
    for fd, _ in dirtree.walk(made):
        os.fsync(fd)
    require_same(root, name, made)
    os.fchmod(made.fd, 0o755 & ~current_umask())
    os.fsync(made.fd)
    if root.exists(BUILD):
        _swap(root, name, alone)
        if not made.is_at(root, BUILD):
            # The name was exchanged between the look and the swap.
            _swap(root, name, alone)
            raise _exchanged(root, name)
    else:
        root.rename(name, BUILD)
        if not made.is_at(root, BUILD):
            root.rename(BUILD, name)
            raise _exchanged(root, name)
    root.sync()


def _rename(root: DirFd, old: str, new: str, alone: movable.Alone) -> None:
    try:
        root.rename(old, new)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        with alone():
            movable.rename(root, old, new)


def _swap(root: DirFd, name: str, alone: movable.Alone) -> None:
    try:
        _exchange(root, name)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        with alone():
            movable.make_movable(root, BUILD)
            _exchange(root, name)


def _exchange(root: DirFd, name: str) -> None:
    try:
        root.exchange(name, BUILD)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        # No exchange on this file system: two renames, and a moment without build/.
        aside = name + ASIDE
        root.rename(BUILD, aside)
        root.rename(name, BUILD)
        root.rename(aside, name)


def _rescue_previous(root: DirFd, old: str, alone: movable.Alone) -> None:
    """Move the images that writable layers may refer to from a replaced build to the new one."""
    if not root.is_directory(old):
        return
    moves = [(f"{old}/previous/{mac}", mac) for mac in root.names(f"{old}/previous")]
    image = f"{old}/{IMAGE.removeprefix(BUILD + '/')}"
    moves.append((image, _noted(root, f"{old}/{_NOTE}")))
    for source, mac in moves:
        target = f"{PREVIOUS}/{mac}"
        if _is_root_mac(mac) and root.is_directory(source) and not root.exists(target):
            if not root.is_directory(PREVIOUS):
                root.remove(PREVIOUS)
            root.make(PREVIOUS).close()
            _rename(root, source, target, alone)
            root.sync(PREVIOUS)


def _is_root_mac(name: str) -> bool:
    return len(name) == _MAC_DIGITS and all(c in "0123456789abcdef" for c in name)


def _noted(root: DirFd, path: str) -> str:
    """Return what a note says, nothing if it is none."""
    try:
        return root.read(path, _MAC_DIGITS).decode("ascii")
    except (OSError, UsageError, UnicodeDecodeError):
        return ""
