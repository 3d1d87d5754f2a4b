# SPDX-License-Identifier: Apache-2.0
"""Lines for the operator: programs choose some of their words, never a line of their own."""

from __future__ import annotations

import errno
import io
import sys
from pathlib import Path

import pytest

from serdab.pal import log_to_stderr
from serdab.service.log import LogFile

_LINE = "mount: no such host directory: /a\nserdab: error: forged\x1b[2J"


def test_a_path_in_a_line_forges_no_second_one_on_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_to_stderr("error")("error", _LINE)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "\x1b" not in shown


class _HungUp(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.EIO, text)


def test_a_line_that_nobody_reads_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", _HungUp())
    log_to_stderr("error")("error", "the terminal has hung up")


def test_in_the_log_each_line_has_the_time_and_the_level_of_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "state" / "service" / "name.log"
    log = LogFile(str(path))
    log.write("notice", _LINE)
    assert not path.exists()  # another service may still have that name
    log.publish()
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert lines[1].split(" ", 2)[2].startswith("| ")
    assert all(line.split(" ")[1] == "notice:" for line in lines)
    assert "\x1b" not in path.read_text()
