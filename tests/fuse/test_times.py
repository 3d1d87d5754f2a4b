# SPDX-License-Identifier: Apache-2.0
"""Every time that utimensat(2) can name, as on the kernel's own tmpfs, or as the format ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from serdab.sefs.image import open_image
from serdab.sefs.imagebuild import build_image
from serdab.vfs.attributes import clamped_time
from tests.fuse.conftest import Served

MIN_NS, MAX_NS = -(1 << 63), (1 << 63) - 1
SECOND = 10**9
TIMES = (
    *range(-3, 3),
    -SECOND,
    -SECOND - 1,
    MIN_NS,
    MIN_NS - 1,
    MAX_NS,
    MAX_NS + 1,
    -(1 << 40) * SECOND - 1,
    (1 << 40) * SECOND - 1,
)


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.parametrize("kind", ["memory", "sealed", "host"])
def test_a_time_that_is_set_is_read(
    serve: Callable[..., Served], tmpfs: Path, tmp_path: Path, kind: str
) -> None:
    (tmpfs / "source").mkdir()
    ours = serve(kind, "--source", os.fspath(tmpfs / "source")).path / "f"
    theirs = tmpfs / "f"
    for path in (ours, theirs):
        path.touch()
    for stamp in TIMES:
        found = []
        for path in (ours, theirs):
            os.utime(path, ns=(stamp, stamp + 1))
            status = path.stat()
            found.append((status.st_atime_ns, status.st_mtime_ns))
        assert found[1] == (stamp, stamp + 1)
        if kind == "sealed":
            # docs/promises.md: a later one is stored as the last, an earlier one as the first.
            found[1] = (clamped_time(stamp), clamped_time(stamp + 1))
        assert found[0] == found[1]


@pytest.mark.fuse
@pytest.mark.root
def test_a_tree_with_such_times_is_sealed(tmpfs: Path, tmp_path: Path) -> None:
    source = tmpfs / "source"
    source.mkdir()
    for number, stamp in enumerate(TIMES):
        (source / f"{number:02}").touch()
        os.utime(source / f"{number:02}", ns=(stamp, stamp))
    built = build_image(source, tmp_path / "image", key=None)
    image = open_image(tmp_path / "image", key=None, expected_mac=built.root_mac)
    for number, stamp in enumerate(TIMES):
        entry = image.dirent(1, b"%02d" % number)
        assert entry is not None
        inode = image.inode(entry.ino)
        assert inode is not None
        assert inode.mtime_ns == clamped_time(stamp // SECOND * SECOND)
    image.close()
