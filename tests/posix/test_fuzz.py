# SPDX-License-Identifier: Apache-2.0
"""The union that instances have as their root answers as the kernel's own file systems do.

The short form of the fuzz of ``make posix``: another seed in each run (pytest prints what it
follows), the lower layer a sealed image, and a second session at the end.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.posix import fuzz
from tests.posix.places import MountedUnion, is_on_ext4

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that the other user of the fuzz reaches."""
    with tempfile.TemporaryDirectory(prefix="sp-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_the_union_answers_as_the_kernel_does(base: Path, tmpfs: Path) -> None:
    on_disk = is_on_ext4(base)
    folder = base / "theirs" if on_disk else tmpfs
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        union = MountedUnion(base, fuzz.begin)
        stack.callback(union.close)
        fuzz.compare(
            union.path / fuzz.TOP, fuzz.begin(folder), seed=random.randrange(1 << 32),
            count=1500, on_disk=on_disk, remount=union.remount,
        )  # fmt: skip
        union.close()


def test_a_difference_is_found_and_named(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
        fuzz.begin(folder)
    os.chmod(ours / "t/d1/b", 0o640)
    with pytest.raises(fuzz.Difference, match=r"seed 1, at the start: c\n"):
        fuzz.compare(ours / "t", theirs / "t", seed=1, count=10)
