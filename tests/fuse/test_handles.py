# SPDX-License-Identifier: Apache-2.0
"""Handles of files (open_by_handle_at(2)) outlast what the kernel remembers, as on tmpfs."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from serdab.linux.libc import check, libc
from serdab.linux.mounts import MountFlag, mount
from tests.fuse.conftest import Served

pytestmark = [pytest.mark.fuse, pytest.mark.root]

_BYTES = 128


def handle_of(path: Path) -> bytes:
    """Return what name_to_handle_at(2) says."""
    buf = ctypes.create_string_buffer(_BYTES.to_bytes(4, "little"), 8 + _BYTES)
    mount_id = ctypes.c_int()
    name = os.fsencode(path)
    check(libc.name_to_handle_at(-100, name, buf, ctypes.byref(mount_id), 0), "name_to_handle_at")
    return buf.raw


def opened(mount_fd: int, handle: bytes) -> int:
    return int(check(libc.open_by_handle_at(mount_fd, handle, os.O_PATH), "open_by_handle_at"))


def found(mount_fd: int, handles: dict[str, bytes], root: Path) -> dict[str, object]:
    """Return what each handle leads to: type and content, or the errno; of directories the path."""
    seen: dict[str, object] = {}
    for name, handle in handles.items():
        try:
            fd = opened(mount_fd, handle)
        except OSError as exc:
            seen[name] = errno.errorcode[exc.errno or 0]
            continue
        try:
            path = f"/proc/self/fd/{fd}"
            if os.path.isdir(path):
                seen[name] = os.path.relpath(os.readlink(path), root)
                assert os.stat("..", dir_fd=fd).st_ino == os.stat(root / name / "..").st_ino
            else:
                seen[name] = os.fstat(fd).st_mode, os.fstat(fd).st_size
        finally:
            os.close(fd)
    return seen


@pytest.mark.parametrize("kind", ["memory", "sealed"])
def test_each_kind_of_file(serve: Callable[..., Served], tmpfs: Path, kind: str) -> None:
    seen = []
    for root, flags in ((serve(kind).path, MountFlag.NOSUID | MountFlag.NODEV), (tmpfs, None)):
        (root / "one/two").mkdir(parents=True)
        (root / "one/two/file").write_bytes(b"content")
        os.link(root / "one/two/file", root / "linked")
        os.symlink("nowhere", root / "one/link")
        os.mkfifo(root / "one/fifo")
        (root / "gone").touch()
        names = ("one", "one/two", "one/two/file", "linked", "one/link", "one/fifo", "gone")
        handles = {name: handle_of(root / name) for name in names}
        (root / "gone").unlink()
        mount_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if flags is not None:
                # Drops what the kernel has cached of this file system, and of no other.
                mount("none", os.fspath(root), "", flags | MountFlag.REMOUNT, "")
            seen.append(found(mount_fd, handles, root))
        finally:
            os.close(mount_fd)
    assert seen[0] == seen[1]
    assert seen[0]["one/two"] == "one/two"
    assert seen[0]["gone"] == "ESTALE"
