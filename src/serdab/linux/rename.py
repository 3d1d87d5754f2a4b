# SPDX-License-Identifier: Apache-2.0
"""renameat2(2) with RENAME_EXCHANGE, which os.rename does not offer."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from serdab.linux.libc import check, libc

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2

_renameat2 = libc.renameat2
_renameat2.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)
_renameat2.restype = ctypes.c_int


def exchange(first: str, second: str) -> None:
    """Swap two names in one step.

    Raises:
        OSError: EINVAL where the file system cannot do it.
    """
    check(
        _renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE),
        first,
    )
