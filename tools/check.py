# SPDX-License-Identifier: Apache-2.0
"""Run the named checks, all of them even after a failure, and say at the end which failed.

``python tools/check.py lint types imports docs tests``; ``make test`` and CI call exactly this, so
what passes here passes there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
_PYTHON: Final = (sys.executable, "-m")
_SCRIPTS: Final = Path(sys.executable).parent

#: One for each processor and one more, since a third of the time tests wait for somebody; beyond
#: five, what every worker makes for itself is wasted.
_WORKERS: Final = min(len(os.sched_getaffinity(0)) + 1, 5)

CHECKS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "lint": (
        (*_PYTHON, "ruff", "check", "."),
        (*_PYTHON, "ruff", "format", "--check", "--quiet", "."),
    ),
    "types": ((*_PYTHON, "mypy"),),
    "imports": ((str(_SCRIPTS / "lint-imports"), "--no-logo"),),
    "docs": ((*_PYTHON, "mkdocs", "build", "--strict", "--quiet", "--site-dir", "site"),),
    # Last, so that pytest's own summary stands at the end of the output.
    "tests": ((*_PYTHON, "pytest", f"--numprocesses={_WORKERS}", "--dist=worksteal"),),
}


def run_check(name: str, *, output: int | None = None) -> tuple[bool, str]:
    """Return whether every command of the check succeeded, and what was said.

    ``output`` None: it is said at once, on our own standard output.
    """
    started_s = time.monotonic()
    passed, said = True, ""
    for command in CHECKS[name]:
        # The scripts of the virtual environment are what the tests mean by "serdab".
        path = f"{_SCRIPTS}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        result = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PATH": path},
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            text=True,
            check=False,
        )
        passed = passed and result.returncode == 0
        said += result.stdout or ""
    verdict = "ok" if passed else "FAILED"
    return passed, f"{said}== {name}: {verdict} in {time.monotonic() - started_s:.0f} s"


def run_checks(names: list[str]) -> Iterator[tuple[str, bool]]:
    """Run the tests last, with the terminal, and the other checks before, beside each other."""
    others = [name for name in names if name != "tests"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = pool.map(lambda name: run_check(name, output=subprocess.PIPE), others)
        for name, (passed, said) in zip(others, results, strict=True):
            print(f"== {name}\n{said}", flush=True)
            yield name, passed
    if "tests" in names:
        print("== tests", flush=True)
        passed, said = run_check("tests")
        print(said, flush=True)
        yield "tests", passed


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in CHECKS]
    if unknown or not names:
        print(f"check: expected some of {', '.join(CHECKS)}, found {unknown or 'nothing'}")
        return 2
    failed = [name for name, passed in run_checks(names) if not passed]
    if failed:
        print(f"check: failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
