# SPDX-License-Identifier: Apache-2.0
"""An attacker's tool for tests and demonstrations: find what an image keeps where, and change it.

Locating a file's data needs the key, as it should; changing bytes does not. Above: nothing of the
product, only tests and demos. Below: ``sefs``.
"""

from __future__ import annotations

import os
from pathlib import Path

from serdab.errors import NotFoundError
from serdab.sefs import keyspace as ks
from serdab.sefs.image import Image
from serdab.sefs.imageformat import SLOT, SLOT_BYTES
from serdab.structs import frozen
from serdab.vfs.api import ROOT_INO


@frozen
class StoredRange:
    """Where the stored bytes of one chunk lie in the host file."""

    ino: int
    offset: int
    length: int


def find_ino(image: Image, path: str) -> int:
    """Return the inode of an absolute path without symbolic links.

    Raises:
        NotFoundError: there is no such entry.
    """
    ino = ROOT_INO
    for name in os.fsencode(path).strip(b"/").split(b"/"):
        entry = image.dirent(ino, name)
        if entry is None:
            raise NotFoundError("no such file in the image", subject=path)
        ino = entry.ino
    return ino


def locate_chunk(image: Image, path: str, position: int) -> StoredRange:
    """Return where the chunk that holds byte ``position`` of a file is stored.

    Raises:
        NotFoundError: no such file, or no chunk of its own there (a hole, or kept in its inode).
    """
    ino = find_ino(image, path)
    inode = image.inode(ino)
    size = ks.record_size(inode.flags if inode else 0, image.header.chunk_size)
    group, index = divmod(position // size, ks.GROUP)
    slots = image.tree.get(ks.group_key(ino, group)) or b""
    if (index + 1) * SLOT_BYTES > len(slots):
        raise NotFoundError("no stored chunk there", subject=f"{path}, byte {position}")
    offset, length, *_ = SLOT.unpack_from(slots, index * SLOT_BYTES)
    if offset == 0:
        raise NotFoundError("a hole is there", subject=f"{path}, byte {position}")
    return StoredRange(ino, offset, length)


def flip_byte(path: Path, offset: int, *, mask: int = 0x01) -> None:
    """Change one byte of a host file in place; a second call puts it back."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        old = os.pread(fd, 1, offset)
        if len(old) != 1:
            raise NotFoundError("the file ends before that", subject=f"{path}, byte {offset}")
        os.pwrite(fd, bytes([old[0] ^ mask]), offset)
    finally:
        os.close(fd)
