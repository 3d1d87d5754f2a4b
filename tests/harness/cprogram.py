# SPDX-License-Identifier: Apache-2.0
"""Small C programs for the inside of a sandbox: static, so that an image needs nothing but them."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CompileC = Callable[..., Path]


@pytest.fixture(scope="session")
def compile_c(tmp_path_factory: pytest.TempPathFactory) -> CompileC:
    """Return ``compile_c(source, *, compiler="gcc", flags=("-static",)) -> Path``.

    The same source is compiled once a session. ``compiler="musl-gcc"`` links musl.
    """
    folder = tmp_path_factory.mktemp("c")
    folder.chmod(0o755)

    def compile_source(
        source: str, *, compiler: str = "gcc", flags: tuple[str, ...] = ("-static",)
    ) -> Path:
        if shutil.which(compiler) is None:
            pytest.skip(f"no {compiler}")
        name = hashlib.sha256(repr((source, compiler, flags)).encode()).hexdigest()[:16]
        program = folder / name
        if not program.exists():
            result = subprocess.run(
                [compiler, "-x", "c", "-O1", "-Wall", *flags, "-o", str(program), "-"],
                input=source,
                capture_output=True,
                text=True,
                check=False,
            )
            assert result.returncode == 0, f"{compiler}: {result.stderr}"
            program.chmod(0o755)
        return program

    return compile_source
