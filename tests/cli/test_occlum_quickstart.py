# SPDX-License-Identifier: Apache-2.0
"""Occlum's quickstart: a program is put into image/bin, and no BOM names what it needs."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from serdab.cli.messages import Context
from tests.harness.command import Command, describe
from tests.harness.cprogram import CompileC

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

HELLO = """
#include <stdio.h>
#include <math.h>
#include <stdlib.h>
int main(int argc, char **argv) { printf("hello %.0f\\n", sqrt(16.0 * argc)); return 0; }
"""


@pytest.fixture
def occlum(serdab: Command) -> Command:
    """Return the command under the name that scripts written for Occlum know."""
    code = (
        "import sys; sys.argv[0] = '/somewhere/occlum';"
        "from serdab.cli.main import main; sys.exit(main())"
    )
    return Command(serdab.env, (sys.executable, "-c", code))


@pytest.mark.parametrize("verb", ["new", "init"])
def test_a_program_put_into_the_image_runs(
    occlum: Command, compile_c: CompileC, tmp_path: Path, verb: str
) -> None:
    path = tmp_path / "x"
    if verb == "new":
        occlum.ok("new", path)
    else:
        path.mkdir()
        occlum.ok("-C", path, "init")
    program = compile_c(HELLO, flags=("-fno-builtin", "-Wl,--no-as-needed", "-lm"))
    shutil.copy(program, path / "image/bin/hello")
    occlum.ok("-C", path, "build")
    done = occlum.run("-C", path, "run", "/bin/hello")
    assert (done.returncode, done.stdout) == (0, b"hello 4\n"), describe(done)


@pytest.mark.skipif(shutil.which("musl-gcc") is None, reason="no musl-gcc")
def test_musl_s_loader_lies_there_where_this_machine_has_it(
    occlum: Command, tmp_path: Path
) -> None:
    occlum.ok("new", tmp_path / "x")
    (loader,) = (tmp_path / "x/image/lib").glob("ld-musl-*.so.1")
    assert loader.read_bytes()[:4] == b"\x7fELF"


def test_under_our_own_name_the_image_is_empty(serdab: Command, tmp_path: Path) -> None:
    serdab.ok("new", tmp_path / "x")
    assert [path for path in (tmp_path / "x/image").rglob("*") if not path.is_dir()] == []


def test_under_our_own_name_the_build_says_what_lacks_its_loader(
    serdab: Command, compile_c: CompileC, tmp_path: Path
) -> None:
    path = tmp_path / "x"
    serdab.ok("new", path)
    program = compile_c(HELLO, flags=("-fno-builtin", "-Wl,--no-as-needed", "-lm"))
    (path / "image/opt/deep").mkdir()
    for place in ("bin/hello", "opt/deep/hello"):
        shutil.copy(program, path / "image" / place)
    shutil.copy(compile_c("int main(void) { return 0; }"), path / "image/bin/whole")
    (path / "image/bin/short").write_bytes(program.read_bytes()[:70])
    (path / "image/bin/short").chmod(0o755)
    for words in (("build", "--check"), ("build",)):
        told = serdab.run("-C", path, *words).stderr.decode()
        assert "/bin/hello and 1 more will not start: /lib" in told, words
        assert "copy-bom" in told
        assert "whole" not in told
        assert "short" not in told
    # Told once: nothing is sealed, and nothing read, where nothing changed.
    told = serdab.run("-C", path, "build").stderr.decode()
    assert "will not start" not in told


def test_nobody_hears_of_loaders_that_are_there(occlum: Command, tmp_path: Path) -> None:
    occlum.ok("new", tmp_path / "x")
    shutil.copy("/bin/cat", tmp_path / "x/image/bin/cat")
    done = occlum.run("-C", tmp_path / "x", "build")
    assert done.returncode == 0
    assert b"will not start" not in done.stderr


def test_what_scripts_pass_besides_works_or_is_told(occlum: Command, tmp_path: Path) -> None:
    path = tmp_path / "x"
    occlum.ok("new", path)
    shutil.copy("/bin/busybox", path / "image/bin/nproc")
    occlum.ok("-C", path, "build")
    context = Context()
    context.take_occlum_level("TRACE")
    assert context.log_level == "debug"
    context.take_occlum_level("")
    assert context.log_level == "debug"
    odd = occlum.run("-C", path, "print", "root-mac", env={"OCCLUM_LOG_LEVEL": "loud"})
    assert (odd.returncode, b"no such level, loud" in odd.stderr) == (0, True)
    for option in (("--cpus", "1"), ("--cpus=1",)):
        assert occlum.run("-C", path, "run", *option, "/bin/nproc").stdout == b"1\n"
    for count in ("0", "-1", "many", str(len(os.sched_getaffinity(0)) + 1), "9" * 9):
        wrong = occlum.run("-C", path, "run", f"--cpus={count}", "/bin/nproc")
        assert wrong.returncode == 125, describe(wrong)
        assert b"not a number of processors" in wrong.stderr
    debugger = occlum.run("gdb", "/bin/nproc")
    assert (debugger.returncode, b"serdab run /bin/gdb --args" in debugger.stderr) == (2, True)
