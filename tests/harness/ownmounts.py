# SPDX-License-Identifier: Apache-2.0
"""A mount namespace for the session, in which everybody may open /dev/fuse.

Some container images give /dev/fuse to root alone, and the tests also run as an ordinary user. The
machine's node is left as it is: the session has a node of its own bound over it, which others do
not see, as they see none of its mounts (mount_namespaces(7)). Each worker has such a namespace.
Somebody who may not make one gets no tests that need it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import tempfile
from dataclasses import dataclass
from typing import Final

import pytest

from serdab.linux.libc import libc
from serdab.linux.mounts import MountFlag, UmountFlag, mount, umount

FUSE: Final = "/dev/fuse"
_NEWNS: Final = 0x00020000
_SLAVE: Final = 1 << 19
_SHARED: Final = 1 << 20
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class _Seen:
    """A line of proc_pid_mountinfo(5)."""

    target: str
    kind: str
    is_shared: bool


def pytest_configure(config: pytest.Config) -> None:
    has_workers = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if os.geteuid() == 0 and not has_workers:
        enter()


def is_open_to_all() -> bool:
    """Return whether everybody may open /dev/fuse."""
    return os.path.exists(FUSE) and os.stat(FUSE).st_mode & 0o006 == 0o006


def enter() -> None:
    """Move this thread, and what it starts from now on, to a namespace of its own."""
    if libc.unshare(_NEWNS) < 0:
        return  # not root of this machine; whoever needs it is told by the fixture
    _come_apart()
    if os.path.exists(FUSE):
        _bring_own_node()


def _come_apart() -> None:
    """Let no mount of ours reach the machine; among us, mounts are as shared as they were."""
    seen = _table()
    for one in seen:
        _propagate(one.target, _SLAVE)
    for one in seen:
        if one.kind == "fuse.serdab":
            # Of another session: its server would not end as long as we had it mounted.
            _detach(one.target)
        elif one.is_shared:
            _propagate(one.target, _SHARED)


def _bring_own_node() -> None:
    # On a file system of its own: /tmp may be one without devices, /dev is the machine's.
    place = tempfile.mkdtemp(prefix="sf-")
    mount("none", place, "tmpfs", MountFlag.NOSUID, "mode=700")
    node = os.path.join(place, "fuse")
    os.mknod(node, stat.S_IFCHR, os.stat(FUSE).st_rdev)
    os.chmod(node, 0o666)
    mount(node, FUSE, "", MountFlag.BIND, "")
    umount(place, UmountFlag.DETACH)
    os.rmdir(place)


def _propagate(target: str, how: int) -> None:
    """mount(2) with one of MS_SLAVE and MS_SHARED; what is covered by another mount stays."""
    if libc.mount(None, os.fsencode(target), None, how, None) < 0:
        _allow_covered(target)


def _detach(target: str) -> None:
    if libc.umount2(os.fsencode(target), int(UmountFlag.DETACH)) < 0:
        _allow_covered(target)


def _allow_covered(target: str) -> None:
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOENT):
        raise OSError(code, os.strerror(code), target)


def _table() -> list[_Seen]:
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            words = line.split()
            end = words.index("-")
            target = _OCTAL.sub(lambda m: chr(int(m[1], 8)), words[4])
            is_shared = any(word.startswith("shared:") for word in words[6:end])
            found.append(_Seen(target, words[end + 1], is_shared))
    return found
