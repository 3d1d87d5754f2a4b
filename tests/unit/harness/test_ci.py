# SPDX-License-Identifier: Apache-2.0
"""The rules of a run hold with one process and with two workers: shown by pytest with the suite's
own conftest on a small file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.harness.leftovers import SESSION_VARIABLE

ROOT = Path(__file__).resolve().parents[3]


WORKERS: Final = [[], ["-n2", "--dist=worksteal"]]
both = pytest.mark.parametrize("workers", WORKERS, ids=["alone", "workers"])


def run_pytest(
    folder: Path,
    source: str,
    *workers: str,
    ci: bool = False,
    others: Mapping[str, str] | None = None,
    **more: str,
) -> subprocess.CompletedProcess[str]:
    tests = folder / "tests"
    tests.mkdir()
    for name, text in {"it": source, **(others or {})}.items():
        (tests / f"test_{name}.py").write_text(text)
    # A session of its own: what the outer one keeps running is not left behind by this one.
    env = {
        name: value for name, value in os.environ.items() if name not in ("CI", SESSION_VARIABLE)
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT,
         "-p", "tests.conftest", "-p", "no:cacheprovider", "--basetemp", folder / "base",
         *workers, tests],
        cwd=ROOT,
        env={**env, **({"CI": "true"} if ci else {}), **more},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


ONE_SKIP = "import pytest\n\ndef test_x():\n    pytest.skip('no TPM')\n"
WHOLE_FILE = "import pytest\npytest.skip('no TPM', allow_module_level=True)\n"


@both
def test_an_unlisted_skip_fails_in_ci_and_says_why(tmp_path: Path, workers: list[str]) -> None:
    both_kinds = ("--continue-on-collection-errors", *workers)
    result = run_pytest(tmp_path, ONE_SKIP, *both_kinds, ci=True, others={"file": WHOLE_FILE})
    assert result.returncode != 0
    for skipped in ("test_it.py::test_x", "test_file.py"):
        why = f"{skipped} was skipped in CI, and tests/allowed-skips.txt does not name it"
        assert why in result.stdout
    assert result.stdout.count("no TPM") >= 2


def test_a_skip_is_a_skip_elsewhere(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, ONE_SKIP)
    assert result.returncode == 0, result.stdout
    assert "1 skipped" in result.stdout


@both
def test_a_process_left_behind_fails_the_run(tmp_path: Path, workers: list[str]) -> None:
    source = (
        "import subprocess\n\n"
        "def test_x():\n"
        "    subprocess.run(['sh', '-c', 'sleep 300 >/dev/null 2>&1 &'], check=True)\n"
    )
    result = run_pytest(tmp_path, source, *workers, SERDAB_TEST_PATIENCE_S="0.5")
    assert result.returncode != 0
    assert "process left behind" in result.stdout
    for line in result.stdout.splitlines():
        if line.startswith("E") and "process left behind" in line:
            os.kill(int(line.split("left behind: ")[1].split(":")[0]), 9)
            break


#: Each test waits for the other to have begun, so they are two workers'.
TWO_SEALS = """
import os, time
from pathlib import Path
import pytest
from serdab.crypto.aead import RecordCipher

@pytest.mark.parametrize("name", ["one", "two"])
def test_x(name):
    here = Path(__file__).parent
    (here / name).touch()
    deadline = time.monotonic() + 60
    while not all((here / other).exists() for other in ("one", "two")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    RecordCipher(bytes(28)).seal(1, CONTENT, b"beside")
"""


@pytest.mark.parametrize(
    ("content", "code"), [("name.encode()", 1), ("b'the same'", 0)], ids=["other", "same"]
)
def test_a_nonce_that_two_workers_used_for_two_contents_fails_the_run(
    tmp_path: Path, content: str, code: int
) -> None:
    result = run_pytest(tmp_path, TWO_SEALS.replace("CONTENT", content), *WORKERS[1])
    assert "2 passed" in result.stdout.splitlines()[-1], result.stdout
    assert result.returncode == code, result.stdout
    assert ("two workers used a nonce twice" in result.stdout) == (code == 1)


def test_a_worker_that_ended_without_its_nonces_fails_the_run(tmp_path: Path) -> None:
    source = "import os\n\ndef test_x():\n    os._exit(0)\n\ndef test_y():\n    pass\n"
    result = run_pytest(tmp_path, source, *WORKERS[1])
    assert result.returncode == 1, result.stdout
    assert "workers that noted no nonces: gw" in result.stdout


@both
def test_the_time_by_directory_stands_before_the_summary(
    tmp_path: Path, workers: list[str]
) -> None:
    source = "def test_x():\n    pass\n\ndef test_y():\n    pass\n"
    result = run_pytest(tmp_path, source, *workers)
    *_, head, row, last = result.stdout.splitlines()
    assert head.startswith("seconds/tests by directory, ")
    assert row.endswith("/2")
    assert "2 passed" in last
