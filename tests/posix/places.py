# SPDX-License-Identifier: Apache-2.0
"""Where suites run: the kernel's own file system, mounts on the host, an instance."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import serdab
from bench.mount_serdab import READY, create
from demos.apps.sealed import Sealed
from demos.hello.demo import find_python
from serdab.linux.mounts import UmountFlag, umount

REPOSITORY: Final = Path(__file__).resolve().parents[2]
_DRIVE: Final = Path(__file__).resolve().with_name("drive.sh")


def is_on_ext4(path: Path) -> bool:
    """Return whether a directory lies on ext4, by the table of mounts."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return any(
        line.split()[2] == wanted and line.partition(" - ")[2].startswith("ext4 ") for line in lines
    )


class MountedUnion:
    """A sealed image below a sealed volume, served by a process of its own at ``path``.

    ``fill`` makes in a directory what the image holds.
    """

    def __init__(self, base: Path, fill: Callable[[Path], object]) -> None:
        self._cipher, self.path = base / "cipher", base / "union"
        source = base / "source"
        for folder in (self._cipher, self.path, source):
            folder.mkdir()
        fill(source)
        create(self._cipher, source=source)
        self._process = self._serve()

    def _serve(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.mount_serdab", "mount", self._cipher, self.path],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": os.fspath(Path(serdab.__file__).parents[1])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        if process.stdout.readline().strip() != READY:
            process.communicate()
            raise RuntimeError(f"the server did not start: exit {process.returncode}")
        return process

    def remount(self) -> None:
        """End the session and begin another."""
        self.close()
        self._process = self._serve()

    def close(self) -> None:
        """Unmount and wait until everything is durable; repeating it does nothing."""
        if self._process.poll() is None:
            umount(os.fspath(self.path), UmountFlag.DETACH | UmountFlag.NOFOLLOW)
        self._process.communicate(timeout=60)
        if self._process.returncode != 0:
            raise RuntimeError(f"the server ended with {self._process.returncode}")


class HostPlace:
    """A directory of the host, be it ours or the kernel's."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def drive(self, suite: str, where: Path) -> str:
        """Return what drive.sh says of a suite."""
        folder = self._path / suite
        done = subprocess.run(
            # What a suite mounts goes with it.
            ["unshare", "--mount", "/bin/sh", _DRIVE, suite, where, folder],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace",
            check=True,
        )  # fmt: skip
        return done.stdout


class InsidePlace:
    """A directory in a booted instance: below its root, or on the tmpfs of its kernel."""

    def __init__(self, instance: Sealed, path: str) -> None:
        self._instance = instance
        self._path = path

    def drive(self, suite: str, where: Path) -> str:
        """Return what drive.sh says of a suite; ``where`` it lies inside follows its name."""
        inside = f"/suites/{where.name}"
        words = ("/bin/sh", "/posix/tests/posix/drive.sh", suite, inside, f"{self._path}/{suite}")
        return self._instance.inside(*words).output


def fill_for_suites(instance: Sealed, suites: Iterable[Path]) -> None:
    """Make an instance in which the suites can run, and our own fuzz."""
    variables = {**find_python(), "POSIX_DIR": os.fspath(_DRIVE.parent)}
    instance.copy_bom(_DRIVE.with_name("inside.yaml"), variables)
    for where in suites:
        kind = "dirs" if where.is_dir() else "files"
        bom = instance.base / f"{where.name}.yaml"
        bom.write_text(
            f"targets:\n  - target: /suites\n    copy:\n      - from: {where.parent}\n"
            f"        {kind}:\n          - {where.name}\n"
        )
        instance.copy_bom(bom, {})
    instance.build()
