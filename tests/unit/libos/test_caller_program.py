# SPDX-License-Identifier: Apache-2.0
"""Whether a program is one of those that may mount is asked of the file that was opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serdab.config.mounts import MountPolicy
from serdab.libos.callerplace import check_program
from serdab.libos.mountcall import BadCall


def test_a_link_that_leads_elsewhere_than_it_says_is_refused(tmp_path: Path) -> None:
    """As a program's own does if it changes between two looks: here by a link to a link."""
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    other.write_text("")
    allowed.symlink_to(other)
    link = tmp_path / "exe"
    link.symlink_to(allowed)
    policy = MountPolicy(programs=(str(allowed),))
    with pytest.raises(BadCall, match="other may not mount"):
        check_program(policy, str(link), os.getpid())
    allowed.unlink()
    allowed.write_text("")
    check_program(policy, str(link), os.getpid())


def test_a_file_in_no_mount_of_the_tree_is_refused(tmp_path: Path) -> None:
    fd = os.memfd_create("program")
    policy = MountPolicy(programs=("/memfd:program (deleted)",))
    with pytest.raises(BadCall, match="not in the tree"):
        check_program(policy, f"/proc/self/fd/{fd}", os.getpid())
    os.close(fd)
