# SPDX-License-Identifier: Apache-2.0
"""``python tools/make_golden_volume.py DIR``: writes the golden volume of the current format.

It lies over the golden encrypted image of version 1 and has all that its version has, in the tree
and in the log. Run once per format version. What is committed is never written again.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Final

from serdab.sefs.image import open_image
from serdab.sefs.slots import LowerPart
from serdab.sefs.volume import Volume, open_volume
from serdab.vfs.acl import GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry, dump_acl
from serdab.vfs.api import ROOT_INO, Inode, SetAttr
from serdab.vfs.union import Union
from tools.make_golden import KEY, change

_LOWER: Final = Path(__file__).parents[1] / "tests/images/v1"
ACL: Final = dump_acl(
    [
        AclEntry(USER_OBJ, 6),
        AclEntry(USER, 4, 1000),
        AclEntry(GROUP_OBJ, 4),
        AclEntry(MASK, 4),
        AclEntry(OTHER, 0),
    ]
)
CHUNK: Final = 4096


def noise(size: int, seed: int) -> bytes:
    """Return bytes that repeat late."""
    return b"".join(
        (seed + i * 2654435761 & 0xFFFFFFFF).to_bytes(4, "big") for i in range(size // 4)
    )


def made(fs: Union, name: bytes, raw: bytes = b"") -> Inode:
    """Make a file."""
    inode = fs.mknod(ROOT_INO, name, 0o100644, 0, 0, 0)
    if raw:
        fs.write(inode.ino, 0, memoryview(raw), kill_suidgid=False)
    return inode


def change_more(fs: Union, volume: Volume) -> None:
    """Make what only version 2 has."""
    folder = fs.mkdir(fs.lookup(ROOT_INO, b"moved").ino, b"in it", 0o755, 0, 0)
    fs.rename(fs.lookup(ROOT_INO, b"moved").ino, b"in it", ROOT_INO, b"out of it", 0)
    fs.setxattr(folder.ino, b"system.posix_acl_default", ACL, 0)
    owner = made(fs, b"owner", noise(3 * CHUNK, 1))
    fs.setxattr(owner.ino, b"system.posix_acl_access", ACL, 0)
    clone = made(fs, b"clone")
    volume.share(owner, 0, clone, 0, 3)
    fs.setattr(clone.ino, SetAttr(size=3 * CHUNK))
    below = made(fs, b"below")
    chunks = fs.lookup(fs.lookup(ROOT_INO, b"bin").ino, b"chunks")
    volume.refer_below(below, 1, LowerPart(chunks.ino, 100_001, 3000))
    fs.setattr(below.ino, SetAttr(size=2 * CHUNK))
    room = made(fs, b"room", noise(CHUNK, 2))
    volume.reserve(room, 1, 2)
    fs.setattr(room.ino, SetAttr(size=3 * CHUNK))
    large = made(fs, b"large")
    volume.set_record_size(large, 16384)
    fs.write(large.ino, 0, memoryview(noise(40_000, 3)), kill_suidgid=False)


def main(out: Path) -> None:
    """Write ``out/volume`` and its root MAC."""
    macs = json.loads((_LOWER / "macs.json").read_text())
    mac = bytes.fromhex(macs["encrypted"])
    lower = open_image(_LOWER / "encrypted", key=KEY, expected_mac=mac)
    (out / "volume").mkdir(parents=True)
    volume = open_volume(
        out / "volume", key=KEY, lower=lower, create=True, chunk_size=CHUNK, page_size=4096
    )
    fs = Union(volume, lower)
    change(fs)
    change_more(fs, volume)
    fs.syncfs()
    mac = volume.root_mac
    last = made(fs, b"in the log", b"replayed")
    fs.setattr(last.ino, SetAttr(mode=0o600))
    again = made(fs, b"clone in the log")
    volume.share(fs.lookup(ROOT_INO, b"clone"), 0, again, 0, 2)
    fs.setattr(again.ino, SetAttr(size=2 * CHUNK))
    fs.write(fs.lookup(ROOT_INO, b"clone").ino, 0, memoryview(noise(CHUNK, 4)), kill_suidgid=False)
    fs.syncfs()
    # Room that the log keeps ahead is no part of it.
    os.truncate(out / "volume/log/00000001", 16 << 10)
    (out / "volume/reserve").unlink()
    # Not closed: the volume is left as a crash leaves it, with a log to replay.
    (out / "volume.json").write_text(json.dumps({"root mac": mac.hex()}) + "\n")
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
