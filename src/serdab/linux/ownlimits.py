# SPDX-License-Identifier: Apache-2.0
"""Limits of the caller's shell that are meant for programs, and would strike a server of ours.

getrlimit(2), ulimit(1). A server whose file may not grow, or whose time is over, turns its volume
read-only under a program that has met no limit. So a server lifts its own, as far as it may, and
does not start where that is not far enough. The programs of an instance keep the caller's.
"""

from __future__ import annotations

import resource
from typing import Final

from serdab.errors import EnvironmentRefused

_FOR_EVER: Final = resource.RLIM_INFINITY
_NEEDED: Final = (
    (resource.RLIMIT_FSIZE, "RLIMIT_FSIZE", "-f", 1 << 30),
    (resource.RLIMIT_CPU, "RLIMIT_CPU", "-t", _FOR_EVER),
    (resource.RLIMIT_AS, "RLIMIT_AS", "-v", 1 << 30),
    (resource.RLIMIT_DATA, "RLIMIT_DATA", "-d", 1 << 29),
)
"""What a server needs at least, in bytes or seconds. A segment, a log or the reserve is smaller."""


def lift_limits() -> None:
    """Let this process have what a server needs.

    Raises:
        EnvironmentRefused: it may not, with the name of the limit.
    """
    for which, name, option, needed in _NEEDED:
        _, hard = resource.getrlimit(which)
        if hard != _FOR_EVER:
            hard = _raised(which, hard)
        resource.setrlimit(which, (hard, hard))
        if hard != _FOR_EVER and (needed == _FOR_EVER or hard < needed):
            raise EnvironmentRefused(
                "a limit of the caller is too low for the servers of file systems",
                subject=name,
                expected="unlimited" if needed == _FOR_EVER else f"at least {needed}",
                found=str(hard),
                hint=f"start from a shell without it (`ulimit -H {option}`), or set it inside",
            )


def _raised(which: int, hard: int) -> int:
    """Return the hard limit after trying to lift it (CAP_SYS_RESOURCE)."""
    try:
        resource.setrlimit(which, (_FOR_EVER, _FOR_EVER))
    except (ValueError, PermissionError):
        return hard
    return _FOR_EVER
