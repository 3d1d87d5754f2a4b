# SPDX-License-Identifier: Apache-2.0
"""The directory of the host where a mount goes: whether it will do, before anything is opened.

Above: ``cli.mount``. Below: ``reach``, ``fuse.mounting``, ``linux``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from serdab.errors import UsageError
from serdab.fuse.mounting import SUBTYPE, unmount
from serdab.instance.reach import reached_part
from serdab.linux.mounts import mounts_at
from serdab.linux.whereabouts import MountTable

_MOST_STALE: Final = 16


def usable_mount_point(path: str, instance: str, *, say: Callable[[str], None]) -> str:
    """Return the real path of an empty directory, out of sight of programs, that we may mount on.

    A mount of ours whose server died there is cleared away, and said.

    Raises:
        UsageError: it will not do.
    """
    target = os.path.realpath(path)
    status = _alive(target, path, say)
    if not stat.S_ISDIR(status.st_mode):
        raise _unfit(path, "a directory", "something else", "")
    if _is_seen(target, instance):
        raise _unfit(
            path,
            "a directory outside of the instance and of what programs are shown",
            "one in it",
            "a program that sees the directory would see what is mounted there",
        )
    try:
        with os.scandir(target) as entries:
            is_empty = next(entries, None) is None
    except OSError as exc:
        raise _unfit(path, "a directory that you can read", _words(exc), "") from exc
    if not is_empty:
        raise _unfit(
            path,
            "an empty directory",
            "a mount" if mounts_at(target) else "one with something in it",
            "`mkdir` an own one: what is in it would be hidden",
        )
    if not os.access(target, os.W_OK | os.X_OK):
        raise _unfit(path, "a directory that you may write to", "permission denied", "")
    return target


def _is_seen(target: str, instance: str) -> bool:
    """Return whether a place is one of the instance, or where its programs see it, by any mount."""
    with MountTable() as table:
        inside = table.named(os.fsencode(instance))
        if any(at.is_below(each) for at in table.named(os.fsencode(target)) for each in inside):
            return True
    return reached_part(instance, target) is not None


def _alive(target: str, path: str, say: Callable[[str], None]) -> os.stat_result:
    for _ in range(_MOST_STALE):
        try:
            os.statvfs(target)  # a dead server's files may be in the cache; this never is
            return os.stat(target)
        except OSError as exc:
            if exc.errno == errno.ENOTCONN and _is_ours(target):
                _clear(target, path)
                say(f"{path}: the server of a mount here had died; the mount was cleared away")
                continue
            hint = "`mkdir` makes it" if exc.errno == errno.ENOENT else ""
            if exc.errno == errno.ENOTCONN:
                hint = "a FUSE server died there: `umount` or `fusermount3 -u` clears it away"
            raise _unfit(path, "a directory", _words(exc), hint) from exc
    raise _unfit(path, "a directory", f"more than {_MOST_STALE} dead mounts", "unmount them")


def _is_ours(target: str) -> bool:
    mounted = mounts_at(target)
    if not mounted or mounted[-1].fstype != f"fuse.{SUBTYPE}":
        return False
    return os.geteuid() == 0 or f"user_id={os.geteuid()}" in mounted[-1].options


def _clear(target: str, path: str) -> None:
    try:
        unmount(target, lazy=True)
    except OSError as exc:
        raise _unfit(
            path, "a directory", f"a dead mount that cannot be cleared away: {_words(exc)}", ""
        ) from exc


def _words(exc: OSError) -> str:
    return (exc.strerror or str(exc)).lower()


def _unfit(path: str, expected: str, found: str, hint: str) -> UsageError:
    return UsageError(
        "the mount point will not do",
        subject=os.path.abspath(path),
        expected=expected,
        found=found,
        hint=hint,
    )
