# SPDX-License-Identifier: Apache-2.0
"""Runs a command as root of a user namespace, as engines do for a container: few ids, own mounts.

``python namespaceroot.py COUNT UID GID COMMAND...`` maps COUNT ids from UID and GID on. Run by root
of this machine.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Final

_NEWNS: Final = 0x00020000
_NEWUSER: Final = 0x10000000


def main(count: int, uid: int, gid: int, command: list[str]) -> int:
    """Return the exit code of the command."""
    entered, mapped = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_NEWUSER | _NEWNS) < 0:
            raise OSError(ctypes.get_errno(), "unshare")
        os.write(entered[1], b"x")
        os.read(mapped[0], 1)
        os.setgroups([])
        os.setgid(0)
        os.setuid(0)
        os.execvp(command[0], command)
    os.read(entered[0], 1)
    for name, first in (("uid_map", uid), ("gid_map", gid)):
        Path(f"/proc/{pid}/{name}").write_text(f"0 {first} {count}\n", encoding="ascii")
    os.write(mapped[1], b"x")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    number, owner, group = map(int, sys.argv[1:4])
    sys.exit(main(number, owner, group, sys.argv[4:]))
