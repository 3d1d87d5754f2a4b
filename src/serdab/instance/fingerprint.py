# SPDX-License-Identifier: Apache-2.0
"""Whether a source tree changed since it was last sealed, and the record of what came out.

The record lives in the user's state directory, not in the instance: a build signs the root MAC of
an image that it did not seal again, so that MAC must not come from untrusted storage.

On-disk format:
    ``builds/<SHA-256 of the instance's real path>.json`` in the state directory, 0600: ``format``
    2, and for ``image`` and ``initfs`` a ``fingerprint`` and a ``root_mac`` (64 hex digits each)
    and ``written_ns``. Another format is no record: the trees are sealed again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import stat
import time
from typing import Final

from serdab.config.dirs import make_private, state_dir
from serdab.config.strict import load_object
from serdab.errors import Error
from serdab.keys import Key
from serdab.linux.dirfd import DirFd
from serdab.linux.dirtree import Descent, listing
from serdab.linux.durable import write_durably
from serdab.structs import frozen

# File systems stamp times at the ticks of a coarse clock; within this time of the last change a
# second change of the same size could leave the same stamp.
RACY_NS: Final = 50_000_000


@frozen
class Sealed:
    """The inputs of one sealing by their fingerprint, and the root MAC that came out.

    ``written_ns`` is when the image was last written to, by the clock of its own file system.
    """

    fingerprint: bytes
    root_mac: bytes
    written_ns: int


def fingerprint(
    tree: DirFd, *, parameters: bytes, key: Key | None, seen: dict[str, str] | None = None
) -> bytes | None:
    """Return a digest of everything that decides the sealed bytes, without reading the files.

    Path, type, mode, size, mtime, ctime and inode number stand for the content, as in git's index.
    None: something changed so recently that a stamp proves nothing. ``seen`` gets the same by path,
    of a directory its mode alone: its times change with what is in it, which is told by itself.
    """
    total = hashlib.sha256(b"serdab fingerprint 1\n")
    total.update(len(parameters).to_bytes(4, "big") + parameters)
    if key is None:
        total.update(b"integrity-only")
    else:
        # Not the key's hash: with HMAC of a fixed label nothing but equality can be learnt.
        total.update(hmac.digest(key.raw(), b"serdab fingerprint key 1", "sha256"))
    newest = 0
    here = Descent(tree)
    try:
        pending = [""]
        while pending:
            directory = pending.pop()
            here.go(directory)
            for entry in listing(here.fd):
                path = f"{directory}/{entry.name}" if directory else entry.name
                status = os.stat(entry.name, dir_fd=here.fd, follow_symlinks=False)
                newest = max(newest, status.st_ctime_ns)
                is_link = stat.S_ISLNK(status.st_mode)
                target = os.readlink(entry.name, dir_fd=here.fd) if is_link else ""
                fields = (
                    f"{status.st_mode} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} "
                    f"{status.st_dev} {status.st_ino} {status.st_nlink}"
                )
                for text in (path, fields, target):
                    total.update(os.fsencode(text) + b"\0")
                is_directory = stat.S_ISDIR(status.st_mode)
                if seen is not None:
                    seen[path] = f"{status.st_mode}" if is_directory else f"{fields} {target}"
                if is_directory:
                    pending.append(path)
    finally:
        here.close()
    total.update(f"{os.fstat(tree.fd).st_mode}".encode())
    if newest > time.time_ns() - RACY_NS:
        return None
    return total.digest()


def record_path(instance: str, suffix: str) -> str:
    """Return where something about an instance is on record."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(instance))).hexdigest()
    return os.path.join(state_dir(), "builds", name + suffix)


def load_record(instance: str) -> dict[str, Sealed]:
    """Return what is on record: nothing when there is none or it is unreadable.

    A lost record costs time, never correctness: the trees are sealed again.
    """

    def fail(field: str, expected: str, found: str, hint: str) -> Error:
        return Error(f"{field}: expected {expected}, found {found} {hint}")

    try:
        with open(record_path(instance, ".json"), "rb") as file:
            top = load_object(file.read(1 << 16), fail)
        top.integer("format", low=2, high=2)
        out = {}
        for name in ("image", "initfs"):
            if top.has(name):
                section = top.section(name)
                out[name] = Sealed(
                    section.hex_bytes("fingerprint", 32),
                    section.hex_bytes("root_mac", 32),
                    section.integer("written_ns", low=0, high=(1 << 63) - 1),
                )
                section.close()
        top.close()
    except (OSError, Error):
        return {}
    return out


def store_record(instance: str, sealed: dict[str, Sealed | None]) -> None:
    """Put the outcome of a build on record; None forgets one."""
    path = record_path(instance, ".json")
    make_private(os.path.dirname(path))
    value: dict[str, object] = {"format": 2}
    for name, item in sealed.items():
        if item is not None:
            value[name] = {
                "fingerprint": item.fingerprint.hex(),
                "root_mac": item.root_mac.hex(),
                "written_ns": item.written_ns,
            }
    write_durably(path, json.dumps(value, sort_keys=True).encode("ascii") + b"\n")
