# SPDX-License-Identifier: Apache-2.0
"""A Python with Serdab that every user of the machine can run.

Usually that is the one running the tests. An interpreter or a checkout below a private home, as
pyenv and ``git clone`` by root make them, is out of an ordinary user's reach: then it is the
machine's own interpreter of the same version, and a copy of the sources and their dependencies.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import stat
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import zstandard

import serdab

ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Installation:
    """An interpreter, what it needs in its environment, and the checkout it belongs to."""

    python: str
    env: dict[str, str]
    checkout: Path


def find_installation(stack: ExitStack) -> Installation:
    """Return one that everybody can run; ``stack`` cleans up behind a copy."""
    python = _common_python()
    sources = Path(serdab.__file__).parents[1]
    packages = Path(zstandard.__file__ or "").parents[1]
    if all(map(is_reachable, (sources, packages, ROOT))):
        if python == sys.executable:
            return Installation(python, {}, ROOT)
        return Installation(python, _path(sources, packages), ROOT)
    copy = Path(tempfile.mkdtemp(prefix="si-"))
    stack.callback(shutil.rmtree, copy)
    copy.chmod(0o755)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(sources / "serdab", copy / "src/serdab", ignore=skip)
    shutil.copytree(ROOT / "demos", copy / "demos", ignore=skip)
    _copy_dependencies(copy / "packages")
    _open_to_all(copy)
    return Installation(python, _path(copy / "src", copy / "packages"), copy)


def is_reachable(path: Path) -> bool:
    """Return whether a user who owns nothing may read a path and walk the way to it."""
    real = path.resolve()
    if not real.stat().st_mode & stat.S_IROTH:
        return False
    ways = {*path.absolute().parents, *real.parents}
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in ways)


def _open_to_all(top: Path) -> None:
    """Let everybody read a tree, whatever the umask was."""
    for folder, _, names in os.walk(top):
        os.chmod(folder, 0o755)
        for name in names:
            path = Path(folder) / name
            path.chmod(path.stat().st_mode | 0o444)


def _common_python() -> str:
    major, minor = sys.version_info[:2]
    for candidate in (sys.executable, f"/usr/bin/python{major}.{minor}"):
        if os.path.exists(candidate) and is_reachable(Path(candidate)):
            return candidate
    pytest.skip(f"no Python {major}.{minor} that an ordinary user may run")


def _path(*folders: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(map(str, folders))}


def _copy_dependencies(target: Path) -> None:
    lock = (ROOT / "requirements/runtime.txt").read_text()
    for name in re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE):
        for file in importlib.metadata.files(name) or []:
            if ".." in file.parts or file.suffix == ".pyc":
                continue  # scripts, and what the interpreter makes itself
            place = target.joinpath(*file.parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(file.locate()), place)
