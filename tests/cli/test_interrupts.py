# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C before there is a verb, and while it works: died of, in silence. What a command inherits.

The signal is sent by the process itself, at a place that is named: nothing depends on how fast a
machine is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.command import Command, describe

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

#: As an installer puts it beside the interpreter.
SCRIPT = Path(sys.executable).parent / "serdab"

AT_IMPORT = """
import os, sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), 2)
sys.meta_path.insert(0, Finder)
"""
AT_ONCE = "import os; os.kill(os.getpid(), 2)"


def run_with(
    folder: Path, code: str, serdab: Command, *words: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command whose interpreter executes ``code`` while it starts, as its site's own."""
    (folder / "sitecustomize.py").write_text(code)
    path = os.pathsep.join(filter(None, (str(folder), serdab.env.get("PYTHONPATH"))))
    return subprocess.run(
        [*words, "-C", "/nonexistent", "run", "/bin/true"],
        env={**serdab.env, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


class TestStart:
    @pytest.mark.parametrize(
        "name",
        ["serdab.cli.main", "serdab.version", "serdab.cli.messages", "serdab.cli.plainwords"],
    )
    def test_ctrl_c_during_the_imports(self, tmp_path: Path, serdab: Command, name: str) -> None:
        result = run_with(tmp_path, AT_IMPORT.format(name=name), serdab, *serdab.prefix)
        assert (result.returncode, result.stderr) == (-signal.SIGINT, b""), describe(result)

    def test_ctrl_c_while_the_interpreter_starts(self, tmp_path: Path, serdab: Command) -> None:
        result = run_with(tmp_path, AT_ONCE, serdab, str(SCRIPT))
        assert (result.returncode, result.stderr) == (-signal.SIGINT, b""), describe(result)

    def test_one_that_is_ignored_is_ignored(self, tmp_path: Path, serdab: Command) -> None:
        """As in what a shell without job control starts in the background."""
        ignoring = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")
        result = run_with(tmp_path, AT_ONCE, serdab, *ignoring, str(SCRIPT))
        assert result.returncode == 125, describe(result)

    def test_the_command_is_called_by_the_names_of_its_links(
        self, tmp_path: Path, serdab: Command
    ) -> None:
        link = tmp_path / "copy_bom"
        link.symlink_to(SCRIPT)
        result = subprocess.run([link, "--help"], env=serdab.env, capture_output=True, check=True)
        assert b"usage: serdab copy-bom" in result.stdout

    def test_arguments_and_environment_pass_unchanged(
        self, tmp_path: Path, serdab: Command
    ) -> None:
        code = "import os, sys; print(sys.orig_argv[2:], sorted(os.environ.items()))"
        (tmp_path / "sitecustomize.py").write_text(code)
        env = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "A": "", "LC_ALL": "C"}
        words = ["--version", "two words", ""]
        result = subprocess.run([SCRIPT, *words], env=env, capture_output=True, check=False)
        told = sorted({**env, "SERDAB_DOOR": "ddd - serdab"}.items())
        assert result.stdout.decode().splitlines()[0] == f"{words} {told}", describe(result)


class TestVerbs:
    def test_a_verb_that_is_interrupted_dies_of_it(self, tmp_path: Path, serdab: Command) -> None:
        """While it reads a key from a pipe: a shell's loop over it ends."""
        serdab.ok("new", tmp_path / "app")
        pipe = tmp_path / "key"
        os.mkfifo(pipe)
        with serdab.popen("-C", tmp_path / "app", "build", "--image-key", pipe) as process:
            with pipe.open("wb"):  # waits for the reader
                process.send_signal(signal.SIGINT)
                out, errors = process.communicate(timeout=60)
        assert (process.returncode, out) == (-signal.SIGINT, b""), errors
        assert b"Traceback" not in errors


class TestStandardInput:
    """A directory as standard input, where an interpreter ends without a word of ours."""

    def test_a_program_is_refused_it_in_our_own_words(
        self, serdab: Command, tmp_path: Path
    ) -> None:
        app = tmp_path / "app"
        serdab.ok("new", app)
        serdab.ok("-C", app, "build")
        result = run_below(tmp_path, serdab, "-C", str(app), "run", "/bin/true")
        assert result.returncode == 125, describe(result)
        assert b"standard input" in result.stderr
        assert b"found a directory" in result.stderr

    def test_it_does_not_hinder_who_reads_nothing(self, serdab: Command, tmp_path: Path) -> None:
        result = run_below(tmp_path, serdab, "--version")
        assert result.returncode == 0, describe(result)


def run_below(directory: Path, serdab: Command, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command with a directory as standard input."""
    stdin = os.open(directory, os.O_RDONLY)
    try:
        return subprocess.run(
            [SCRIPT, *words], env=serdab.env, stdin=stdin, capture_output=True, check=False
        )
    finally:
        os.close(stdin)
