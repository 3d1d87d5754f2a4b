# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import serdab
from tests.harness.user import OrdinaryUser


def test_an_ordinary_user_has_no_privilege_left(as_user: OrdinaryUser) -> None:
    status = as_user.run("cat", "/proc/self/status").stdout.decode()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [str(as_user.uid)] * 4
    assert int(fields["CapEff"], 16) == int(fields["CapInh"], 16) == 0


def test_an_ordinary_user_may_open_dev_fuse(as_user: OrdinaryUser) -> None:
    assert as_user.run("sh", "-c", "exec 3<>/dev/fuse").returncode == 0


def test_an_ordinary_user_runs_the_package_under_test(as_user: OrdinaryUser) -> None:
    result = as_user.run(as_user.python, "-c", "import serdab; print(serdab.__file__)")
    assert result.returncode == 0, result.stderr
    seen = Path(result.stdout.decode().strip())
    assert seen.read_bytes() == Path(serdab.__file__).read_bytes()
