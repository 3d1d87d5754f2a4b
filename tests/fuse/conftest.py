# SPDX-License-Identifier: Apache-2.0
"""Real mounts for the tests of this directory, taken down whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import serdab
from serdab.linux.mounts import MountFlag, UmountFlag, mount, umount

REPOSITORY = Path(__file__).parents[2]


class Served:
    """A mount and the process behind it."""

    def __init__(self, kind: str, path: Path, *arguments: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        sources = os.fspath(Path(serdab.__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuse.server", kind, os.fspath(path), *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": sources},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        if said != b"ready\n":
            _, errors = self.process.communicate(timeout=30)
            raise RuntimeError(f"the server did not start: {errors.decode()}")

    def unmount(self) -> str:
        """Unmount and wait for the server; return what it wrote to stderr."""
        umount(os.fspath(self.path), UmountFlag.NOFOLLOW)
        return self.wait()

    def wait(self) -> str:
        said, errors = self.process.communicate(timeout=60)
        assert said == b"closed\n", errors.decode()
        assert self.process.returncode == 0
        return errors.decode()

    def clean_up(self) -> None:
        try:
            umount(os.fspath(self.path), UmountFlag.DETACH | UmountFlag.NOFOLLOW)
        except OSError:
            pass  # the test has unmounted it
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=60)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Serve a file system: ``serve("memory", "--read-only")``."""
    if os.geteuid() != 0:
        pytest.skip("mounts as root")
    with ExitStack() as stack:
        count = 0

        def start(kind: str = "memory", *arguments: str) -> Served:
            nonlocal count
            count += 1
            served = Served(kind, tmp_path / f"mnt{count}", *arguments)
            stack.callback(served.clean_up)
            return served

        yield start


@pytest.fixture
def mem(serve: Callable[..., Served]) -> Iterator[Path]:
    """A directory of a file system in memory; the server must not have complained."""
    served = serve("memory")
    os.chmod(served.path, 0o777)
    yield served.path
    if served.process.poll() is None:
        assert served.unmount() == ""


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """The kernel's own file system in memory, to compare with."""
    if os.geteuid() != 0:
        pytest.skip("mounts as root")
    path = tmp_path / "tmpfs"
    path.mkdir()
    mount("tmpfs", os.fspath(path), "tmpfs", MountFlag.NOSUID | MountFlag.NODEV, "mode=777")
    try:
        yield path
    finally:
        umount(os.fspath(path), UmountFlag.DETACH | UmountFlag.NOFOLLOW)
