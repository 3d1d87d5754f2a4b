# SPDX-License-Identifier: Apache-2.0
"""What the README and the quickstart tell a new user to type works as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


def commands(text: str) -> list[str]:
    """Return the lines after a prompt, but for the one that activates the environment."""
    lines = re.findall(r"^\$ (.*)$", text, re.MULTILINE)
    return [line for line in lines if "activate" not in line]


def blocks(path: str, language: str) -> list[str]:
    """Return the fenced blocks of a language in a document."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", (ROOT / path).read_text(), re.MULTILINE | re.DOTALL
    )


def type_in(lines: list[str], base: Path) -> str:
    """Return what a shell prints that a user types these lines into."""
    private = {
        f"XDG_{name}": str(base / name.lower())
        for name in ("STATE_HOME", "CACHE_HOME", "CONFIG_HOME", "RUNTIME_DIR")
    }
    (base / "runtime_dir").mkdir(mode=0o700)
    # As an activated environment: its programs first.
    env = os.environ | private | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env["PYTHONPATH"] = str(ROOT / "src")
    result = subprocess.run(
        ["/bin/sh", "-euc", "\n".join(lines)],
        cwd=base,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_readme_by_hand(tmp_path: Path) -> None:
    (tmp_path / "demos").symlink_to(ROOT / "demos")
    (block,) = (text for text in blocks("README.md", "console") if "copy-bom" in text)
    assert "hello from inside" in type_in(commands(block), tmp_path)


def test_the_quickstart(tmp_path: Path) -> None:
    (bom,) = blocks("docs/quickstart.md", "yaml")
    (tmp_path / "app.yaml").write_text(bom)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/app.sh").write_text("echo the app runs; ls /opt/app\n")
    lines = [line for text in blocks("docs/quickstart.md", "console") for line in commands(text)]
    shown = type_in([line for line in lines if line.startswith("serdab")], tmp_path)
    assert "the app runs\napp.sh\n" in shown
    assert len(shown.strip().splitlines()[-1]) == 64  # print root-mac, the last line
