# SPDX-License-Identifier: Apache-2.0
"""Starting ``serdab mount``, waiting until it is ready, acting in the mount, ending it."""

from __future__ import annotations

import hashlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from serdab.linux.mounts import UmountFlag, mounts_at, umount
from tests.harness.command import describe
from tests.harness.instances import BuiltInstance
from tests.harness.user import OrdinaryUser

PATIENCE_S: Final = 60.0


def wait_until(is_there: Callable[[], bool], what: str) -> None:
    """Wait for a condition, with a generous deadline."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_there():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def is_mounted(path: Path) -> bool:
    """Return whether something is mounted there, without asking it."""
    return bool(mounts_at(str(path)))


@dataclass(slots=True)
class Mounted:
    """A running ``serdab mount``."""

    path: Path
    process: subprocess.Popen[bytes]
    user: OrdinaryUser | None

    @property
    def prefix(self) -> tuple[str, ...]:
        """What makes a command run as the one who mounted."""
        return self.user.prefix if self.user else ()

    def do(self, *argv: str, stdin: bytes | None = None) -> str:
        """Run a command of the host in the mount, as the one who mounted; return its output."""
        result = self.attempt(*argv, stdin=stdin)
        assert result.returncode == 0, describe(result)
        return result.stdout.decode()

    def attempt(self, *argv: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run a command in the mount that may fail."""
        return subprocess.run(
            [*self.prefix, *argv],
            cwd="/" if self.user else self.path,
            env={**os.environ, "M": str(self.path)},
            input=stdin or b"",
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def shell(self, script: str, stdin: bytes | None = None) -> str:
        """Run a shell script; ``$M`` is the mount point."""
        return self.do("/bin/sh", "-euc", script, stdin=stdin)

    def end(self, number: int = signal.SIGINT) -> subprocess.CompletedProcess[bytes]:
        """Send a signal, wait for the end."""
        self.process.send_signal(number)
        return self.wait()

    def unmount(self) -> subprocess.CompletedProcess[bytes]:
        """Unmount from outside, wait for the end."""
        program = ("fusermount3", "-u") if self.user else ("umount",)
        subprocess.run([*self.prefix, *program, str(self.path)], check=True)
        return self.wait()

    def detach(self) -> None:
        """Unmount from outside although it is in use."""
        program = ("fusermount3", "-u", "-z") if self.user else ("umount", "-l")
        subprocess.run([*self.prefix, *program, str(self.path)], check=True)

    def wait(self) -> subprocess.CompletedProcess[bytes]:
        """Wait for the end; what was said comes along."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)


@dataclass(slots=True)
class Owner:
    """Who mounts, with the instance and a directory to mount on."""

    instance: BuiltInstance
    user: OrdinaryUser | None
    started: list[Mounted] = field(default_factory=list)

    @property
    def base(self) -> Path:
        return self.instance.path.parent

    @property
    def command(self) -> Sequence[str]:
        return self.instance.command.prefix

    def place(self, name: str = "mount") -> Path:
        """Make a directory to mount on."""
        path = self.base / name
        if not is_mounted(path) and not path.exists():
            path.mkdir()
            if self.user:
                self.user.own(path)
        return path

    def key(self) -> tuple[str, ...]:
        return ("--image-key", str(self.instance.key)) if self.instance.key else ()

    def start(
        self, *options: str, at: Path | None = None, keyed: bool = True, flags: Sequence[str] = ()
    ) -> Mounted:
        """Mount; returns when it is ready."""
        path = at or self.place()
        reader, writer = os.pipe()
        try:
            process = subprocess.Popen(
                [
                    *self.command, "-C", str(self.instance.path), *flags, "mount",
                    *(self.key() if keyed else ()), "--ready-fd", str(writer), *options, str(path),
                ],
                env=self.instance.command.env,
                cwd=self.base,
                pass_fds=(writer,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )  # fmt: skip
        finally:
            os.close(writer)
        mounted = Mounted(path, process, self.user)
        self.started.append(mounted)
        with open(reader, "rb") as ready:
            assert select.select([ready], [], [], PATIENCE_S)[0], "never ready"
            said = ready.read()  # to the end: the command closes its descriptor
        if said != b"ready\n":
            raise AssertionError(describe(mounted.wait()))
        return mounted

    def refused(
        self, *options: str | Path, keyed: bool = True, at: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Return the finished command of a mount that must not come about."""
        path = at or self.place()
        result = self.instance.command.run(
            "-C", self.instance.path, "mount", *(self.key() if keyed else ()), *options, path,
            cwd=self.base,
        )  # fmt: skip
        assert result.returncode != 0, describe(result)
        assert not is_mounted(path)
        return result

    def inside(self, *argv: str) -> str:
        """Run a program in the instance; return its output."""
        result = self.instance.run(*argv)
        assert result.returncode == 0, describe(result)
        return result.stdout.decode()

    def fsck(self) -> None:
        """The volume verifies to the last byte."""
        self.instance.command.ok("-C", self.instance.path, "fsck", *self.key())

    def files(self) -> dict[str, str]:
        """Return a digest of every file of the instance and of the user's state."""
        state = Path(self.instance.command.env["XDG_STATE_HOME"])
        found = {}
        for top in (self.instance.path, state):
            for path in sorted(top.rglob("*")):
                content = b"" if path.is_symlink() or not path.is_file() else path.read_bytes()
                kind = f"{path.lstat().st_mode:o}"
                found[str(path)] = f"{kind} {hashlib.sha256(content).hexdigest()}"
        return found

    def clean_up(self) -> None:
        """End what still runs and take away what is still mounted."""
        for mounted in self.started:
            if mounted.process.poll() is None:
                mounted.process.kill()
                mounted.process.communicate()
        for path in {self.base / "mount", *(mounted.path for mounted in self.started)}:
            while is_mounted(path):
                umount(str(path), UmountFlag.DETACH)


MakeOwner = Callable[..., Owner]
