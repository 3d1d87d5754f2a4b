# SPDX-License-Identifier: Apache-2.0
"""In CI a skip is a failure: shown by pytest with the suite's own conftest on a small file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.leftovers import SESSION_VARIABLE

ROOT = Path(__file__).resolve().parents[3]


def run_pytest(
    folder: Path, source: str, *, ci: bool, **more: str
) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(source)
    # A session of its own: what the outer one keeps running is not left behind by this one.
    env = {
        name: value for name, value in os.environ.items() if name not in ("CI", SESSION_VARIABLE)
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT,
         "-p", "tests.conftest", "-p", "no:cacheprovider", folder],
        cwd=ROOT,
        env={**env, **({"CI": "true"} if ci else {}), **more},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


ONE_SKIP = "import pytest\n\ndef test_x():\n    pytest.skip('no TPM')\n"
WHOLE_FILE = "import pytest\npytest.skip('no TPM', allow_module_level=True)\n"


@pytest.mark.parametrize("source", [ONE_SKIP, WHOLE_FILE], ids=["test", "file"])
def test_an_unlisted_skip_fails_in_ci_and_says_why(tmp_path: Path, source: str) -> None:
    result = run_pytest(tmp_path, source, ci=True)
    assert result.returncode != 0
    assert "allowed-skips.txt does not name it" in result.stdout
    assert "no TPM" in result.stdout


def test_a_skip_is_a_skip_elsewhere(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, ONE_SKIP, ci=False)
    assert result.returncode == 0, result.stdout
    assert "1 skipped" in result.stdout


def test_a_process_left_behind_fails_the_run(tmp_path: Path) -> None:
    source = (
        "import subprocess\n\n"
        "def test_x():\n"
        "    subprocess.run(['sh', '-c', 'sleep 300 >/dev/null 2>&1 &'], check=True)\n"
    )
    result = run_pytest(tmp_path, source, ci=False, SERDAB_TEST_PATIENCE_S="0.5")
    assert result.returncode != 0
    assert "process left behind" in result.stdout
    for line in result.stdout.splitlines():
        if line.startswith("E") and "process left behind" in line:
            os.kill(int(line.split("left behind: ")[1].split(":")[0]), 9)
            break
