# SPDX-License-Identifier: Apache-2.0
"""In a machine of the test's own: a mount namespace whose /dev/fuse only root may open."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.command import describe
from tests.harness.user import OrdinaryUser

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]

ROOT = Path(__file__).resolve().parents[3]
MACHINE = """
set -e
mount -t tmpfs none "$1"
mknod -m 600 "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
shift
"$@"
stat -c 'mode %a' /dev/fuse
grep -c session /proc/self/mountinfo || true
"""
SESSION = """
import os, subprocess, sys
from tests.harness import ownmounts
print("open" if ownmounts.is_open_to_all() else "closed", flush=True)
ownmounts.enter()
print("open" if ownmounts.is_open_to_all() else "closed", flush=True)
subprocess.run(["mount", "-t", "tmpfs", "of-the-session", sys.argv[1]], check=True)
sys.exit(subprocess.call([*sys.argv[2:], "sh", "-c", "exec 3<>/dev/fuse"]))
"""


@pytest.mark.parametrize("propagation", ["private", "shared"])
def test_the_machine_s_node_and_mounts_are_left_alone(
    as_user: OrdinaryUser, tmp_path: Path, propagation: str
) -> None:
    (tmp_path / "machine").mkdir()
    (tmp_path / "place").mkdir()
    done = subprocess.run(
        ["unshare", "--mount", f"--propagation={propagation}", "sh", "-c", MACHINE, "sh",
         tmp_path / "machine",
         sys.executable, "-c", SESSION, tmp_path / "place", *as_user.prefix],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, describe(done)
    assert done.stdout.decode().split("\n") == ["closed", "open", "mode 600", "0", ""]
