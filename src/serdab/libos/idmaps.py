# SPDX-License-Identifier: Apache-2.0
"""Which ids of the host the ids inside are: decided (pure), then written.

Above: ``sandbox``. See user_namespaces(7), subuid(5), newuidmap(1).

Security: kuid 0 is never mapped. A program that is root inside must not be host root to the
kernel, or every file that checks for host root alone (core_pattern) would be open to it. Run by
root, ids inside are a subordinate range, another one for each instance that runs; run by an
ordinary user, a range from /etc/subuid through the set-id helper newuidmap, else the one id of the
caller. Root of a user namespace that lacks such a range (a container) is served like an ordinary
user, with the ids that are there; if its 0 is kuid 0, it is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, TypeAlias

from serdab.errors import EnvironmentRefused
from serdab.linux import ownids
from serdab.structs import frozen

RANGE_IDS: Final = 65536
#: Where root's range starts when /etc/subuid gives it none: high enough to be nobody's, and below
#: 2**31, which some programs take for negative.
_DEFAULT_BASE: Final = 1879048192
_DEFAULT_IDS: Final = (1 << 31) - _DEFAULT_BASE
#: Chooses one of so many ranges: its number, and a descriptor that holds it.
Take: TypeAlias = Callable[[int], tuple[int, int]]
_SUBUID: Final = "/etc/subuid"
_SUBGID: Final = "/etc/subgid"


@frozen
class IdMap:
    """(first inside, first outside, count) lines for users and groups.

    ``through_newuidmap``: the kernel wants a privileged writer. ``is_single``: one id only, so
    files of other owners must be shown as the inner root's. ``slot_fd`` holds the range while it is
    open; -1 with ``is_shared``: other instances have it too.
    """

    uids: tuple[tuple[int, int, int], ...]
    gids: tuple[tuple[int, int, int], ...]
    through_newuidmap: bool = False
    is_single: bool = False
    slot_fd: int = -1
    is_shared: bool = False

    @property
    def drop_groups(self) -> bool:
        """Whether setgroups(2) is admitted inside."""
        return not self.is_single


@frozen
class Here:
    """The ids of our own user namespace; ``host_root`` is which of them is kuid 0, if any."""

    uids: ownids.Ranges
    gids: ownids.Ranges
    host_root: int | None


_EVERYWHERE: Final = Here(ownids.EVERY_ID, ownids.EVERY_ID, host_root=0)


def subordinate_range(text: str, names: tuple[str, ...]) -> tuple[int, int] | None:
    """Return (first, count) of the first usable line of subuid(5) for one of ``names``."""
    for name in names:
        for line in text.splitlines():
            fields = line.strip().split(":")
            if len(fields) != 3 or fields[0] != name:
                continue
            if fields[1].isdecimal() and fields[2].isdecimal():
                first, count = int(fields[1]), int(fields[2])
                # A whole range of 16-bit ids, and never host root.
                if first > 0 and count >= RANGE_IDS:
                    return first, count
    return None


def _first(_count: int) -> tuple[int, int]:
    return 0, -1


def choose(
    *,
    uid: int,
    gid: int,
    user: str,
    subuid: str,
    subgid: str,
    has_helpers: bool,
    take: Take = _first,
    here: Here = _EVERYWHERE,
) -> IdMap:
    """Return the map for a caller. ``take(count)`` chooses one of root's ranges, as ``idslots``.

    Raises:
        EnvironmentRefused: kuid 0 is the only one that there is.
    """
    if uid == 0:
        names: tuple[str, ...] = ("serdab", "root", "0")
        uids = subordinate_range(subuid, names) or (_DEFAULT_BASE, _DEFAULT_IDS)
        gids = subordinate_range(subgid, names) or (_DEFAULT_BASE, _DEFAULT_IDS)
        if not (ownids.holds(here.uids, *uids) and ownids.holds(here.gids, *gids)):
            return _of_few(here)
        slot, fd = take(min(uids[1], gids[1]) // RANGE_IDS)
        shift = slot * RANGE_IDS
        return IdMap(
            ((0, uids[0] + shift, RANGE_IDS),),
            ((0, gids[0] + shift, RANGE_IDS),),
            slot_fd=fd,
            is_shared=fd < 0,
        )
    names = (user, str(uid)) if user else (str(uid),)
    range_u = subordinate_range(subuid, names)
    range_g = subordinate_range(subgid, names)
    if has_helpers and range_u and range_g:
        # The caller is root inside, so that what the sandbox writes to the host is the caller's.
        return IdMap(
            ((0, uid, 1), (1, range_u[0], RANGE_IDS - 1)),
            ((0, gid, 1), (1, range_g[0], RANGE_IDS - 1)),
            through_newuidmap=True,
        )
    return IdMap(((0, uid, 1),), ((0, gid, 1),), is_single=True)


def _of_few(here: Here) -> IdMap:
    """Return the map for root of a user namespace: itself, then what else there is."""
    if here.host_root == 0:
        raise EnvironmentRefused(
            "this user namespace has the machine's root in it, and no range for a sandbox",
            stage="sandbox",
            expected=f"{RANGE_IDS} ids from {_DEFAULT_BASE} on, or another root",
            found="kuid 0 as root",
            hint="map root of the container to another id, or start it without a user namespace",
        )
    uids, gids = _same(ownids.without(here.uids, here.host_root)), _same(here.gids)
    if not _is_plenty(uids) or not _is_plenty(gids):
        return IdMap(((0, 0, 1),), ((0, 0, 1),), is_single=True)
    return IdMap(uids, gids)


def _same(ranges: ownids.Ranges) -> tuple[tuple[int, int, int], ...]:
    """Return lines that leave the first 16 bits of ids what they are."""
    return tuple(
        (first, first, min(count, RANGE_IDS - first))
        for first, count in ranges
        if first < RANGE_IDS
    )


def _is_plenty(lines: tuple[tuple[int, int, int], ...]) -> bool:
    return sum(count for _, _, count in lines) > 1


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def look_here() -> Here:
    """Return the ids of our own user namespace."""
    return Here(ownids.mapped("uid_map"), ownids.mapped("gid_map"), ownids.host_root())


def choose_here(take: Take = _first) -> IdMap:
    """Return the map for the calling process on this machine."""
    uid, gid = os.geteuid(), os.getegid()
    user = ""
    has_helpers = False
    if uid != 0:
        import shutil  # fs servers have no use for it

        has_helpers = bool(shutil.which("newuidmap") and shutil.which("newgidmap"))
        if has_helpers:
            import pwd

            try:
                user = pwd.getpwuid(uid).pw_name
            except KeyError:
                user = ""
    return choose(
        uid=uid,
        gid=gid,
        user=user,
        subuid=_read(_SUBUID),
        subgid=_read(_SUBGID),
        has_helpers=has_helpers,
        take=take,
        here=look_here() if uid == 0 else _EVERYWHERE,
    )


def write(pid: int, ids: IdMap) -> None:
    """Write the map of a process that has just entered a new user namespace.

    Raises:
        EnvironmentRefused: the kernel or newuidmap refuses.
    """
    if ids.through_newuidmap:
        import subprocess

        for tool, lines in (("newuidmap", ids.uids), ("newgidmap", ids.gids)):
            command = [tool, str(pid), *(str(number) for line in lines for number in line)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise _refused(tool, done.stderr.strip())
        return
    try:
        if ids.is_single:
            # Required before an unprivileged gid_map; root of a namespace has one group just so.
            _put(pid, "setgroups", "deny")
        _put(pid, "gid_map", "".join("{} {} {}\n".format(*line) for line in ids.gids))
        _put(pid, "uid_map", "".join("{} {} {}\n".format(*line) for line in ids.uids))
    except OSError as exc:
        raise _refused(str(exc.filename), os.strerror(exc.errno or 0)) from exc


def _put(pid: int, name: str, content: str) -> None:
    # One write(2) of the whole text: the kernel takes a map in a single piece.
    path = f"/proc/{pid}/{name}"
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content.encode("ascii"))
    except OSError as exc:
        exc.filename = path
        raise
    finally:
        os.close(fd)


def _refused(subject: str, found: str) -> EnvironmentRefused:
    return EnvironmentRefused(
        "the ids of the sandbox cannot be mapped",
        stage="sandbox",
        subject=subject,
        found=found,
        hint="see user_namespaces(7); with subordinate ids: usermod --add-subuids",
    )
