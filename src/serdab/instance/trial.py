# SPDX-License-Identifier: Apache-2.0
"""Tries what a run does first: new namespaces, and a proc in them.

Whether that is admitted depends on switches, security modules, the filter of a container's engine
and what it mounts over /proc; no file tells it all. A child does it, and ends.

Above: ``machine``. Below: the kernel.
"""

from __future__ import annotations

import ctypes
import os
from enum import IntEnum
from typing import Final

from serdab.linux.libc import libc
from serdab.structs import frozen

# NEWNS, NEWUSER, NEWPID of clone(2).
_NAMESPACES: Final = 0x00020000 | 0x10000000 | 0x20000000


class Step(IntEnum):
    """What was refused."""

    NAMESPACES = 1
    PROC = 2


@frozen
class Refused:
    """The step, and the kernel's word for why."""

    step: Step
    words: str


def try_namespaces() -> Refused | None:
    """Return what the kernel refuses; None: nothing.

    Preconditions: no other thread of ours runs.
    """
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(into, bytes(_attempt()))
        os._exit(0)
    os.close(into)
    with open(out, "rb") as stream:
        said = stream.read()
    os.waitpid(pid, 0)
    return Refused(Step(said[0]), os.strerror(said[1])) if said else None


def _attempt() -> tuple[int, ...]:
    if libc.unshare(_NAMESPACES) < 0:
        return Step.NAMESPACES, ctypes.get_errno()
    # The first process of a PID namespace is the one that sees its proc.
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        if libc.mount(b"proc", b"/proc", b"proc", 0, None) < 0:
            os.write(into, bytes((Step.PROC, ctypes.get_errno())))
        os._exit(0)
    os.close(into)
    said = os.read(out, 2)
    os.waitpid(pid, 0)
    return tuple(said)
