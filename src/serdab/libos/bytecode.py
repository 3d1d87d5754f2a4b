# SPDX-License-Identifier: Apache-2.0
"""Where byte code is kept: never beside the sources, which could be older or other than it.

Above: ``begin`` (our own processes), ``cli.packaged`` (the first one, in a package). Below:
``config.dirs``, ``trust.codetree``. The latter reads this before it has any byte code, so nothing
is imported that is not needed.
"""

from __future__ import annotations

import os

from serdab.config.dirs import cache_dir, make_private
from serdab.trust.codetree import code_hash

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

_KEPT: Final = 8
_ROOM_BYTES: Final = 32 << 20


def _age(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_mtime_ns
    except FileNotFoundError:
        return 0  # another start cleared it just now


def byte_code_cache() -> str:
    """Return where our own processes keep byte code: a directory that is this code's alone."""
    base = make_private(os.path.join(cache_dir(), "pyc"))
    mine = os.path.join(base, code_hash().hex()[:32])
    if not os.path.isdir(mine):
        import shutil

        # Packages of several versions may be in use side by side; what is older goes.
        entries = sorted(os.scandir(base), key=_age, reverse=True)
        for entry in entries[_KEPT - 1 :]:
            shutil.rmtree(entry.path, ignore_errors=True)
        make_private(mine)
    return mine


def has_room(cache: str) -> bool:
    """Return whether byte code may be written below ``cache``.

    importlib takes a short write for a whole one: on a full disk half a module would be kept, and
    no start would get past it any more.
    """
    status = os.statvfs(cache)
    return status.f_bavail * status.f_frsize >= _ROOM_BYTES


def forget_byte_code() -> None:
    """Remove the byte code of this code: it is made again, and it may have been what was broken."""
    import shutil

    shutil.rmtree(os.path.join(cache_dir(), "pyc", code_hash().hex()[:32]), ignore_errors=True)
