# SPDX-License-Identifier: Apache-2.0
"""An encrypted instance made by the real verbs, with state and runtime directories of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PATIENCE_S: Final = 600.0


class Failure(Exception):  # what was tried did not work, not an error of the program
    """A command failed, or an answer was wrong."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a command said, and how long it took."""

    output: str
    elapsed_s: float


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    patience_s: float = PATIENCE_S,
    statuses: Sequence[int] = (0,),
) -> Done:
    """Run a command; both its streams are the output. Raises Failure for another status."""
    started_s = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Failure(f"{argv[0]}: no end after {patience_s:.0f} s") from None
        elapsed_s = time.monotonic() - started_s
        said.seek(0)
        output = said.read().decode(errors="replace")
    if process.returncode not in statuses:
        words = " ".join(map(str, argv))
        raise Failure(f"{words[-300:]}: exit {process.returncode}\n{output[-4000:]}")
    return Done(output, elapsed_s)


class Sealed:
    """An instance in a directory of its own; nothing of the caller's is read or written."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.path = base / "instance"
        self._key = base / "key"
        runtime = base / "runtime"
        runtime.mkdir(mode=0o700)
        self._env = {
            **os.environ,
            "XDG_STATE_HOME": str(base / "state"),
            "XDG_CACHE_HOME": str(base / "cache"),
            "XDG_CONFIG_HOME": str(base / "config"),
            "XDG_RUNTIME_DIR": str(runtime),
        }
        self.serdab("new", self.path)
        self.serdab("gen-image-key", self._key)

    @property
    def image(self) -> Path:
        """The tree that is sealed."""
        return self.path / "image"

    def command(self, *words: str | os.PathLike[str]) -> list[str]:
        """Return the argument vector of a verb."""
        return [sys.executable, "-m", "serdab", *(os.fspath(word) for word in words)]

    def serdab(self, *words: str | os.PathLike[str]) -> Done:
        """Run a verb that must succeed."""
        return run(self.command(*words), env=self._env, cwd=self.base)

    def copy_bom(
        self, bom: Path, variables: Mapping[str, str], includes: Path | None = None
    ) -> None:
        """Fill the image; BOMs that this one includes lie beside it, or in ``includes``."""
        run(
            self.command("copy-bom", "-f", bom, "--root", self.image, "-i", includes or bom.parent),
            env={**self._env, **variables}, cwd=self.path,
        )  # fmt: skip

    def limit_disk(self, size: str) -> None:
        """Let the writable layer hold so much, as in ``200MB``."""
        path = self.path / "Occlum.json"
        config = json.loads(path.read_text())
        config.setdefault("serdab", {})["writable_size"] = size
        path.write_text(json.dumps(config))

    def build(self) -> None:
        self.serdab("-C", self.path, "build", "--image-key", self._key)

    def fsck(self) -> None:
        """Verify image and volume to the last byte."""
        self.serdab("-C", self.path, "fsck", "--image-key", self._key)

    def inside(self, *argv: str, statuses: Sequence[int] = (0,)) -> Done:
        """Boot, run a program, shut down."""
        command = self.command("-C", self.path, "run", "--image-key", self._key, *argv)
        return run(command, env=self._env, cwd=self.base, statuses=statuses)

    @contextmanager
    def mounted(self, *options: str) -> Iterator[Path]:
        """Show the root on the host."""
        place = self.base / "mount"
        place.mkdir(exist_ok=True)
        reader, writer = os.pipe()
        with open(reader, "rb") as ready:
            try:
                process = subprocess.Popen(
                    self.command(
                        "-C", self.path, "mount", "--image-key", self._key,
                        "--ready-fd", str(writer), *options, place,
                    ),
                    env=self._env, pass_fds=(writer,), stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )  # fmt: skip
            finally:
                os.close(writer)
            try:
                if ready.read() != b"ready\n":
                    raise Failure(f"the mount did not come about: exit {process.wait()}")
                yield place
            finally:
                process.terminate()
                process.wait()


@contextmanager
def sealed_instance() -> Iterator[Sealed]:
    """An instance that is gone afterwards. Below /tmp: other users must reach what is mounted."""
    base = Path(tempfile.mkdtemp(prefix="sa-"))
    base.chmod(0o755)
    try:
        yield Sealed(base)
    finally:
        shutil.rmtree(base)
