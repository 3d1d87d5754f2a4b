# SPDX-License-Identifier: Apache-2.0
"""Capability numbers (capabilities(7)) and sets of them as the kernel's bit masks."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class Capability(IntEnum):
    """The ones that are named somewhere here."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    FOWNER = 3
    FSETID = 4
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    NET_BIND_SERVICE = 10
    SYS_CHROOT = 18
    SYS_ADMIN = 21
    SETFCAP = 31


def mask(capabilities: Iterable[Capability]) -> int:
    """Return the bit mask."""
    out = 0
    for capability in capabilities:
        out |= 1 << capability
    return out
