# SPDX-License-Identifier: Apache-2.0
"""Instances made by the real verbs: ``make_instance`` returns a built one, ready for ``run``."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serdab.instance import locks
from serdab.instance.create import new_instance
from serdab.instance.fingerprint import RACY_NS
from serdab.keys import Key
from serdab.linux.dirfd import DirFd
from tests.harness.command import Command
from tests.harness.usedbefore import USED_BEFORE
from tests.harness.user import OrdinaryUser

MakeInstance = Callable[..., "BuiltInstance"]


@dataclass(frozen=True, slots=True)
class BuiltInstance:
    """An instance, its key file (``None``: integrity-only) and the command that made it."""

    path: Path
    key: Path | None
    command: Command

    def run(
        self, *argv: str, stdin: bytes | None = None, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        """Return the finished ``serdab run`` of a program inside."""
        key = ("--image-key", self.key) if self.key else ()
        return self.command.run(
            "-C", self.path, "run", *key, *argv, stdin=stdin, timeout_s=timeout_s
        )


@pytest.fixture
def make_instance(tmp_path: Path, serdab: Command, request: pytest.FixtureRequest) -> MakeInstance:
    """Return ``make_instance(*, user, ...) -> BuiltInstance``: :func:`build_instance` in a
    directory of the test, or of an ordinary user."""

    def make(
        *,
        user: OrdinaryUser | None = None,
        **content: Any,  # noqa: ANN401 - build_instance says what
    ) -> BuiltInstance:
        if user:
            return build_instance(user.command, user.home, own=user.own, **content)
        return build_instance(serdab, tmp_path, **content)

    return make


def build_instance(
    command: Command,
    base: Path,
    *,
    encrypted: bool = True,
    programs: Mapping[str, Path] | None = None,
    files: Mapping[str, bytes] | None = None,
    fill: Callable[[Path], None] | None = None,
    own: Callable[..., None] | None = None,
    is_settled: bool = False,
    name: str = "inst",
) -> BuiltInstance:
    """Make an instance in a directory and build it.

    What `new` and `gen-image-key` do is done in this process; only the build is the command's.
    The image holds busybox as /bin/busybox with sh, true, false, cat, ls, echo, sleep and cp linked
    to it, the ``programs`` (path inside by host path), the ``files`` (path inside by content), and
    whatever ``fill(image)`` writes. ``own`` gives the tree to whoever builds it. They have a
    development key already. ``is_settled``: the next build seals nothing again, as it would what
    changed a moment before the first.
    """
    USED_BEFORE.put_development_key(command.env)
    path = base / name
    make_new(command, path)
    image = path / "image"
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox")
    _put(image / "bin/busybox", Path(busybox).read_bytes(), mode=0o755)
    for applet in ("sh", "true", "false", "cat", "ls", "echo", "sleep", "cp"):
        (image / "bin" / applet).symlink_to("busybox")
    for inside, host in (programs or {}).items():
        _put(image / inside.lstrip("/"), Path(host).read_bytes(), mode=0o755)
    for inside, content in (files or {}).items():
        _put(image / inside.lstrip("/"), content, mode=0o644)
    if fill:
        fill(image)
    key = base / f"{name}.key" if encrypted else None
    if key:
        key.touch(mode=0o600)
        key.write_text(Key.generate().dump() + "\n")
        key.chmod(0o600)
    if own:
        own(path, *((key,) if key else ()))
    if is_settled:
        time.sleep(RACY_NS / 1e9)
    if key:
        command.ok("-C", path, "build", "--image-key", key)
    else:
        command.ok("-C", path, "build")
    return BuiltInstance(path, key, command)


def make_new(command: Command, path: Path) -> None:
    """Do as ``serdab new`` does, in this process; the command's user forgets what lay there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", command.env["XDG_STATE_HOME"])
        new_instance(os.fspath(path))


def wait_until_unused(instance: Path) -> None:
    """Wait until the last user knows that it is over; what it still writes is not waited for.

    Until then a command that comes next is refused, and the scheduler decides for how long.
    """
    deadline = time.monotonic() + 60
    with DirFd.at(str(instance / "run")) as run:
        while locks._is_used(run):
            assert time.monotonic() < deadline, f"{instance} is in use after a minute"
            time.sleep(0.01)


def _put(path: Path, content: bytes, *, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.chmod(path, mode)
