# SPDX-License-Identifier: Apache-2.0
"""The real command with state, cache and runtime directories of its own: ``serdab``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import pytest

from tests.harness.prepared import PREPARED
from tests.harness.usedbefore import USED_BEFORE

COMMAND_ENVIRONMENT: Final[dict[str, str]] = {}
"""What every command under test gets besides: where the audited copy of the package lies."""


class Started(subprocess.Popen[bytes]):
    """A process that a test started; a failure within ``with`` ends it instead of waiting for it.

    Whatever hangs on a command that is killed ends with it: tests/recovery shows that.
    """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, traceback)


@dataclass(frozen=True, slots=True)
class Command:
    """Runs ``python -m serdab``; ``env`` is the whole environment it gets."""

    env: dict[str, str]
    prefix: tuple[str, ...] = (sys.executable, "-m", "serdab")

    def run(
        self,
        *args: str | os.PathLike[str],
        cwd: Path | None = None,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 120,
    ) -> subprocess.CompletedProcess[bytes]:
        """Return the finished process; standard input is empty unless given.

        It is forked from an interpreter that is ready, where that is no difference: ``prepared``.
        """
        words = [os.fspath(word) for word in args]
        given = b"" if stdin is None else stdin
        environment = {**self.env, **(env or {})}
        result = PREPARED.run(
            self.prefix,
            words,
            cwd=os.fspath(cwd or os.getcwd()),
            env=environment,
            stdin=given,
            timeout_s=timeout_s,
        )
        return result or subprocess.run(
            [*self.prefix, *words],
            cwd=cwd,
            input=given,
            env=environment,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )

    def ok(
        self, *args: str | os.PathLike[str], cwd: Path | None = None, stdin: bytes | None = None
    ) -> str:
        """Return standard output of a command that must succeed."""
        result = self.run(*args, cwd=cwd, stdin=stdin)
        assert result.returncode == 0, describe(result)
        return result.stdout.decode()

    def popen(
        self,
        *args: str | os.PathLike[str],
        cwd: Path | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        start_new_session: bool = False,
    ) -> Started:
        """Start it; the caller ends it."""
        return Started(
            [*self.prefix, *args],
            cwd=cwd,
            env=self.env,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=start_new_session,
        )


def describe(result: subprocess.CompletedProcess[bytes]) -> str:
    """Return what a failed assertion should show of a process."""
    return (
        f"{' '.join(map(str, result.args))}: exit {result.returncode}\n"
        f"stdout: {result.stdout.decode(errors='replace')}\n"
        f"stderr: {result.stderr.decode(errors='replace')}"
    )


def private_environment(home: Path, runtime: Path) -> dict[str, str]:
    """Return an environment that shares no directory of ours with the person who tests.

    The owner of ``home`` has run Serdab before: its byte code lies in their cache.
    """
    USED_BEFORE.put_byte_code(home)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SERDAB_", "XDG_", "PYTEST_", "OCCLUM_"))
    }
    return {
        **kept,
        **{name: os.environ[name] for name in ("SERDAB_TEST_SESSION",) if name in os.environ},
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_CONFIG_HOME": str(home / "config"),
        # A socket's path has at most 107 bytes; pytest's directories are too deep for that.
        "XDG_RUNTIME_DIR": str(runtime),
        **COMMAND_ENVIRONMENT,
    }


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A short-named 0700 directory for sockets."""
    path = Path(tempfile.mkdtemp(prefix="sr-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def serdab(tmp_path: Path, runtime_dir: Path) -> Command:
    """The real command, isolated from the user's own state; there is a development key in it."""
    home = tmp_path / "home"
    home.mkdir()
    env = private_environment(home, runtime_dir)
    USED_BEFORE.put_development_key(env)
    return Command(env)
