# SPDX-License-Identifier: Apache-2.0
"""What people are told of slips: it names what is wrong, not what is usual, and fits a line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serdab.keys import Key
from tests.harness.command import Command, describe
from tests.harness.instances import make_new

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


@pytest.fixture
def app(serdab: Command, tmp_path: Path) -> Path:
    """An instance, not built yet."""
    path = tmp_path / "app"
    make_new(serdab, path)
    return path


def test_a_file_of_another_format_is_not_said_to_have_another_mode(
    serdab: Command, app: Path
) -> None:
    program = app / "image/bin/prog"
    program.write_bytes(b"\x7fELF of no kind")
    program.chmod(0o755)
    serdab.ok("-C", app, "build")
    result = serdab.run("-C", app, "run", "/bin/prog")
    assert result.returncode == 126, describe(result)
    assert b"mode" not in result.stderr
    assert b"readelf -h" in result.stderr


def test_of_a_key_file_its_form_and_its_readers_are_told(
    serdab: Command, app: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.touch(mode=0o600)
    text = Key.generate().dump()
    key.write_text(text.replace("-", "") + "\n")
    result = serdab.run("-C", app, "build", "--image-key", key)
    assert result.returncode == 2, describe(result)
    assert b"found 32 hexadecimal digits without hyphens" in result.stderr
    assert b"put a hyphen between" in result.stderr
    assert text[:5].replace("-", "").encode() not in result.stderr
    assert b"signed by" not in result.stderr  # nothing was
    key.write_text(text)
    result = serdab.run("-C", app, "build", "--image-key", key)
    assert (result.returncode, b"can read the key" in result.stderr) == (0, False)
    key.chmod(0o644)
    result = serdab.run("-C", app, "build", "--image-key", key)
    assert result.returncode == 0, describe(result)
    assert b"warning: every user can read the key file" in result.stderr


def test_a_key_is_not_written_to_a_file_named_like_standard_input(
    serdab: Command, tmp_path: Path
) -> None:
    result = serdab.run("gen-image-key", "-", cwd=tmp_path)
    assert result.returncode == 2, describe(result)
    assert not (tmp_path / "-").exists()
    serdab.ok("gen-image-key", "./-", cwd=tmp_path)


def test_a_path_without_end_fits_a_line(serdab: Command, tmp_path: Path) -> None:
    result = serdab.run("new", tmp_path / "/".join(["d" * 200] * 30))
    assert result.returncode == 2, describe(result)
    assert len(result.stderr) < 1000
    assert b"characters ...]" in result.stderr


@pytest.mark.parametrize("size", [0, 3, 8, 100])
def test_a_cut_image_is_said_to_be_cut(serdab: Command, app: Path, size: int) -> None:
    serdab.ok("-C", app, "build")
    os.truncate(app / "build/mount/__ROOT/image.sefs", size)
    result = serdab.run("-C", app, "fsck")
    assert result.returncode == 3, describe(result)
    said = b"found the first %d of its" % size if size else b"found an empty file"
    assert said in result.stderr


def test_a_program_without_end_fits_a_line(serdab: Command, app: Path) -> None:
    serdab.ok("-C", app, "build")
    result = serdab.run("-C", app, "run", "/" + "d" * 5000)
    assert result.returncode == 126, describe(result)
    assert len(result.stderr) < 1200


def test_help_fits_a_narrow_terminal(serdab: Command) -> None:
    for verb in ("print", "build", "copy-bom", "run", "rekey"):
        shown = serdab.run(verb, "--help", env={"COLUMNS": "40"}).stdout.decode()
        assert max(map(len, shown.splitlines())) <= 40, verb
