# SPDX-License-Identifier: Apache-2.0
"""Who calls, and what belongs to whom: users as the kernel knows them, outside of all namespaces.

Above: ``mounts``, ``storage``, ``layers``. Below: ``idmaps``. An id that a program reads of itself
means nothing: in a user namespace of its own anybody is 0. What the kernel has it for is
told by proc_pid_status(5) as our own namespace sees it, whatever the thread did to its own. In the
instance the inner root is 0.
"""

from __future__ import annotations

import os
from typing import Final

from serdab.errors import NotAllowedError
from serdab.libos.idmaps import IdMap

#: The overflow id: who owns what has no owner inside (user_namespaces(7)).
NOBODY: Final = 65534
OPEN_HINT: Final = "serdab.runtime_mounts.targets in Occlum.json opens it for everybody"


def user_of(proc: int, ids: IdMap) -> int:
    """Return whom a thread acts as, in the instance; its /proc directory is open as ``proc``."""
    fd = os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    with open(fd, "rb") as file:
        _, effective, _, access = next(
            map(int, line.split()[1:]) for line in file if line.startswith(b"Uid:")
        )
    # Who has put off one of the two acts for another user.
    return inner_id(effective, ids) or inner_id(access, ids)


def inner_id(outer: int, ids: IdMap) -> int:
    """Return what a user of outside is in the instance's own user namespace."""
    for inner, first, count in ids.uids:
        if first <= outer < first + count:
            return inner + outer - first
    return NOBODY


def is_owner(user: int, found: int) -> bool:
    """Return whether what belongs to ``found`` is a user's own; nothing is the overflow id's."""
    return user == found != NOBODY


def shown_owner(user: int) -> int:
    """Return whom an owner on the host is shown as inside, where our own hostfs shows it."""
    own = os.geteuid()
    if own == 0:
        return user
    # We can make files for ourselves only, and that is whom the inner root stands for.
    return 0 if user == own else NOBODY


def require_owner(fd: int, owner: int | None, path: str) -> None:
    """Refuse a host directory that belongs to another user than ``owner`` inside; None: anybody.

    A path leads past the directories above it, which may be closed to who named it.

    Raises:
        NotAllowedError: it does.
    """
    found = shown_owner(os.fstat(fd).st_uid)
    if owner is None or is_owner(owner, found):
        return
    raise NotAllowedError(
        "this host directory is not the caller's",
        subject=path,
        expected=f"owner {owner}",
        found=str(found),
        hint=OPEN_HINT,
    )
