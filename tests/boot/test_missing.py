# SPDX-License-Identifier: Apache-2.0
"""What a machine may lack: each is named, with a hint, before anything has started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import namespaceroot
from tests.harness.command import describe
from tests.sandbox.conftest import Box

pytestmark = [pytest.mark.fuse, pytest.mark.userns, pytest.mark.root]

#: Root of a user namespace with the machine's ids, a sandbox's among them.
ALL_IDS = [sys.executable, str(namespaceroot.__file__), "4294967295", "0", "0"]


def run_in(box: Box, preparation: str, *within: str) -> subprocess.CompletedProcess[bytes]:
    command = [*box.command.prefix, "-C", str(box.path), "run", "/bin/true"]
    return subprocess.run(
        [*within, "sh", "-c", f'{preparation}; exec "$@"', "sh", *command],
        env=box.command.env,
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_no_user_namespaces(hosted: Box) -> None:
    if not hosted.is_root:
        return  # a namespace of this test's own has no other user in it
    preparation = "echo 0 > /proc/sys/user/max_user_namespaces"
    result = run_in(hosted, preparation, *ALL_IDS)
    assert result.returncode == 125, describe(result)
    assert b"[environment]" in result.stderr
    assert b"max_user_namespaces" in result.stderr


def test_a_fuse_device_for_root_only(hosted: Box, tmp_path: Path) -> None:
    if hosted.is_root:
        return  # root may open anything
    closed = tmp_path / "fuse"
    closed.touch(0o600)
    result = run_in(hosted, f"mount --bind {closed} /dev/fuse", "unshare", "--mount")
    assert result.returncode == 125, describe(result)
    assert b"[environment]" in result.stderr
    assert b"/dev/fuse" in result.stderr
    assert b"hint:" in result.stderr
