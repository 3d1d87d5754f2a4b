# SPDX-License-Identifier: Apache-2.0
"""What ext4 has and a sealed file system refuses, with the errno that docs/promises.md says."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable

import pytest

from tests.fuse.conftest import Served

_FICLONE = 0x40049409
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
_COLLAPSE_RANGE, _INSERT_RANGE = 0x08, 0x20
_AT_FDCWD, _WHITEOUT = -100, 4


@pytest.mark.fuse
@pytest.mark.root
def test_each_is_refused_and_changes_nothing(serve: Callable[..., Served]) -> None:
    top = serve("sealed").path
    (top / "f").write_bytes(b"x" * 65536)
    libc = ctypes.CDLL(None, use_errno=True)
    with open(top / "f", "r+b") as source, open(top / "g", "w+b") as into:
        for request, argument, expected in (
            (_FICLONE, source.fileno(), errno.EOPNOTSUPP),
            (_GETFLAGS, bytes(8), errno.ENOTTY),
            (_SETFLAGS, (0x10).to_bytes(8, "little"), errno.ENOTTY),
        ):
            with pytest.raises(OSError, match=os.strerror(expected)):
                fcntl.ioctl(into, request, argument)
        for mode in (_COLLAPSE_RANGE, _INSERT_RANGE):
            length = ctypes.c_long(4096)
            assert libc.fallocate(source.fileno(), mode, ctypes.c_long(0), length) == -1
            assert ctypes.get_errno() == errno.EOPNOTSUPP
    old, new = (os.fsencode(top / name) for name in "fh")
    assert libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _WHITEOUT) == -1
    assert ctypes.get_errno() == errno.EINVAL
    assert sorted(os.listdir(top)) == ["f", "g"]
    assert (top / "f").read_bytes() == b"x" * 65536
    before = (top / "f").stat().st_atime_ns
    (top / "f").read_bytes()
    assert (top / "f").stat().st_atime_ns == before
