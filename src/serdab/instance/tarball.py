# SPDX-License-Identifier: Apache-2.0
"""Writes a ``.tar.gz`` whose bytes depend on nothing but its members.

Sorted, owned by 0:0 without names, modes 0755 or 0644, one time for all, a gzip header (RFC 1952)
without name and time. The bytes still depend on the zlib at hand, as every deflate stream does.
GNU headers: what every tar reads, also busybox's, with long names and large files.

Above: ``package``.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable
from typing import BinaryIO, Final

from serdab.structs import frozen

_LEVEL: Final = 6


@frozen
class Member:
    """A regular file: its path, and its bytes or an open file of ``size_bytes``."""

    path: str
    content: bytes | BinaryIO
    size_bytes: int
    executable: bool = False

    @classmethod
    def of(cls, path: str, content: bytes, *, executable: bool = False) -> Member:
        """Return one whose bytes are at hand."""
        return cls(path, content, len(content), executable)


def write_tarball(output: BinaryIO, members: Iterable[Member], mtime_s: int) -> None:
    """Write the members, and the directories on the way to them.

    Raises:
        OSError: an open file is shorter than it was said to be.
    """
    by_path = {member.path: member for member in members}
    directories: set[str] = set()
    for path in by_path:
        parts = path.split("/")
        directories.update("/".join(parts[:count]) for count in range(1, len(parts)))
    with (
        gzip.GzipFile("", "wb", compresslevel=_LEVEL, fileobj=output, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        # By components, so that a directory comes before what is in it.
        for path in sorted({*by_path, *directories}, key=lambda path: path.split("/")):
            entry = tarfile.TarInfo(path)
            entry.mtime = mtime_s
            member = by_path.get(path)
            if member is None:
                entry.type = tarfile.DIRTYPE
                entry.mode = 0o755
                tar.addfile(entry)
                continue
            entry.mode = 0o755 if member.executable else 0o644
            entry.size = member.size_bytes
            source = member.content
            tar.addfile(entry, io.BytesIO(source) if isinstance(source, bytes) else source)
