# SPDX-License-Identifier: Apache-2.0
"""What a package carries of installed libraries, and what it says of the machines it runs on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from serdab.errors import EnvironmentRefused, MeasurementMismatch
from serdab.instance import carried

WHEEL = "Wheel-Version: 1.0\nTag: {}\n"


def install(folder: Path, *, recorded: str = "", tag: str = "py3-none-any") -> None:
    """Put a distribution named carriedlib there, as an installer would."""
    info = folder / "carriedlib-1.0.dist-info"
    (folder / "carriedlib/__pycache__").mkdir(parents=True)
    info.mkdir()
    (folder / "carriedlib/__init__.py").write_bytes(b"")
    (folder / "carriedlib/__pycache__/__init__.pyc").write_bytes(b"stale")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carriedlib\nVersion: 1.0\n")
    (info / "WHEEL").write_text(WHEEL.format(tag))
    (info / "direct_url.json").write_text("{}")
    empty = "sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0"
    if recorded == "none":
        return
    (info / "RECORD").write_text(
        f"carriedlib/__init__.py,{recorded or empty}\n"
        "carriedlib/__pycache__/__init__.pyc,,\n"
        "../../bin/carriedlib,sha256=x,1\n"
        "carriedlib-1.0.dist-info/direct_url.json,,\n"
        "carriedlib-1.0.dist-info/RECORD,,\n"
    )


@pytest.fixture
def only_carriedlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(carried, "LIBRARIES", {"carriedlib": ""})
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def test_what_is_recorded_is_carried_but_no_byte_code_scripts_or_notes(
    only_carriedlib: Path,
) -> None:
    install(only_carriedlib)
    (library,) = carried.libraries()
    assert [file.path for file in library.files] == ["carriedlib/__init__.py"]
    assert library.version == "1.0"


def test_a_file_that_was_changed_after_its_installation_is_refused(only_carriedlib: Path) -> None:
    install(only_carriedlib)
    (only_carriedlib / "carriedlib/__init__.py").write_bytes(b"changed")
    with pytest.raises(MeasurementMismatch, match="not what was installed"):
        carried.libraries()


def test_a_file_without_a_recorded_hash_is_refused(only_carriedlib: Path) -> None:
    install(only_carriedlib, recorded=",")
    with pytest.raises(MeasurementMismatch, match="a recorded hash"):
        carried.libraries()


def test_a_library_that_nobody_recorded_is_refused(only_carriedlib: Path) -> None:
    install(only_carriedlib, recorded="none")
    with pytest.raises(EnvironmentRefused, match="carriedlib"):
        carried.libraries()


def test_a_library_that_is_missing_is_named(only_carriedlib: Path) -> None:
    with pytest.raises(EnvironmentRefused, match="carriedlib"):
        carried.libraries()


@pytest.mark.parametrize(
    ("tag", "glibc"),
    [
        ("py3-none-any", (2, 0)),
        ("cp311-abi3-manylinux_2_34_x86_64", (2, 34)),
        ("cp311-cp311-manylinux2014_x86_64", (2, 17)),
        ("cp311-cp311-manylinux_2_28_x86_64\nTag: cp311-cp311-manylinux2014_x86_64", (2, 17)),
        ("cp311-cp311-manylinux_2_17_x86_64.manylinux_2_28_x86_64", (2, 17)),
        ("cp311-cp311-linux_x86_64", carried.this_glibc()),
    ],
)
def test_a_wheel_says_which_glibc_it_runs_on(
    only_carriedlib: Path, tag: str, glibc: tuple[int, int]
) -> None:
    install(only_carriedlib, tag=tag)
    (library,) = carried.libraries()
    assert library.glibc == glibc
