# SPDX-License-Identifier: Apache-2.0
"""The machine as an ordinary user sees it: ``as_user``.

Run by root, the fixture becomes an unprivileged uid through setpriv(1), with no groups, a home and
XDG directories of its own. Where /dev/fuse admits only root, as in some container images, it is
opened for the duration, as udev does on ordinary Linux, and closed by whoever leaves last. Run by
an ordinary user, the fixture is that user.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

import pytest

from tests.harness.command import Command, private_environment
from tests.harness.installation import Installation, find_installation

# fusermount3 wants a name for its caller, so this is a user whom every Debian knows. Not "nobody":
# its uid is the one that stands for "not mapped" in user namespaces.
ORDINARY_NAME: Final = "daemon"
_FUSE: Final = Path("/dev/fuse")
_LOCK: Final = Path("/run/serdab-test-dev-fuse.lock")


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


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keep other sessions from coming or leaving; the directory is locked, so no file stays."""
    folder = os.open(_LOCK.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def open_dev_fuse() -> Iterator[None]:
    """Admit everybody to /dev/fuse; the last of several sessions to leave puts the mode back."""
    if os.geteuid() != 0:
        yield
        return
    with ExitStack() as stack:
        with _one_at_a_time():
            mode = stat.S_IMODE(_FUSE.stat().st_mode)
            if mode & 0o006 == 0o006 and not _LOCK.exists():
                lock = None
            else:
                lock = stack.enter_context(open(_LOCK, "a+"))
                fcntl.flock(lock, fcntl.LOCK_SH)
                lock.seek(0)
                recorded = lock.read().strip() or f"{mode:o}"
                lock.truncate(0)
                lock.write(recorded)
                lock.flush()
                _FUSE.chmod(0o666)
        try:
            yield
        finally:
            if lock is not None:
                with _one_at_a_time():
                    _leave(lock, int(recorded, 8))


def _leave(lock: TextIO, mode: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()  # another session still needs it open, and will close it
    else:
        _FUSE.chmod(mode)
        _LOCK.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def dev_fuse_for_all() -> Iterator[None]:
    with open_dev_fuse():
        yield


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
