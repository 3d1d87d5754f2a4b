# SPDX-License-Identifier: Apache-2.0
"""What the documents promise is what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serdab import errors
from serdab.cli.main import VERBS

ROOT = Path(__file__).resolve().parents[3]


def section(path: Path, heading: str) -> str:
    """Return the text below a heading, up to the next of its rank."""
    return path.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_the_readme_lists_exactly_the_verbs_there_are() -> None:
    rows = re.findall(r"^\| (`.*?) \|", section(ROOT / "README.md", "Verbs"), re.MULTILINE)
    listed = {verb for row in rows for verb in re.findall(r"`([a-z-]+)", row)}
    assert listed == set(VERBS)


def every_error(cls: type[errors.Error] = errors.Error) -> set[type[errors.Error]]:
    return {cls}.union(*(every_error(sub) for sub in cls.__subclasses__()))


def test_every_kind_of_error_is_promised_in_the_contract() -> None:
    promised = section(ROOT / "docs/cli-abi.md", "JSON").split("| `error` |")[1].split("\n")[0]
    # A module may have an error of its own for use inside; its kind is its parent's.
    assert set(re.findall(r"`([a-z-]+)`", promised)) == {cls.kind for cls in every_error()}


@pytest.mark.parametrize("cls", sorted(every_error(), key=str))
def test_every_error_exits_with_a_code_of_the_contract(cls: type[errors.Error]) -> None:
    table = section(ROOT / "docs/cli-abi.md", "Exit codes")
    assert f"\n| {cls.exit_code} |" in table


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", (ROOT / "README.md").read_text()))
    assert named <= targets


def test_every_relative_link_of_the_top_documents_leads_somewhere() -> None:
    for path in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (ROOT / target).exists(), f"{path.name}: {target}"
