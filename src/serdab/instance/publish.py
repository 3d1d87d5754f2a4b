# SPDX-License-Identifier: Apache-2.0
"""Replaces ``build/`` as a whole: a build that fails or is killed leaves the old one.

Everything is written into a staging directory beside it, made durable, and swapped in by one
renameat2(2). The image that a writable layer refers to is kept in ``build/previous/<root MAC>/``
until ``reset``. Leftovers of killed builds are cleared by the next one, under its lock.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from typing import Final

from serdab.config.dirs import sync_directory
from serdab.instance.layout import BUILD, IMAGE, PREVIOUS, Instance
from serdab.linux.rename import exchange
from serdab.sefs.imageformat import IMAGE_NAME

_STAGING: Final = ".build-staging"
_NOTE: Final = ".image-root"
ASIDE: Final = "-old"
"""Ends the name of what was in use where two directories cannot be exchanged."""


def begin(instance: Instance) -> str:
    """Return a fresh, empty staging directory. Caller holds the build lock."""
    staging = instance.at(_STAGING)
    aside = staging + ASIDE
    if os.path.lexists(aside):
        # Killed between the two renames of swap_in: put back what was in use.
        if os.path.lexists(instance.at(BUILD)):
            _rescue_previous(instance, aside)
            shutil.rmtree(aside)
        else:
            os.rename(aside, instance.at(BUILD))
    if os.path.lexists(staging):
        _rescue_previous(instance, staging)
        shutil.rmtree(staging)
    os.mkdir(staging, 0o755)
    return staging


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
        if os.path.lexists(note):
            os.unlink(note)
        write_file(note, old_image.encode("ascii"))
    put_in_place(instance, staging)
    kept = old_image is not None and is_needed()
    if os.path.lexists(staging):
        note = os.path.join(staging, _NOTE)
        if not kept and os.path.lexists(note):
            os.unlink(note)
        _rescue_previous(instance, staging)
        shutil.rmtree(staging)
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
    keep = os.path.join(instance.at(PREVIOUS))
    moves = []
    for mac in _listing(os.path.join(old, "previous")):
        moves.append((os.path.join(old, "previous", mac), mac))
    try:
        with open(os.path.join(old, _NOTE), encoding="ascii") as file:
            name = file.read(65)
        if len(name) == 64 and all(c in "0123456789abcdef" for c in name):
            moves.append((os.path.join(old, os.path.relpath(IMAGE, BUILD)), name))
    except (OSError, UnicodeDecodeError):
        pass
    for source, mac in moves:
        target = os.path.join(keep, mac)
        if os.path.isdir(source) and not os.path.lexists(target):
            os.makedirs(keep, exist_ok=True)
            os.rename(source, target)
            sync_directory(keep)


def _listing(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
