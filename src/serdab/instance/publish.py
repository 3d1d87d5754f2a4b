# SPDX-License-Identifier: Apache-2.0
"""Replaces ``build/`` as a whole: a build that fails or is killed leaves the old one.

Everything is written into a staging directory beside it, made durable, and swapped in by one
renameat2(2). The image that a writable layer refers to is kept in ``build/previous/<root MAC>/``
until ``reset``. Leftovers of killed builds are cleared by the next one, under its lock.

Security: the storage may have put anything at these names. No link is followed out of the instance,
and only what is named as an image, by a root MAC, is moved.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from typing import Final

from serdab.config.dirs import sync_directory
from serdab.errors import UsageError
from serdab.instance.layout import BUILD, BUILD_STAGING, IMAGE, PREVIOUS, Instance
from serdab.linux.rename import exchange
from serdab.sefs.imageformat import IMAGE_NAME

_NOTE: Final = ".image-root"
ASIDE: Final = "-old"
"""Ends the name of what was in use where two directories cannot be exchanged."""


def begin(instance: Instance) -> str:
    """Return a fresh, empty staging directory. Caller holds the build lock.

    Raises:
        UsageError: ``build/`` is something else than a directory.
    """
    build, staging = instance.at(BUILD), instance.at(BUILD_STAGING)
    aside = staging + ASIDE
    # Killed between the two renames of swap_in: put back what was in use.
    if is_directory(aside) and not os.path.lexists(build):
        os.rename(aside, build)
    if os.path.lexists(build) and not is_directory(build):
        raise UsageError(
            "the place of what is built is taken",
            subject=build,
            expected="a directory",
            found="a symbolic link" if os.path.islink(build) else "something else",
            hint="move it away; `serdab build` makes the directory anew",
        )
    for left in (aside, staging):
        _rescue_previous(instance, left)
        remove(left)
    os.mkdir(staging, 0o755)
    return staging


def remove(path: str) -> None:
    """Remove whatever is at ``path``, if anything is; of a link, the link."""
    if is_directory(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def is_directory(path: str) -> bool:
    """Return whether there is a directory at ``path``, and not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def abandon(staging: str) -> None:
    """Remove what a failed build left."""
    shutil.rmtree(staging, ignore_errors=True)


def write_file(path: str, content: bytes) -> None:
    """Write one output file durably; its directory is made if missing."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def copy_sealed(source: str, target: str) -> None:
    """Copy a sealed image, sharing blocks where the file system can.

    Not a hard link: a sealed file with a second name is refused by whoever opens it.
    """
    os.makedirs(target)
    # build/ is untrusted: a link there must not make us copy a file of the host.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with (
        open(os.open(os.path.join(source, IMAGE_NAME), flags), "rb") as reader,
        open(os.path.join(target, IMAGE_NAME), "xb") as writer,
    ):
        left = os.fstat(reader.fileno()).st_size
        while left > 0:
            done = os.copy_file_range(reader.fileno(), writer.fileno(), min(left, 1 << 30))
            if done == 0:
                break
            left -= done
        os.fsync(writer.fileno())


def swap_in(
    instance: Instance, staging: str, *, old_image: str | None, is_needed: Callable[[], bool]
) -> bool:
    """Make the staging directory ``build/``; return whether the old image was kept.

    ``old_image`` is the root MAC (hex) of an image that goes. ``is_needed`` says whether a writable
    layer refers to it, or may yet: it is asked when nobody can open it any more as the newest one.
    """
    build = instance.at(BUILD)
    if old_image is not None and os.path.lexists(build):
        # Named before the swap, so that a kill right after it loses nothing (see begin).
        note = os.path.join(build, _NOTE)
        remove(note)
        write_file(note, old_image.encode("ascii"))
    put_in_place(instance, staging)
    kept = old_image is not None and is_needed()
    if os.path.lexists(staging):
        if not kept:
            remove(os.path.join(staging, _NOTE))
        _rescue_previous(instance, staging)
        remove(staging)
    return kept


def put_in_place(instance: Instance, staging: str) -> None:
    """Make a directory beside ``build/`` that one, durably; it holds the old one afterwards."""
    for directory, _, _ in os.walk(staging, topdown=False):
        sync_directory(directory)
    build = instance.at(BUILD)
    if os.path.lexists(build):
        try:
            exchange(staging, build)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            # No exchange on this file system: two renames, and a moment without build/.
            aside = staging + ASIDE
            os.rename(build, aside)
            os.rename(staging, build)
            os.rename(aside, staging)
    else:
        os.rename(staging, build)
    sync_directory(instance.path)


def _rescue_previous(instance: Instance, old: str) -> None:
    """Move the images that writable layers may refer to from a replaced build to the new one."""
    if not is_directory(old):
        return
    keep = instance.at(PREVIOUS)
    folder = os.path.join(old, "previous")
    moves = [(os.path.join(folder, mac), mac) for mac in _listing(folder)]
    name = _noted(os.path.join(old, _NOTE))
    image = os.path.join(old, os.path.relpath(IMAGE, BUILD))
    if is_directory(os.path.dirname(image)):
        moves.append((image, name))
    for source, mac in moves:
        target = os.path.join(keep, mac)
        if _is_root_mac(mac) and is_directory(source) and not os.path.lexists(target):
            if not is_directory(keep):
                remove(keep)
            os.makedirs(keep, exist_ok=True)
            os.rename(source, target)
            sync_directory(keep)


def _is_root_mac(name: str) -> bool:
    return len(name) == 64 and all(c in "0123456789abcdef" for c in name)


def _noted(path: str) -> str:
    """Return what a note says, nothing if it is none."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(os.open(path, flags), encoding="ascii") as file:
            return file.read(65)
    except (OSError, UnicodeDecodeError):
        return ""


def _listing(path: str) -> list[str]:
    return sorted(os.listdir(path)) if is_directory(path) else []
