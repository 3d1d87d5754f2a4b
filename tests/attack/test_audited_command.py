# SPDX-License-Identifier: Apache-2.0
"""The command under test runs a copy of the package that notes each seal, in every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.command import COMMAND_ENVIRONMENT
from tests.harness.instances import MakeInstance

pytestmark = pytest.mark.root


def test_builder_and_servers_note_what_they_seal(make_instance: MakeInstance) -> None:
    notes = Path(COMMAND_ENVIRONMENT["PYTHONPATH"]).with_name("notes")
    before = {file.name for file in notes.iterdir()}
    instance = make_instance()
    built = {file.name for file in notes.iterdir()} - before
    assert built, "the builder left no note"
    done = instance.run("/bin/cp", "/bin/busybox", "/root/copy")
    assert done.returncode == 0, done.stderr
    assert {file.name for file in notes.iterdir()} - before - built, "no fs server left a note"
