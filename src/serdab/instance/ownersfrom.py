# SPDX-License-Identifier: Apache-2.0
"""Reads who owns the entries of a whole root file system: from the tree, a tar archive or mtree(5).

Nothing is read of a file system that was unpacked by an ordinary user but that everything is this
user's: there the archive that it came from still knows (``docker export``), or a list that was made
of it (``bsdtar --format=mtree``). The root itself stays the inner root's, as everywhere.

Above: ``build``. Below: ``owners``, ``linux.dirtree``.
"""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Final

from serdab.errors import UsageError
from serdab.instance.owners import MAX_ID, Owner
from serdab.linux import dirtree
from serdab.linux.dirfd import DirFd

#: What stands for the tree itself on a command line.
TREE: Final = "tree"
_MAX_LIST_BYTES: Final = 256 << 20
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")


def owners_of_tree(tree: DirFd) -> dict[str, Owner]:
    """Return (uid, gid) by path of all in a tree that is not 0:0.

    Raises:
        OSError: a directory cannot be read.
    """
    here = tree.real()
    out: dict[str, Owner] = {}
    for fd, entries in dirtree.walk(tree):
        place = os.readlink(f"/proc/self/fd/{fd}").removeprefix(here)
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            _put(out, f"{place}/{entry.name}", (status.st_uid, status.st_gid))
    return out


def owners_of_file(path: str) -> dict[str, Owner]:
    """Return (uid, gid) by path of all in an archive or a list that is not 0:0.

    Raises:
        UsageError: it cannot be read, or is neither a tar archive nor an mtree(5) list.
    """
    try:
        if tarfile.is_tarfile(path):
            return _of_tar(path)
        with open(path, "rb") as file:
            raw = file.read(_MAX_LIST_BYTES)
    except OSError as exc:
        raise _refused(path, os.strerror(exc.errno or 0)) from exc
    except (tarfile.TarError, EOFError, zlib.error) as exc:
        raise _refused(path, f"a damaged archive: {exc}") from exc
    out: dict[str, Owner] = {}
    count = 0
    for name, owner in _of_mtree(path, raw):
        count += 1
        _put(out, name, owner)
    if not count:
        raise _refused(path, "no entry with uid= and gid=")
    return out


def _of_tar(path: str) -> dict[str, Owner]:
    out: dict[str, Owner] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if not (0 <= member.uid <= MAX_ID and 0 <= member.gid <= MAX_ID):
                raise _refused(path, f"{member.name} of {member.uid}:{member.gid}")
            _put(out, member.name, (member.uid, member.gid))
    return out


def _put(out: dict[str, Owner], name: str, owner: Owner) -> None:
    name = posixpath.normpath(f"/{name}").lstrip("/")
    if name and any(owner):
        out[name] = owner
    else:
        out.pop(name, None)  # the last of several counts, as where an archive is unpacked


def _of_mtree(path: str, raw: bytes) -> Iterator[tuple[str, Owner]]:
    """Yield each entry that has an owner; ``/set`` gives those that follow what they do not say."""
    defaults: dict[bytes, bytes] = {}
    place: list[str] = []
    for line in raw.replace(b"\\\n", b" ").split(b"\n"):
        words = line.split()
        if not words or words[0].startswith(b"#"):
            continue
        first, keywords = words[0], dict(_keyword(word) for word in words[1:])
        if first == b"/set":
            defaults.update(keywords)
        elif first == b"/unset":
            defaults = {key: value for key, value in defaults.items() if key not in words[1:]}
        elif first == b"..":
            del place[-1:]
        else:
            keywords = {**defaults, **keywords}
            name = _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 255]), first)
            text = os.fsdecode(name)
            is_whole = "/" in text
            whole = text if is_whole else "/".join([*place, text])
            if not is_whole and keywords.get(b"type") == b"dir":
                place.append(text)
            if b"uid" in keywords and b"gid" in keywords:
                yield whole, (_id(path, line, keywords[b"uid"]), _id(path, line, keywords[b"gid"]))


def _keyword(word: bytes) -> tuple[bytes, bytes]:
    key, _, value = word.partition(b"=")
    return key, value


def _id(path: str, line: bytes, raw: bytes) -> int:
    if not raw.isdigit() or len(raw) > 10 or int(raw) > MAX_ID:
        raise _refused(path, f"the line {os.fsdecode(line[:100])!r}")
    return int(raw)


def _refused(path: str, found: str) -> UsageError:
    return UsageError(
        "owners cannot be read",
        stage="build",
        subject=path,
        expected=f"a tar archive, or an mtree(5) list with uid= and gid= from 0 to {MAX_ID}",
        found=found,
        hint="`docker export` writes such an archive; `--owners tree` takes those of image/ itself",
    )
