# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness import installation
from tests.harness.user import OrdinaryUser


def test_a_path_below_a_private_directory_is_out_of_reach(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (private / "file").touch()
    (tmp_path / "link").symlink_to(private / "file")
    assert not installation.is_reachable(private / "file")
    assert not installation.is_reachable(tmp_path / "link")


def test_a_checkout_out_of_reach_is_copied_and_runs(
    as_user: OrdinaryUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach = installation.is_reachable
    monkeypatch.setattr(
        installation, "is_reachable", lambda path: path != installation.ROOT and reach(path)
    )
    with ExitStack() as stack:
        copied = installation.find_installation(stack)
        assert copied.checkout != installation.ROOT
        script = "import sys; sys.path[:0] = sys.argv[1].split(':'); import serdab, cryptography; "
        script += "print(serdab.__file__, cryptography.__file__)"
        result = as_user.run(copied.python, "-c", script, copied.env["PYTHONPATH"])
        assert result.returncode == 0, result.stderr
        assert all(path.startswith(str(copied.checkout)) for path in result.stdout.decode().split())
    assert not copied.checkout.exists()
