# SPDX-License-Identifier: Apache-2.0
"""The C library, and the one place where its errno becomes an ``OSError``."""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

libc: Final = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    """Return ``result``, or raise the ``OSError`` that errno names if it is negative."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result
