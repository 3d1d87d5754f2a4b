# SPDX-License-Identifier: Apache-2.0
"""What somebody who has used Serdab before has already: byte code, and a development key.

Most tests are about neither, and making them was most of what the suite took. Byte code is made
once a session, and every private cache directory begins with links to it; the interpreter replaces
such a file, it never writes into one (importlib), and a test that did would fail the session. A
development key is made once a session for each user, and put where instances are made for a test
(``serdab``, ``build_instance``, ``build_box``); whoever builds with a state directory of their own,
or as ``as_user`` with nothing but the command, still gets a new one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Final

import pytest

from serdab.trust.signing import DEVELOPMENT_KEY, development_signer

#: Imports what a boot and a service import; what it misses costs time and nothing else.
_IMPORTER: Final = """
import importlib, pkgutil, sys
sys.path += sys.argv[1:]
import serdab.libos, serdab.service
for package in (serdab.libos, serdab.service):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)
"""


class UsedBefore:
    """The templates; made when they are first wanted, below a directory that goes with the
    session."""

    def __init__(self) -> None:
        self._top: Path | None = None
        self._sources = Path()
        self._digest: bytes | None = None

    def begin(self, top: Path, sources: Path) -> None:
        """Keep the templates in ``top``; the command under test is run from ``sources``."""
        self._top, self._sources = top, sources

    def put_byte_code(self, home: Path) -> None:
        """Let a cache directory in ``home`` begin with the byte code of the session."""
        target = home / "cache/serdab/pyc"
        if self._top is None or target.exists():
            return
        template = self._byte_code(self._top)
        owner = home.stat()
        shutil.copytree(template, target, copy_function=os.link)
        for folder in (target.parents[1], target.parent, target, *target.iterdir()):
            folder.chmod(0o700)
        if owner.st_uid != os.geteuid():
            for made, _, _ in os.walk(target.parents[1]):
                os.chown(made, owner.st_uid, owner.st_gid)

    def put_development_key(self, env: Mapping[str, str]) -> None:
        """Let whoever has this environment have a development key, unless they have one."""
        state = Path(env["XDG_STATE_HOME"])
        target = state / "serdab" / DEVELOPMENT_KEY
        if self._top is None or target.exists():
            return
        owner = Path(env["HOME"]).stat()
        key = self._top / f"key-{owner.st_uid}.pem"
        if not key.exists():
            _make_key(key)
        for folder in (state, target.parent):
            if not folder.exists():
                folder.mkdir(mode=0o700)
                os.chown(folder, owner.st_uid, owner.st_gid)
        shutil.copy2(key, target)
        os.chown(target, owner.st_uid, owner.st_gid)

    def _byte_code(self, top: Path) -> Path:
        template = top / "cache/serdab/pyc"
        if not template.exists():
            _compile(top, self._sources)
            self._digest = _digest(template)
        return template

    def is_untouched(self) -> bool:
        """Return whether the byte code is what it was when it was made."""
        if self._top is None or self._digest is None:
            return True
        return _digest(self._byte_code(self._top)) == self._digest


USED_BEFORE: Final = UsedBefore()


def _compile(top: Path, sources: Path) -> None:
    """Fill ``top``/cache as boots would, and give the audited sources their own byte code."""
    env = {**os.environ, "PYTHONPATH": str(sources), "XDG_CACHE_HOME": str(top / "cache")}

    def output(*words: str) -> str:
        command = [sys.executable, *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    output("-m", "compileall", "-q", str(sources))
    where = (
        "from serdab.libos.bytecode import byte_code_cache\n"
        "from serdab.libos.interpreter import import_path\n"
        "print(byte_code_cache(), *import_path(), sep='\\n')"
    )
    cache, *path = output("-c", where).splitlines()
    output("-I", "-S", "-X", f"pycache_prefix={cache}", "-c", _IMPORTER, *path)


def _make_key(path: Path) -> None:
    with tempfile.TemporaryDirectory() as state, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", state)
        shutil.copy2(development_signer().origin, path)


def _digest(top: Path) -> bytes:
    state = blake2b()
    for path in sorted(top.rglob("*.pyc")):
        state.update(os.fsencode(path.relative_to(top)))
        state.update(path.read_bytes())
    return state.digest()
