# SPDX-License-Identifier: Apache-2.0
"""Control groups of version 2, in a directory tree: what is written where, and what is left.

What the kernel makes of it is not seen here: files of a group are there when the group is made.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serdab.libos import limits
from serdab.libos.limits import Wanted

WANTED = Wanted(10, 64 << 20, servers_bytes=512 << 20, servers=40)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hierarchy of version 2 in which this process is in /slice/scope."""
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    (tmp_path / "slice/scope").mkdir(parents=True)
    made = os.mkdir

    def mkdir(path: str, mode: int = 0o777) -> None:
        made(path, mode)
        for name in ("cgroup.procs", "cgroup.subtree_control", "pids.max"):
            Path(path, name).touch()
        for name in ("memory.max", "memory.swap.max"):
            Path(path, name).touch()

    monkeypatch.setattr(limits, "_ROOT", str(tmp_path))
    monkeypatch.setattr(limits, "_own_groups", lambda: {"": "/slice/scope"})
    monkeypatch.setattr(os, "mkdir", mkdir)
    return tmp_path / "slice"


def _made(root: Path) -> Path:
    (group,) = root.glob("serdab-*")
    return group


def test_programs_and_servers_have_a_group_each(root: Path) -> None:
    (root / "cgroup.subtree_control").touch()
    group = limits.control_group(WANTED)
    assert group is not None
    made = _made(root)
    assert (root / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert (made / "cgroup.subtree_control").read_text() == "+memory +pids"
    found = {
        f"{child}/{name}": (made / child / name).read_text()
        for child in ("programs", "servers")
        for name in ("memory.max", "pids.max", "memory.swap.max")
    }
    assert found == {
        "programs/memory.max": str(64 << 20),
        "programs/pids.max": "11",
        "programs/memory.swap.max": "0",
        "servers/memory.max": str(512 << 20),
        "servers/pids.max": "40",
        "servers/memory.swap.max": "",
    }


def test_a_program_goes_to_one_and_a_server_to_the_other(root: Path) -> None:
    group = limits.control_group(WANTED)
    assert group is not None
    group.add(4711)
    servers = group.open_servers()
    limits.join(servers)
    for fd in servers:
        os.close(fd)
    made = _made(root)
    assert (made / "programs/cgroup.procs").read_text() == "4711"
    assert (made / "servers/cgroup.procs").read_text() == "0"
    assert (made / "cgroup.procs").read_text() == ""


def test_deaths_of_programs_alone_are_told(root: Path) -> None:
    group = limits.control_group(WANTED)
    assert group is not None
    made = _made(root)
    (made / "programs/memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (made / "servers/memory.events").write_text("low 0\noom 3\noom_kill 5\n")
    assert group.memory_kills() == 2


def test_without_limits_there_is_no_group(root: Path) -> None:
    assert limits.control_group(Wanted()) is None
    assert not list(root.glob("serdab-*"))
