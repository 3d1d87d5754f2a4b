# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

from serdab.version import VERSION

ROOT = Path(__file__).resolve().parents[3]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def logical_lines(path: Path) -> list[str]:
    text = path.read_text().replace("\\\n", " ")
    return [
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_names_no_index(path: Path) -> None:
    assert "://" not in path.read_text()
    assert not re.search(r"^--(index-url|extra-index-url|find-links)", path.read_text(), re.M)


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_one_version_and_a_hash(path: Path) -> None:
    for line in logical_lines(path):
        assert re.match(r"[a-z0-9-]+==\S+", line), line
        assert "--hash=sha256:" in line, line


def test_every_dependency_of_the_package_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[<>=]", one)[0].lower() for one in project["dependencies"]}
    for path in LOCKS:
        locked = {line.partition("==")[0] for line in logical_lines(path)}
        assert wanted <= locked


def test_the_installed_package_has_the_version_the_source_says() -> None:
    assert importlib.metadata.version("serdab") == VERSION


def test_the_changelog_has_a_place_for_what_comes() -> None:
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text()
