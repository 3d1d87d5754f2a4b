# SPDX-License-Identifier: Apache-2.0
"""A volume starts small, and what it does not need any more it does not keep."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serdab.keys import Key
from serdab.sefs.volume import open_volume
from serdab.vfs.union import Union
from tests.harness.instances import MakeInstance

KEY = Key(b"s" * 16)


def open_fs(path: Path) -> Union:
    return Union(open_volume(path, key=KEY, create=True), None)


def write(fs: Union, name: bytes, content: bytes) -> None:
    inode = fs.mknod(1, name, 0o100644, 0, 0, 0)
    fs.write(inode.ino, 0, memoryview(content), kill_suidgid=False)


def used(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.mark.fuse
@pytest.mark.userns
def test_nothing_is_created_before_the_first_change(make_instance: MakeInstance) -> None:
    instance = make_instance()
    upper = instance.path / "run/mount/__ROOT"
    assert instance.run("/bin/ls", "-lR", "/bin").returncode == 0
    assert not upper.exists() or os.listdir(upper) == []
    assert instance.run("/bin/sh", "-c", "echo change > /root/file").returncode == 0
    assert "anchor" in os.listdir(upper)


def test_the_first_change_takes_little(tmp_path: Path) -> None:
    fs = open_fs(tmp_path)
    write(fs, b"one", b"x")
    fs.fsync(1, datasync=False)
    while_open = used(tmp_path)
    fs.close()
    assert while_open <= 8 << 20  # the log's first MiB and the reserve
    assert used(tmp_path) <= 128 << 10


def test_the_room_set_aside_goes_back_after_a_kill(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        fs = open_fs(tmp_path)
        write(fs, b"one", b"x")
        fs.fsync(1, datasync=False)
        os._exit(0)  # as kill -9 would leave it
    os.waitpid(pid, 0)
    fs = open_fs(tmp_path)
    assert fs.lookup(1, b"one").size == 1
    fs.close()
    assert used(tmp_path) <= 128 << 10
