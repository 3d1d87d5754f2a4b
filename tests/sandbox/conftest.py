# SPDX-License-Identifier: Apache-2.0
"""One instance for all sandbox tests, run by root and by an ordinary user: ``box``."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.command import Command, describe, private_environment
from tests.harness.installation import Installation
from tests.harness.instances import make_new
from tests.harness.usedbefore import USED_BEFORE
from tests.harness.user import ORDINARY_NAME

PROBE = Path(__file__).parent / "probe.c"
APPLETS = (
    "sh",
    "true",
    "false",
    "cat",
    "ls",
    "echo",
    "sleep",
    "id",
    "env",
    "kill",
    "yes",
    "stat",
    "chmod",
)


@dataclass(frozen=True, slots=True)
class Box:
    """A built instance and who runs it."""

    path: Path
    command: Command
    is_root: bool

    def run(
        self, *argv: str, stdin: bytes | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """Return the finished ``serdab run``."""
        return self.command.run("-C", self.path, "run", *argv, stdin=stdin, timeout_s=timeout_s)

    def out(self, *argv: str) -> str:
        """Return what a program that must succeed prints."""
        result = self.run(*argv)
        assert result.returncode == 0, describe(result)
        return result.stdout.decode().strip()

    def probe(self, *argv: str) -> str:
        """Return the outcome of one act of the probe."""
        return self.out("/bin/probe", *argv)


class Shell:
    """A shell inside that stays: one boot for many acts, each in a process of its own."""

    def __init__(self, box: Box) -> None:
        self._process = box.command.popen(
            "-C", box.path, "run", "/bin/sh", stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def probe(self, *argv: str) -> str:
        """Return the outcome of one act of the probe."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"/bin/probe {shlex.join(argv)}; echo; echo $?=\n".encode())
        process.stdin.flush()
        lines: list[str] = []
        while not (line := process.stdout.readline().decode()).endswith("=\n"):
            assert line, f"the shell inside ended: {lines}"
            lines.append(line)
        return "".join(lines).strip()

    def close(self) -> None:
        """End it."""
        with self._process as process:
            process.communicate(timeout=60)


def build_box(
    base: Path,
    command: Command,
    probe: Path,
    *,
    is_root: bool,
    change: Callable[[dict[str, object]], None] | None = None,
    owner: tuple[int, int] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Box:
    """Make and build an instance; ``change`` edits its configuration."""
    USED_BEFORE.put_development_key(command.env)
    path = base / "box"
    make_new(command, path)
    image = path / "image"
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, image / "bin/busybox")
    for applet in APPLETS:
        (image / "bin" / applet).symlink_to("busybox")
    shutil.copy(probe, image / "bin/probe")
    for inside, content in (files or {}).items():
        target = image / inside.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(0o755)
    config = json.loads((path / "Occlum.json").read_text())
    if change is not None:
        change(config)
    (path / "Occlum.json").write_text(json.dumps(config))
    if owner is not None:
        for folder, _, names in os.walk(path):
            for item in (folder, *(os.path.join(folder, name) for name in names)):
                os.chown(item, *owner, follow_symlinks=False)
    command.ok("-C", path, "build")
    return Box(path, command, is_root)


@dataclass(frozen=True, slots=True)
class Place:
    """Where instances of one kind of user are made, and by which command."""

    base: Path
    command: Command
    is_root: bool
    owner: tuple[int, int] | None

    def build(
        self,
        probe: Path,
        change: Callable[[dict[str, object]], None] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> Box:
        """Make a new instance."""
        base = Path(tempfile.mkdtemp(dir=self.base))
        if self.owner is not None:
            os.chown(base, *self.owner)
        return build_box(
            base,
            self.command,
            probe,
            is_root=self.is_root,
            change=change,
            owner=self.owner,
            files=files,
        )


def _place_of_root() -> Iterator[Place]:
    base = Path(tempfile.mkdtemp(prefix="sb-"))
    runtime = Path(tempfile.mkdtemp(prefix="sr-"))
    yield Place(base, Command(private_environment(base, runtime)), True, None)
    shutil.rmtree(base)
    shutil.rmtree(runtime)


def _place_of_user(installation: Installation) -> Iterator[Place]:
    import pwd

    base = Path(tempfile.mkdtemp(prefix="su-"))
    base.chmod(0o755)
    account = pwd.getpwnam(ORDINARY_NAME)
    home, runtime = base / "home", base / "run"
    for folder in (home, runtime):
        folder.mkdir(mode=0o700)
        os.chown(folder, account.pw_uid, account.pw_gid)
    prefix = (
        "setpriv",
        f"--reuid={account.pw_uid}",
        f"--regid={account.pw_gid}",
        "--clear-groups",
        "--inh-caps=-all",
        "--",
        installation.python,
        "-m",
        "serdab",
    )
    env = private_environment(home, runtime) | {"PYTHONDONTWRITEBYTECODE": "1", **installation.env}
    yield Place(home, Command(env, prefix), False, (account.pw_uid, account.pw_gid))
    shutil.rmtree(base)


@pytest.fixture(scope="session", params=["root", "user"])
def place(
    request: pytest.FixtureRequest, dev_fuse_for_all: None, common_installation: Installation
) -> Iterator[Place]:
    if os.geteuid() != 0:
        pytest.skip("only root can be both")
    if request.param == "root":
        yield from _place_of_root()
    else:
        yield from _place_of_user(common_installation)


@pytest.fixture(scope="session")
def probe_program(compile_c: Callable[..., Path]) -> Path:
    return compile_c(PROBE.read_text())


@pytest.fixture(scope="session")
def box(place: Place, probe_program: Path) -> Box:
    """An instance without limits, with busybox and the probe."""
    return place.build(probe_program, _without_host)


@pytest.fixture(scope="session")
def shell(place: Place, probe_program: Path) -> Iterator[Shell]:
    """A shell that stays, in an instance of its own."""
    inside = Shell(place.build(probe_program, _without_host))
    yield inside
    inside.close()


def _without_host(config: dict[str, object]) -> None:
    mounts = config["mount"]
    assert isinstance(mounts, list)
    config["mount"] = [line for line in mounts if line["type"] != "hostfs"]
