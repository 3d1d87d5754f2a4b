# SPDX-License-Identifier: Apache-2.0
"""Run the named checks in turn, all of them even after a failure, and say at the end which failed.

``python tools/check.py lint types imports docs tests``; ``make test`` and CI call exactly this, so
what passes here passes there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
_PYTHON: Final = (sys.executable, "-m")
_SCRIPTS: Final = Path(sys.executable).parent

CHECKS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "lint": (
        (*_PYTHON, "ruff", "check", "."),
        (*_PYTHON, "ruff", "format", "--check", "--quiet", "."),
    ),
    "types": ((*_PYTHON, "mypy"),),
    "imports": ((str(_SCRIPTS / "lint-imports"), "--no-logo"),),
    "docs": ((*_PYTHON, "mkdocs", "build", "--strict", "--quiet", "--site-dir", "site"),),
    # Last, so that pytest's own summary stands at the end of the output.
    # One worker for each processor; beyond four, what every worker makes for itself is wasted.
    "tests": ((*_PYTHON, "pytest", "--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal"),),
}


def run_check(name: str) -> bool:
    """Return whether every command of the check succeeded."""
    print(f"== {name}", flush=True)
    started_s = time.monotonic()
    passed = True
    for command in CHECKS[name]:
        # The scripts of the virtual environment are what the tests mean by "serdab".
        path = f"{_SCRIPTS}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        result = subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path}, check=False)
        passed = passed and result.returncode == 0
    verdict = "ok" if passed else "FAILED"
    print(f"== {name}: {verdict} in {time.monotonic() - started_s:.0f} s", flush=True)
    return passed


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in CHECKS]
    if unknown or not names:
        print(f"check: expected some of {', '.join(CHECKS)}, found {unknown or 'nothing'}")
        return 2
    failed = [name for name in names if not run_check(name)]
    if failed:
        print(f"check: failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
