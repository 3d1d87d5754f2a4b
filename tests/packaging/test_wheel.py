# SPDX-License-Identifier: Apache-2.0
"""The wheel: complete, the same bytes each time, and runnable where nothing of the checkout is."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from serdab.version import VERSION

ROOT = Path(__file__).resolve().parents[2]


def build_wheel(folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_module_and_the_data(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    wanted = {
        str(path.relative_to(source))
        for path in (source / "serdab").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    missing = wanted - inside
    assert not missing


def test_the_wheel_holds_nothing_but_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    scripts = f"serdab-{VERSION}.data/scripts"
    assert {path for path in names if path.startswith(scripts)} == {
        f"{scripts}/serdab",
        f"{scripts}/serdab-main",
    }
    tops = {path.partition("/")[0] for path in names if not path.startswith(scripts)}
    assert tops == {"serdab", f"serdab-{VERSION}.dist-info"}


def test_the_command_is_the_measured_program(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as inside:
        command = inside.read(f"serdab-{VERSION}.data/scripts/serdab")
        assert command == inside.read("serdab/init/bin/x86_64/door")
        # What an installer turns into the interpreter it installs for.
        main = inside.read(f"serdab-{VERSION}.data/scripts/serdab-main")
        assert main.startswith(b"#!python\n")


def test_the_static_programs_keep_their_execute_bit(wheel: Path) -> None:
    programs = [info for info in zipfile.ZipFile(wheel).infolist() if "/init/bin/" in info.filename]
    assert programs
    assert all(info.external_attr >> 16 & 0o111 == 0o111 for info in programs)


def test_building_twice_gives_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    assert build_wheel(tmp_path).read_bytes() == wheel.read_bytes()


def test_an_installed_wheel_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--target", str(tmp_path / "lib"), str(wheel)],
        check=True,
    )  # fmt: skip
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1));"
        "from serdab.cli.main import main; sys.exit(main())"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tmp_path / "lib"), "--version"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert VERSION in result.stdout
