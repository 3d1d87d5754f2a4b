# SPDX-License-Identifier: Apache-2.0
"""Names of files, volumes and instances make no line of their own and drive no terminal."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

import serdab
from serdab.cli.messages import Context
from serdab.errors import printable
from tests.harness.command import Command
from tests.harness.instances import MakeInstance

#: A line that would pass for ours, an escape sequence, a bidirectional override, no UTF-8.
FORGED: Final = "serdab: error: forged"
EVIL: Final = f"x\n{FORGED}\r\x1b[2J\u202e\udcff\u2028"


def check(result: subprocess.CompletedProcess[bytes]) -> str:
    """Require that no line was forged; return what was said, standard output and error."""
    said = (result.stdout + result.stderr).decode()
    assert FORGED in said, "the name is shown"
    assert not [line for line in said.splitlines() if line.startswith(FORGED)], said
    assert all(character.isprintable() or character == "\n" for character in said), repr(said)
    return said


def test_what_would_forge_is_escaped_and_the_rest_stays() -> None:
    assert printable("äöü 漢字 \\ ok") == "äöü 漢字 \\ ok"
    assert printable(EVIL) == f"x\\n{FORGED}\\r\\x1b[2J\\u202e\\udcff\\u2028"


def test_a_result_is_as_many_lines_as_were_given(capsys: pytest.CaptureFixture[str]) -> None:
    Context().result({}, EVIL, "two")
    Context().tell(EVIL)
    assert capsys.readouterr().out.count("\n") == 3


def test_json_holds_a_name_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    context = Context()
    context.as_json = True
    context.result({"name": EVIL}, "not shown")
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"name": EVIL}


def test_nothing_is_printed_past_the_function_that_escapes() -> None:
    """``print`` is for constants here, and for the functions that the tests above are about."""
    allowed = {"cli/messages.py", "cli/main.py", "cli/progress.py", "fuse/session.py"}
    package = Path(serdab.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        names = [node.id for node in ast.walk(ast.parse(path.read_bytes()))
                 if isinstance(node, ast.Name)]  # fmt: skip
        if "print" in names:
            found.add(str(path.relative_to(package)))
    assert found == allowed


def test_copy_bom_tells_of_files(serdab: Command, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    source.mkdir()
    (source / EVIL).write_text("content")
    bom = tmp_path / "bom.yaml"
    bom.write_text(f"targets:\n  - target: /\n    copy:\n      - dirs:\n          - {source}\n")
    check(serdab.run("copy-bom", "-f", bom, "--root", tmp_path / "root", "--dry-run"))


def test_reset_tells_of_volumes(make_instance: MakeInstance) -> None:
    instance = make_instance(encrypted=False)
    volume = instance.path / EVIL
    volume.mkdir()
    (volume / "anchor").write_bytes(b"")
    check(instance.command.run("-C", instance.path, "reset", "--yes", "--volume", EVIL))
    (volume / "file").write_text("in the way")
    check(instance.command.run("-C", instance.path, "reset", "--yes", "--volume", EVIL))


def test_fsck_tells_of_directories_and_of_damaged_files(make_instance: MakeInstance) -> None:
    def fill(image: Path) -> None:
        (image / EVIL).write_bytes(bytes(range(256)) * 4096)

    instance = make_instance(encrypted=False, fill=fill)
    copy = instance.path.with_name(EVIL)
    shutil.copytree(instance.path / "build/mount/__ROOT", copy)
    assert "clean" in check(instance.command.run("fsck", copy))
    file = max(copy.iterdir(), key=lambda path: path.stat().st_size)
    raw = bytearray(file.read_bytes())
    at = raw.find(bytes(range(256)))
    raw[at if at >= 0 else len(raw) // 2] ^= 1
    file.write_bytes(raw)
    said = check(instance.command.run("fsck", copy))
    assert "damaged" in said


def test_an_instance_of_such_a_name_is_built_and_told_of(serdab: Command, tmp_path: Path) -> None:
    name = EVIL.replace("\udcff", "")  # it stands in the configuration of the user's editor, too
    path = tmp_path / name
    check(serdab.run("new", path))
    check(serdab.run("-C", path / "no", "build"))
    check(serdab.run("-C", path, "mount", path / "nothing"))
