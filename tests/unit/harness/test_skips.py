# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.skips import is_allowed, load_allowed


def test_a_test_is_allowed_by_its_name_without_parameters(tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text("# why\n\ntests/a.py::test_x  # needs a TPM\n")
    allowed = load_allowed(listed)
    assert is_allowed("tests/a.py::test_x[1-2]", allowed)
    assert not is_allowed("tests/a.py::test_y", allowed)


def test_a_file_is_allowed_with_all_its_tests(tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text("tests/a.py  # needs a TPM\n")
    assert is_allowed("tests/a.py::test_y", load_allowed(listed))


def test_a_line_without_a_reason_is_refused(tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text("tests/a.py::test_x\n")
    with pytest.raises(ValueError, match="reason"):
        load_allowed(listed)
