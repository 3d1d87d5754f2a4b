# SPDX-License-Identifier: Apache-2.0
"""The machine as an ordinary user sees it: ``as_user``.

Run by root, the fixture becomes an unprivileged uid through setpriv(1), with no groups, a home and
XDG directories of its own, and may open /dev/fuse, as udev lets everybody on ordinary Linux
(``ownmounts``). Run by an ordinary user, the fixture is that user.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.harness.command import Command, private_environment
from tests.harness.installation import Installation, find_installation
from tests.harness.ownmounts import is_open_to_all

# fusermount3 wants a name for its caller, so this is a user whom every Debian knows. Not "nobody":
# its uid is the one that stands for "not mapped" in user namespaces.
ORDINARY_NAME: Final = "daemon"


@dataclass(frozen=True, slots=True)
class OrdinaryUser:
    """An unprivileged user: ``prefix`` becomes them, ``command`` is Serdab run by them.

    ``python`` and ``checkout`` are an interpreter and a tree of sources that they can read.
    """

    uid: int
    gid: int
    home: Path
    env: dict[str, str]
    prefix: tuple[str, ...]
    python: str
    checkout: Path
    command: Command

    def run(
        self, *argv: str | os.PathLike[str], cwd: Path | None = None, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        """Return the finished process of any program, run as this user."""
        return subprocess.run(
            [*self.prefix, *argv],
            cwd=cwd or self.home,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )

    def own(self, *paths: Path) -> None:
        """Give files and whole trees to the user."""
        if os.geteuid() != 0:
            return
        for top in paths:
            for folder, _, names in os.walk(top):
                for path in (folder, *(os.path.join(folder, name) for name in names)):
                    os.chown(path, self.uid, self.gid, follow_symlinks=False)
            os.chown(top, self.uid, self.gid, follow_symlinks=False)


@pytest.fixture(scope="session")
def dev_fuse_for_all() -> None:
    """What an ordinary user needs, whatever the machine's own node admits: ``ownmounts``."""
    if os.geteuid() == 0 and not is_open_to_all():
        pytest.skip("no /dev/fuse, or no mount namespace to open it in")


@pytest.fixture(scope="session")
def common_installation() -> Iterator[Installation]:
    with ExitStack() as stack:
        yield find_installation(stack)


@pytest.fixture
def as_user(dev_fuse_for_all: None, common_installation: Installation) -> Iterator[OrdinaryUser]:
    """An ordinary user with a home, able to run the Serdab under test."""
    base = Path(tempfile.mkdtemp(prefix="su-"))
    home, runtime = base / "home", base / "run"
    home.mkdir(mode=0o700)
    runtime.mkdir(mode=0o700)
    uid, gid = os.getuid(), os.getgid()
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("no setpriv")
        account = pwd.getpwnam(ORDINARY_NAME)
        uid, gid = account.pw_uid, account.pw_gid
        base.chmod(0o755)
        os.chown(home, uid, gid)
        os.chown(runtime, uid, gid)
        prefix = (
            "setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups",
            "--inh-caps=-all", "--",
        )  # fmt: skip
    env = private_environment(home, runtime)
    env |= {"PYTHONDONTWRITEBYTECODE": "1", **common_installation.env}
    python = common_installation.python
    command = Command(env, (*prefix, python, "-m", "serdab"))
    checkout = common_installation.checkout
    yield OrdinaryUser(uid, gid, home, env, prefix, python, checkout, command)
    shutil.rmtree(base)
