# SPDX-License-Identifier: Apache-2.0
"""The file systems that are compared: how each is made, mounted and unmounted.

Each keeps its ciphertext in a directory of its own on the same tmpfs. ``unmount`` returns when the
server has ended, so that its last work is not counted against the next contender.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from bench.mount_serdab import READY

_PASSWORD: Final = "not a secret"  # it protects random bytes on a tmpfs
_PATIENCE_S: Final = 60.0


class Contender(Protocol):
    """One file system under test."""

    name: str
    mount_point: Path

    def create(self) -> None: ...

    def mount(self) -> None: ...

    def unmount(self) -> None: ...

    def version(self) -> str: ...

    def memory_peak_kib(self) -> int: ...

    def abandon(self) -> None: ...


def is_mounted(path: Path) -> bool:
    """Return whether something is mounted exactly there (a dead FUSE mount counts)."""
    needle = f" {path} "
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return any(needle in line for line in table)


def detach(path: Path) -> None:
    """Unmount, as root or as whoever mounted it."""
    if os.geteuid() == 0:
        subprocess.run(["umount", path], check=True)
    else:
        subprocess.run(["fusermount3", "-u", path], check=True)


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for a server that was unmounted; one that does not end is an error."""
    code = process.wait(timeout=_PATIENCE_S)
    if code != 0:
        raise RuntimeError(f"{process.args!r} ended with {code}")


def _wait_mounted(process: subprocess.Popen[bytes], path: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not is_mounted(path):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not mount {path}")
        time.sleep(0.005)
    os.stat(path)  # answered only once the server serves


@dataclass(slots=True)
class Foreground:
    """A server that stays in the foreground as our child: what all contenders share."""

    base: Path
    name: str = ""
    mount_point: Path = field(init=False)
    cipher: Path = field(init=False)
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.cipher = self.base / self.name / "cipher"
        self.mount_point = self.base / self.name / "mnt"
        self.cipher.mkdir(parents=True)
        self.mount_point.mkdir()

    def command(self) -> list[str]:
        raise NotImplementedError

    def mount(self) -> None:
        self._process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL)
        _wait_mounted(self._process, self.mount_point)

    def unmount(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        if is_mounted(self.mount_point):
            detach(self.mount_point)
        _wait(process)

    def memory_peak_kib(self) -> int:
        """Return the most memory the server ever held resident, in KiB."""
        if self._process is None:
            return 0
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
        return 0

    def abandon(self) -> None:
        """End it whatever state it is in: the clean-up after a failure."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
        if is_mounted(self.mount_point):
            subprocess.run(["umount", "-l", self.mount_point], check=False)


class GoCryptFs(Foreground):
    """gocryptfs with its defaults but a cheap password hash, which only mounting pays."""

    def create(self) -> None:
        subprocess.run(
            ["gocryptfs", "-init", "-quiet", "-scryptn", "10",
             "-extpass", f"echo {_PASSWORD}", self.cipher],
            check=True,
        )  # fmt: skip

    def command(self) -> list[str]:
        return [
            "gocryptfs", "-fg", "-quiet", "-nosyslog",
            "-extpass", f"echo {_PASSWORD}", str(self.cipher), str(self.mount_point),
        ]  # fmt: skip

    def version(self) -> str:
        return _first_line(["gocryptfs", "-version"])


class SecureFs(Foreground):
    """securefs with its defaults but a cheap password hash."""

    def create(self) -> None:
        subprocess.run(
            ["securefs", "create", "--pass", _PASSWORD, "--rounds", "1", self.cipher],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def command(self) -> list[str]:
        log = str(self.base / self.name / "log")
        return [
            "securefs", "mount", "--pass", _PASSWORD, "--log", log,
            str(self.cipher), str(self.mount_point),
        ]  # fmt: skip

    def version(self) -> str:
        return _first_line(["dpkg-query", "-W", "-f", "securefs ${Version}", "securefs"])


class Serdab(Foreground):
    """A union over an empty encrypted image and an encrypted writable layer, as ``run`` uses."""

    def create(self) -> None:
        subprocess.run([*self._driver(), "create", self.cipher], check=True)

    def command(self) -> list[str]:
        return [*self._driver(), "mount", str(self.cipher), str(self.mount_point)]

    def mount(self) -> None:
        self._process = subprocess.Popen(
            self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode().strip()
        if line != READY:
            raise RuntimeError(f"serdab said {line!r} instead of {READY!r}")

    def version(self) -> str:
        from serdab.version import VERSION

        return f"serdab {VERSION}, Python {sys.version.split()[0]}"

    @staticmethod
    def _driver() -> list[str]:
        return [sys.executable, "-m", "bench.mount_serdab"]


class Plain(Foreground):
    """The tmpfs itself: what the machine can do with no file system of ours in between."""

    def create(self) -> None: ...

    def mount(self) -> None: ...

    def unmount(self) -> None: ...

    def version(self) -> str:
        return f"tmpfs, Linux {os.uname().release}"


NAMES: Final = ("serdab", "gocryptfs", "securefs", "tmpfs")
RIVALS: Final = ("gocryptfs", "securefs")


def make_contender(name: str, base: Path) -> Contender:
    """Return a contender with its directories below ``base``; ``create`` makes its file system."""
    kinds: dict[str, Callable[[Path, str], Contender]] = {
        "serdab": Serdab,
        "gocryptfs": GoCryptFs,
        "securefs": SecureFs,
        "tmpfs": Plain,
    }
    return kinds[name](base, name)


def _first_line(command: list[str]) -> str:
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return out.splitlines()[0].split(";")[0]


def is_installed(name: str) -> bool:
    """Return whether the contender can take part on this machine."""
    return name not in RIVALS or shutil.which(name) is not None
