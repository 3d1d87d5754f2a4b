# SPDX-License-Identifier: Apache-2.0
"""The work that is timed. Each workload gets a directory on the mounted file system.

A workload says whether it starts on a fresh mount (``cold``: every contender is unmounted and
mounted before it, so that nothing lies in the kernel's caches), and what it counts: bytes, or
operations. The order is the order of the table: later ones use what earlier ones left.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
_BLOCK: Final = os.urandom(MIB)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much work: the full bench, or the short one for CI."""

    big_file_bytes: int
    random_reads: int
    small_files: int
    small_file_bytes: int
    archive: Path
    archive_entries: int


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the table. ``run`` does the work and returns how much it did, in ``unit``."""

    name: str
    unit: str
    cold: bool
    run: Callable[[Path, Scale], int]


def write_big(top: Path, scale: Scale) -> int:
    """Sequential write of one file, made durable."""
    fd = os.open(top / "big", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        # Blocks differ, so that no contender gains by noticing that they do not.
        for number in range(scale.big_file_bytes // MIB):
            block = number.to_bytes(8, "little") + _BLOCK[8:]
            if os.write(fd, block) != MIB:
                raise RuntimeError("short write")
        os.fsync(fd)
    finally:
        os.close(fd)
    return scale.big_file_bytes


def read_big(top: Path, scale: Scale) -> int:
    """Sequential read of that file, checked block by block."""
    fd = os.open(top / "big", os.O_RDONLY)
    buffer = bytearray(MIB)
    total = 0
    try:
        while count := os.readv(fd, [buffer]):
            number = int.from_bytes(buffer[:8], "little")
            if count != MIB or number != total // MIB:
                raise RuntimeError(f"wrong data at {total}")
            total += count
    finally:
        os.close(fd)
    if total != scale.big_file_bytes:
        raise RuntimeError(f"read {total} of {scale.big_file_bytes} bytes")
    return total


def read_random(top: Path, scale: Scale) -> int:
    """4 KiB reads at random places of that file."""
    chosen = random.Random(4096)  # the same places for everyone
    fd = os.open(top / "big", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    try:
        for _ in range(scale.random_reads):
            offset = chosen.randrange(scale.big_file_bytes // 4096) * 4096
            if len(os.pread(fd, 4096, offset)) != 4096:
                raise RuntimeError("short read")
    finally:
        os.close(fd)
    return scale.random_reads


def _small_paths(top: Path, scale: Scale) -> list[str]:
    return [f"{top}/small/{number // 1000:02}/{number:05}" for number in range(scale.small_files)]


def create_small(top: Path, scale: Scale) -> int:
    """Small files created, written, closed."""
    content = _BLOCK[: scale.small_file_bytes]
    paths = _small_paths(top, scale)
    for folder in sorted({path.rpartition("/")[0] for path in paths}):
        os.makedirs(folder)
    for path in paths:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, content)
        os.close(fd)
    return len(paths)


def stat_small(top: Path, scale: Scale) -> int:
    """Each of them looked up by its path."""
    paths = _small_paths(top, scale)
    for path in paths:
        if os.stat(path).st_size != scale.small_file_bytes:
            raise RuntimeError(f"wrong size: {path}")
    return len(paths)


def read_small(top: Path, scale: Scale) -> int:
    """Each of them opened, read, closed."""
    content = _BLOCK[: scale.small_file_bytes]
    paths = _small_paths(top, scale)
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        if os.read(fd, 1 << 16) != content:
            raise RuntimeError(f"wrong data: {path}")
        os.close(fd)
    return len(paths)


def remove_small(top: Path, scale: Scale) -> int:
    """Each of them unlinked."""
    paths = _small_paths(top, scale)
    for path in paths:
        os.unlink(path)
    return len(paths)


def untar(top: Path, scale: Scale) -> int:
    """tar(1) unpacks Python's standard library."""
    (top / "tree").mkdir()
    subprocess.run(["tar", "-xf", scale.archive, "-C", top / "tree"], check=True)
    return scale.archive_entries


def list_tree(top: Path, scale: Scale) -> int:
    """``ls -lR`` of it."""
    subprocess.run(["ls", "-lR", top / "tree"], stdout=subprocess.DEVNULL, check=True)
    return scale.archive_entries


def grep_tree(top: Path, scale: Scale) -> int:
    """``grep -r`` through it."""
    done = subprocess.run(["grep", "-rc", "no such text anywhere", top / "tree"],
                          stdout=subprocess.DEVNULL, check=False)  # fmt: skip
    if done.returncode != 1:
        raise RuntimeError(f"grep ended with {done.returncode}")
    return scale.archive_entries


def remove_tree(top: Path, scale: Scale) -> int:
    """``rm -rf`` of it."""
    subprocess.run(["rm", "-rf", top / "tree"], check=True)
    return scale.archive_entries


BYTES: Final = "MB/s"
OPS: Final = "ops/s"
WORKLOADS: Final = (
    Workload("sequential write + fsync", BYTES, cold=False, run=write_big),
    Workload("sequential read, cold", BYTES, cold=True, run=read_big),
    Workload("sequential read, warm", BYTES, cold=False, run=read_big),
    Workload("random 4 KiB read, cold", OPS, cold=True, run=read_random),
    Workload("create small files", OPS, cold=False, run=create_small),
    Workload("stat small files, cold", OPS, cold=True, run=stat_small),
    Workload("stat small files, warm", OPS, cold=False, run=stat_small),
    Workload("read small files, cold", OPS, cold=True, run=read_small),
    Workload("remove small files", OPS, cold=False, run=remove_small),
    Workload("untar", OPS, cold=False, run=untar),
    Workload("ls -lR, cold", OPS, cold=True, run=list_tree),
    Workload("grep -r, cold", OPS, cold=True, run=grep_tree),
    Workload("rm -rf", OPS, cold=False, run=remove_tree),
)
