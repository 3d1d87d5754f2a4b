# SPDX-License-Identifier: Apache-2.0
"""Serdab on every other Python from 3.11 on that this machine has: installed from the wheel and the
lock, taken once through its verbs. (The whole suite on one of them: ``make test PYTHON=…``.)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.command import Command, describe

ROOT = Path(__file__).resolve().parents[2]
MINORS = (11, 12, 13)
PROBE = (
    "import ensurepip, sys, venv; print(sys.version_info[0], sys.version_info[1], "
    "sys.implementation.name)"
)

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


def candidates(minor: int) -> Iterator[str]:
    """Yield where an interpreter of that version may be: the PATH, and pyenv's directory."""
    on_path = shutil.which(f"python3.{minor}")
    if on_path:
        yield on_path
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from sorted(str(path) for path in versions.glob(f"3.{minor}.*/bin/python3"))


def find(minor: int) -> str | None:
    """Return an interpreter that can make environments, or None."""
    for path in candidates(minor):
        result = subprocess.run(
            [path, "-I", "-c", PROBE], capture_output=True, text=True, check=False
        )
        if result.stdout.split() == ["3", str(minor), "cpython"]:
            return path
    return None


FOUND = {
    f"3.{minor}": path
    for minor in MINORS
    if minor != sys.version_info[1] and (path := find(minor)) is not None
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module", params=FOUND)
def python(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An environment with Serdab as a user installs it, on another Python."""
    place = tmp_path_factory.mktemp("other") / "venv"
    found, python = FOUND[request.param], place / "bin/python"
    # A pip of its own takes longer to install than all the rest.
    has_pip = subprocess.run([found, "-m", "pip", "--version"], capture_output=True, check=False)
    if has_pip.returncode == 0:
        subprocess.run([found, "-m", "venv", "--without-pip", place], check=True)
        pip = [found, "-m", "pip", "--python", str(python), "install", "-qq"]
    else:
        subprocess.run([found, "-m", "venv", place], check=True)
        pip = [str(python), "-m", "pip", "install", "-qq"]
    pip.append("--disable-pip-version-check")
    locked = ["--require-hashes", "-r", str(ROOT / "requirements/runtime.txt")]
    subprocess.run([*pip, *locked], check=True)
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    return python


def test_it_goes_through_its_verbs(python: Path, serdab: Command, tmp_path: Path) -> None:
    # As installed: nothing of the checkout, nothing of this suite's own environment.
    env = {name: value for name, value in serdab.env.items() if not name.startswith("PYTHON")}
    other = Command(env, (str(python.parent / "serdab"),))
    path, key, new_key = tmp_path / "instance", tmp_path / "key", tmp_path / "new key"
    other.ok("new", path)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, path / "image/bin/busybox")
    (path / "image/bin/sh").symlink_to("busybox")
    for file in (key, new_key):
        other.ok("gen-image-key", file)
    other.ok("-C", path, "build", "--image-key", key)

    def inside(script: str, used: Path) -> bytes:
        run = ("-C", path, "run", "--image-key", used, "/bin/sh", "-c", script)
        result = other.run(*run)
        assert result.returncode == 0, describe(result)
        return result.stdout

    inside("mkdir /root/d && echo one > /root/d/file", key)
    other.ok("-C", path, "rekey", "--image-key", key, "--new-image-key", new_key)
    other.ok("-C", path, "fsck", "--image-key", new_key)
    other.ok("-C", path, "start", "--image-key", new_key)
    try:
        result = other.run("-C", path, "exec", "/bin/sh", "-c", "echo two >> /root/d/file; exit 7")
        assert result.returncode == 7, describe(result)
    finally:
        other.ok("-C", path, "stop")
    assert inside("cat /root/d/file", new_key) == b"one\ntwo\n"
