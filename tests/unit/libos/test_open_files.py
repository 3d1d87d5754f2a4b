# SPDX-License-Identifier: Apache-2.0
"""Which numbers are open files of a program: /proc may not tell, and that is no answer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from serdab.linux.process import is_open_file


def test_an_open_file_a_place_and_a_number_that_is_neither(tmp_path: Path) -> None:
    opened, place = os.open(tmp_path, os.O_RDONLY), os.open(tmp_path, os.O_PATH)
    try:
        assert is_open_file(os.getpid(), opened)
        assert not is_open_file(os.getpid(), place)
    finally:
        os.close(opened)
        os.close(place)
    assert not is_open_file(os.getpid(), opened)
    assert not is_open_file(os.getpid(), -1)


def test_a_process_that_cannot_be_seen_is_not_one_without_files() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(FileNotFoundError):
        is_open_file(gone.pid, 0)
