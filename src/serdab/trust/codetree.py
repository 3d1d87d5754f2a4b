# SPDX-License-Identifier: Apache-2.0
"""The hash over the running Serdab's own code.

Above: ``measurement`` (which makes a digest of it), ``libos.begin`` (which names byte code by it,
as the first thing a run does: so nothing is imported here that is not needed).
"""

from __future__ import annotations

import os

from serdab.errors import InternalError

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

_LABEL: Final = b"serdab code digest 1\n"


def package_root() -> str:
    """Return the directory of the running package."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def code_hash(root: str | None = None) -> bytes:
    """Return the hash over every file of code below ``root`` (default: the running package).

    It is SHA-256 over a label and, in byte order of the paths, each path, a NUL and the SHA-256 of
    the file. Byte-code caches are not read: the processes that boot run without them or with
    caches of their own (see ``libos``).
    """
    import hashlib  # brings libcrypto, and not everybody who imports this measures

    base = root or package_root()
    entries: list[tuple[bytes, str]] = []
    pending = [("", base)]
    while pending:
        prefix, directory = pending.pop()
        with os.scandir(directory) as listing:
            for entry in listing:
                relative = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        pending.append((relative + "/", entry.path))
                elif entry.name.endswith(".py") or relative.startswith("init/bin/"):
                    entries.append((os.fsencode(relative), entry.path))
    if not entries:
        raise InternalError(f"no code below {base}")
    entries.sort()
    total = hashlib.sha256(_LABEL)
    for name, path in entries:
        with open(path, "rb", buffering=0) as file:
            content = file.read()
        total.update(name + b"\0" + hashlib.sha256(content).digest())
    return total.digest()
