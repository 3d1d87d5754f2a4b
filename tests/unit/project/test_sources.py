# SPDX-License-Identifier: Apache-2.0
"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("src", "tests", "tools", "bench", "demos")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PACKAGE = [path for path in SOURCES if path.is_relative_to(ROOT / "src")]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_source_file_names_its_licence_first(path: Path) -> None:
    lines = path.read_text().splitlines()
    first = lines[1] if lines[0].startswith("#!") else lines[0]
    assert first == "# SPDX-License-Identifier: Apache-2.0"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_source_file_holds_one_noun(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= 600


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_a_module_of_the_package_says_what_it_decides(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_input_is_never_checked_by_assert(path: Path) -> None:
    # `python -O` drops assertions. Those that only tell the type checker something are harmless.
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assert):
            assert "is not None" in ast.unparse(node.test) or "isinstance" in ast.unparse(node.test)
