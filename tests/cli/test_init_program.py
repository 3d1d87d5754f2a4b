# SPDX-License-Identifier: Apache-2.0
"""An init FS without a program at /bin/init is refused when it is built, or when it boots."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness.command import Command, describe
from tests.harness.instances import MakeInstance


@pytest.mark.parametrize("kind", ["absent", "not executable", "directory", "fifo"])
def test_build_refuses_what_cannot_be_executed(serdab: Command, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "inst"
    serdab.ok("new", path)
    init = path / "initfs/bin/init"
    if kind == "not executable":
        init.chmod(0o644)
    else:
        init.unlink()
    if kind == "directory":
        init.mkdir()
    elif kind == "fifo":
        os.mkfifo(init, 0o755)
    result = serdab.run("-C", path, "build")
    assert result.returncode == 2, describe(result)
    said = result.stderr.decode()
    assert "the init FS has no init" in said
    assert "expected an executable /bin/init" in said
    assert not (path / "build").exists() or not list((path / "build").iterdir())


@pytest.mark.fuse
@pytest.mark.userns
def test_a_boot_refuses_a_link_to_what_cannot_be_executed(make_instance: MakeInstance) -> None:
    """Where a link in the init FS leads is seen by who runs it."""
    instance = make_instance(encrypted=False)
    init = instance.path / "initfs/bin/init"
    (init.parent / "real").write_bytes(init.read_bytes())
    (init.parent / "real").chmod(0o644)
    init.unlink()
    init.symlink_to("real")
    instance.command.ok("-C", instance.path, "build")
    result = instance.run("/bin/true")
    assert result.returncode == 125, describe(result)
    assert b"/bin/init" in result.stderr
