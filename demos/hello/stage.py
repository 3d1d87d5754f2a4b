# SPDX-License-Identifier: Apache-2.0
"""How the demonstration runs and shows: every command as typed, every claim checked."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_PATIENCE_S: Final = 120
_SHOWN_LINES: Final = 12
_SCRIPT: Final = Path(sys.executable).parent / "serdab"


class Failure(Exception):  # a claim that did not hold, not an error of the program
    """A claim that does not hold."""


class Stage:
    """Prints and runs the steps, in a directory and with user directories of its own."""

    def __init__(self, base: Path, variables: Mapping[str, str]) -> None:
        self._colour = sys.stdout.isatty()
        self._number = 0
        runtime = base / "runtime"
        runtime.mkdir(mode=0o700)
        self._env = {
            **os.environ,
            **variables,
            "XDG_STATE_HOME": str(base / "state"),
            "XDG_CACHE_HOME": str(base / "cache"),
            "XDG_CONFIG_HOME": str(base / "config"),
            "XDG_RUNTIME_DIR": str(runtime),
        }
        os.chdir(base)
        self._command: list[str] = (
            [str(_SCRIPT)] if _SCRIPT.exists() else [sys.executable, "-m", "serdab"]
        )

    # Showing ------------------------------------------------------------------------------

    def _paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text

    def banner(self, text: str) -> None:
        print(f"\n{self._paint(text, '1')}", flush=True)

    def title(self, text: str) -> None:
        self._number += 1
        print(f"\n{self._paint(f'{self._number}  {text}', '1;36')}", flush=True)

    def command(self, text: str) -> None:
        print(f"   {self._paint('$ ' + text, '2')}", flush=True)

    def show(self, text: str) -> None:
        lines = text.splitlines()
        if len(lines) > _SHOWN_LINES:
            lines[_SHOWN_LINES - 1 :] = [f"… and {len(lines) - _SHOWN_LINES + 1} more lines"]
        for line in lines:
            print(f"   │ {line}", flush=True)

    def note(self, text: str) -> None:
        print(f"   {text}", flush=True)

    def claim(self, text: str, *, holds: bool) -> None:
        """Print the claim with a tick, or fail with it."""
        self.require(text, holds=holds)
        print(f"   {self._paint('✓', '32')} {text}", flush=True)

    def require(self, text: str, *, holds: bool) -> None:
        """Fail unless it holds; print nothing."""
        if not holds:
            raise Failure(f"does not hold: {text}")

    # Running ------------------------------------------------------------------------------

    def enter(self, folder: str) -> None:
        self.command(f"cd {folder}")
        os.chdir(folder)

    def any_serdab(self, *args: str | os.PathLike[str]) -> tuple[str, str, int]:
        """Show and run a command; return its output, its errors and its status."""
        words = [os.fspath(arg) for arg in args]
        self.command(f"serdab {shlex.join(words)}")
        done = self._execute(words)
        self.show(done.stdout + done.stderr)
        return done.stdout, done.stderr, done.returncode

    def serdab(self, *args: str | os.PathLike[str], quiet: bool = False) -> str:
        """Run a command that must succeed; return its output."""
        words = [os.fspath(arg) for arg in args]
        if not quiet:
            self.command(f"serdab {shlex.join(words)}")
        done = self._execute(words)
        if done.returncode != 0:
            raise Failure(f"serdab {shlex.join(words)}: exit {done.returncode}\n{done.stderr}")
        if not quiet:
            self.show(done.stdout + done.stderr)
        return done.stdout

    def run_any(self, *argv: str, key: Path = Path("../hello.key")) -> tuple[str, str, int]:
        """Boot, run a program inside; return its output, its errors and its status."""
        return self.any_serdab("run", "--image-key", key, *argv)

    def run_inside(self, *argv: str) -> str:
        """Boot, run a program that must succeed; return its output."""
        out, error, status = self.run_any(*argv)
        if status != 0:
            raise Failure(f"{shlex.join(argv)}: exit {status}\n{error}")
        return out

    def run_refused(self, *argv: str, expect: int, key: Path = Path("../hello.key")) -> str:
        """Run what must be refused with this status; return the message."""
        _, error, status = self.run_any(*argv, key=key)
        if status != expect:
            raise Failure(f"{shlex.join(argv)}: expected exit {expect}, found {status}")
        return error

    def _execute(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, *words],
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_S,
            check=False,
        )
