# SPDX-License-Identifier: Apache-2.0
"""``python tools/make_golden.py DIR``: writes the golden images of the current format.

Run once per format version. What is committed is never written again: every later version must
still read it (``tests/vectors``).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serdab.crypto.hashes import HashAlgorithm
from serdab.keys import Key
from serdab.sefs import imagebuild
from serdab.sefs import keyspace as ks
from serdab.sefs.imagebuild import ImageInfo, ImageOptions, build_image
from serdab.sefs.imagewalk import Additions, SourceEntry, Walk
from serdab.vfs import acl
from serdab.vfs.acl import AclEntry, dump_acl
from serdab.vfs.api import SetAttr
from serdab.vfs.union import Union

KEY = Key.parse("c7-32-b3-ed-44-df-ec-7b-25-2d-9a-32-38-8d-58-61")
_OPEN = [AclEntry(acl.USER_OBJ, 7), AclEntry(acl.GROUP_OBJ, 5), AclEntry(acl.OTHER, 5)]
_NAMED = [*_OPEN, AclEntry(acl.USER, 6, 1000), AclEntry(acl.GROUP, 4, 70_000)]
ACLS = {
    b"bin": {
        b"system.posix_acl_access": [*_NAMED, AclEntry(acl.MASK, 7)],
        b"system.posix_acl_default": _OPEN,
    },
    b"bin/tail": {b"system.posix_acl_access": _OPEN},
}


def make_source(source: Path) -> None:
    """Make the tree that the golden images hold."""
    (source / "bin").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "bin/inline").write_bytes(b"inline content\n")
    (source / "bin/tail").write_bytes(bytes(range(256)) * 20)
    (source / "bin/chunks").write_bytes(b"".join(i.to_bytes(4, "little") for i in range(50_000)))
    (source / "sparse").write_bytes(bytes(300_000) + b"end")
    (source / "link").symlink_to("bin/tail")
    (source / "hard").hardlink_to(source / "bin/inline")
    for path in sorted(source.rglob("*")):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o755 if path.name == "tail" else 0o644)
            os.utime(path, (1_700_000_000, 1_700_000_000))
    for path in (source, source / "bin", source / "empty"):
        path.chmod(0o755)


def change(fs: Union) -> None:
    """Make the changes that the golden volume holds."""
    chunks = fs.lookup(fs.lookup(1, b"bin").ino, b"chunks")
    fs.write(chunks.ino, 70_000, memoryview(b"changed"), kill_suidgid=False)
    new = fs.mknod(1, b"new", 0o100600, 0, 1000, 1000)
    fs.write(new.ino, 0, memoryview(b"n" * 70_000), kill_suidgid=False)
    fs.setxattr(new.ino, b"user.note", b"kept", 0)
    fs.unlink(1, b"sparse")
    fs.rename(1, b"empty", 1, b"moved", 0)
    fs.setattr(fs.lookup(1, b"hard").ino, SetAttr(mode=0o600))


def make_more(source: Path) -> None:
    """Add what version 2 has more: tails that compress one by one, records of their own size."""
    make_source(source)
    for number in range(3):
        text = b"".join(b"line %d of file %d\n" % (line, number) for line in range(300))
        (source / f"bin/text {number}").write_bytes(text)
        (source / f"bin/small {number}").write_bytes(text[:1900])
    (source / "records").write_bytes(b"".join(i.to_bytes(4, "little") for i in range(5_000)))
    for path in sorted(source.rglob("*")):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (1_700_000_000, 1_700_000_000))


class Golden(Walk):
    """The tree with what no host says of it."""

    def entries(self) -> Iterator[SourceEntry]:
        """Yield each inode, some with an ACL, one with records of 4 KiB."""
        for entry in super().entries():
            if entry.path in ACLS:
                entry.xattrs = [(name, dump_acl(acl)) for name, acl in ACLS[entry.path].items()]
            if entry.path == b"records":
                entry.inode.flags = ks.with_record_size(0, 4096)
            yield entry


IMAGES = {
    "integrity": (None, ImageOptions(chunk_size=65536, page_size=4096)),
    "encrypted": (KEY, ImageOptions(chunk_size=65536, page_size=4096)),
    "padded": (KEY, ImageOptions(zstd_level=0, padding=65536, hash=HashAlgorithm.SHA256)),
}
"""Every option of version 2 in one of them."""


def make_image(source: Path, out: Path, name: str) -> ImageInfo:
    """Build one of the golden images."""
    key, options = IMAGES[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagebuild, "Walk", Golden)
        additions = Additions({b"proc": 0o555}, {b"etc/image_config.json": b"{}\n"})
        return build_image(source, out, key=key, options=options, additions=additions)


def main(out: Path) -> None:
    """Write everything below ``out``; ``make_golden_volume`` does the volume."""
    source = out / "source"
    make_more(source)
    macs = {name: make_image(source, out / name, name).root_mac.hex() for name in IMAGES}
    (out / "macs.json").write_text(json.dumps(macs, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
