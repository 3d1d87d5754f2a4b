# SPDX-License-Identifier: Apache-2.0
"""Renew requirements/runtime.txt and requirements/dev.txt from pyproject.toml.

One universal resolution serves every Python from the floor up. The files name no index: whoever
installs decides where packages come from, the hashes decide what they are.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
FLOOR: Final = "3.11"


def main() -> int:
    # The resolver is needed here only, so it is no part of what it locks.
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(scratch, with_pip=True)
        bin_dir = Path(scratch) / "bin"
        subprocess.run([bin_dir / "pip", "install", "--quiet", "uv"], check=True)
        for name, groups in (("runtime", []), ("dev", ["--group", "dev"])):
            command: list[str | Path] = [
                bin_dir / "uv", "pip", "compile", "--quiet",
                "--universal", "--python-version", FLOOR, "--generate-hashes", "--upgrade",
                "--no-emit-index-url", "--no-emit-find-links",
                "--custom-compile-command", "make lock",
                *groups, "pyproject.toml", "--output-file", f"requirements/{name}.txt",
            ]  # fmt: skip
            subprocess.run(command, cwd=ROOT, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
