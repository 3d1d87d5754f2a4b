# SPDX-License-Identifier: Apache-2.0
"""Who changes a file takes its set-id bits away, or may leave them: as on the kernel's own tmpfs.

The kernel knows the caller's capabilities, and says what is to be done in its own way: a SETATTR
that sets nothing before it allocates or copies, and for a chown(2) that names nobody.
"""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from serdab.fuse.abi import Opcode
from serdab.vfs.api import ROOT_INO, SetAttr
from serdab.vfs.memfs import MemFs
from tests.fuse.conftest import Served
from tests.unit.fuse.peer import Peer

_SCRIPT = """
import ctypes, os, sys
fd = os.open("f", os.O_RDWR)
match sys.argv[1]:
    case "allocate":
        os.posix_fallocate(fd, 0, 9000)
    case "copy":
        assert os.copy_file_range(fd, fd, 10, 0, 20) == 10
    case "write":
        assert os.pwrite(fd, b"x", 0) == 1
    case "truncate":
        os.ftruncate(fd, 5)
    case "chown":
        os.chown("f", -1, -1)
"""


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.parametrize("kind", ["memory", "sealed"])
def test_each_change_by_root_and_by_others(
    serve: Callable[..., Served], tmpfs: Path, kind: str
) -> None:
    ours = serve(kind).path
    os.chmod(ours, 0o777)
    other = ["setpriv", "--reuid=9", "--regid=9", "--clear-groups", "--inh-caps=-all",
             "--bounding-set=-all", "--"]  # fmt: skip
    found: dict[Path, dict[str, str]] = {ours: {}, tmpfs: {}}
    for where, modes in found.items():
        path = where / "f"
        path.write_bytes(bytes(100))
        for action, by in [
            *((action, []) for action in ("allocate", "copy", "write", "truncate", "chown")),
            *((action, other) for action in ("allocate", "copy", "write", "truncate")),
        ]:
            # Without execution for the group the bit means nothing, and whether it goes depends on
            # the caller's groups, which FUSE does not tell ("only if file has group execute").
            for mode in (0o6776,) if by else (0o6776, 0o6766):
                os.chmod(path, mode)
                subprocess.run(
                    [*by, "/usr/bin/python3", "-Ic", _SCRIPT, action], cwd=where, check=True
                )
                after = oct(stat.S_IMODE(path.stat().st_mode))
                modes[f"{action} by {'another' if by else 'root'}, {mode:o}"] = after
    assert found[ours] == found[tmpfs]


@pytest.mark.parametrize("minor", [36, 38])
def test_a_kernel_that_says_nothing_before_it_allocates_is_not_trusted_to(minor: int) -> None:
    """Before Linux 6.1 fallocate(2) asks for nothing: bits are gone whoever the caller is."""
    fs = MemFs()
    ino = fs.mknod(ROOT_INO, b"f", stat.S_IFREG, 0, 0, 0).ino
    calls = {
        Opcode.FALLOCATE: struct.pack("=QQQII", 0, 0, 100, 0, 0),
        Opcode.COPY_FILE_RANGE: struct.pack("=QQQQQQQ", 0, 0, ino, 0, 50, 10, 0),
    }
    with Peer(fs) as peer:
        assert peer.call(Opcode.INIT, 0, struct.pack("=IIII", 7, minor, 0, 0))[0] == 0
        for opcode, body in calls.items():
            fs.setattr(ino, SetAttr(mode=0o6775))
            assert peer.call(opcode, ino, body)[0] == 0
            assert stat.S_IMODE(fs.getattr(ino).mode) == (0o6775 if minor >= 38 else 0o775)
