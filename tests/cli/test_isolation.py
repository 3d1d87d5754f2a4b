# SPDX-License-Identifier: Apache-2.0
"""A run imports nothing from the current directory, which may be an instance of anybody's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness.command import describe
from tests.harness.instances import BuiltInstance, MakeInstance
from tests.keys.conftest import role, settled_tree

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

# What an installer writes for an entry point.
SCRIPT = "import sys\nfrom serdab.cli.main import main\nsys.exit(main())\n"
# Modules of the standard library, of dependencies, and names that interpreters look for.
NAMES = (
    "_socket", "argparse", "array", "blake3", "contextlib", "cryptography", "ctypes", "dataclasses",
    "difflib", "fcntl", "hashlib", "hmac", "importlib.py", "json", "logging", "msgspec", "pathlib",
    "pwd", "resource", "shutil", "signal", "socket", "struct", "subprocess", "threading", "types",
    "typing", "zstandard",
)  # fmt: skip
# Imported by the interpreter itself for -m.
USED_BY_M = {"importlib.py", "types", "typing", "contextlib"}
AT_START = ("serdab", "sitecustomize", "usercustomize", "re", "pkgutil", "encodings")


def plant(folder: Path, names: tuple[str, ...], marker: Path) -> None:
    """Put modules into a directory that tell when they are imported, and by whom."""
    text = f"import sys\nopen({str(marker)!r}, 'a').write(f'{{__name__}} {{sys.argv}}\\n')\n"
    for name in names:
        (folder / f"{name.removesuffix('.py')}.py").write_text(text)
    (folder / "planted.pth").write_text(f"import sys; open({str(marker)!r}, 'a').write('pth')\n")


@pytest.fixture
def instance(make_instance: MakeInstance) -> BuiltInstance:
    return make_instance(encrypted=True)


def run_in(
    instance: BuiltInstance, command: list[str | Path], **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a program in the instance, from within its directory."""
    assert instance.key is not None
    return subprocess.run(
        [*command, "run", "--image-key", instance.key, "/bin/echo", "ran"],
        cwd=instance.path, env={**instance.command.env, **environment},
        stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_installed_command_imports_nothing_from_where_it_is_called(
    instance: BuiltInstance, tmp_path: Path
) -> None:
    marker, script = tmp_path / "marker", tmp_path / "serdab-script"
    script.write_text(SCRIPT)
    plant(instance.path, (*NAMES, *AT_START), marker)
    result = run_in(instance, [instance.command.prefix[0], script])
    assert result.stdout == b"ran\n", describe(result)
    assert not marker.exists(), marker.read_text()


@pytest.mark.parametrize("slip", [":{}", "lib:{}"])
def test_nor_with_a_pythonpath_that_means_it_by_a_slip(
    instance: BuiltInstance, tmp_path: Path, slip: str
) -> None:
    """What the interpreter itself looks for at its start is beyond our reach: not planted here."""
    marker, script = tmp_path / "marker", tmp_path / "serdab-script"
    script.write_text(SCRIPT)
    (instance.path / "lib").mkdir()
    for folder in (instance.path, instance.path / "lib"):
        plant(folder, NAMES, marker)
    sources = instance.command.env.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    environment = {"PYTHONPATH": slip.format(sources)}
    result = run_in(instance, [instance.command.prefix[0], script], **environment)
    assert result.stdout == b"ran\n", describe(result)
    assert not marker.exists(), marker.read_text()


def test_nor_as_a_module_of_an_interpreter(instance: BuiltInstance, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    plant(instance.path, tuple(set(NAMES) - USED_BY_M), marker)
    result = run_in(instance, [instance.command.prefix[0], "-m", "serdab"])
    assert result.stdout == b"ran\n", describe(result)
    assert not marker.exists(), marker.read_text()


def test_what_holds_keys_is_isolated(instance: BuiltInstance) -> None:
    assert instance.key is not None
    process = instance.command.popen(
        "-C", instance.path, "run", "--image-key", instance.key,
        "/bin/sh", "-c", "echo on; sleep 1000",
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        family = settled_tree(process.pid, instance.path)
        ours = [pid for pid in family if role(pid) in ("kernel", "nursery", "fs")]
        assert len(ours) >= 3
        for pid in ours:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            assert command[1:3] == [b"-I", b"-S"]
            assert b"sys.path+=" in command[-2]  # the standard library comes first
            names = {
                item.partition(b"=")[0] for item in
                Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if item
            }  # fmt: skip
            assert not [name for name in names if name.startswith((b"PYTHON", b"LD_"))]
            assert Path(f"/proc/{pid}/cwd").resolve() == Path("/")
    finally:
        process.terminate()
        process.communicate(timeout=60)
