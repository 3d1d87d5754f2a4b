# SPDX-License-Identifier: Apache-2.0
"""Builds the programs that run inside the sandbox, with a compiler whose version is pinned.

``python tools/build_init.py`` writes ``src/serdab/init/bin/<arch>/`` and ``init/DIGESTS``;
``--check`` builds into a temporary directory and compares. The bytes are measured at every boot,
so they must not depend on the compiler a machine happens to have: the ``ziglang`` wheel brings its
own, headers included.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ZIG_VERSION = "0.17.1"
INIT = Path(__file__).resolve().parent.parent / "src" / "serdab" / "init"
ARCHES = {"x86_64": ("x86_64-linux-musl", "x86-linux-any")}
PROGRAMS = {
    "launcher": (
        "launcher.c",
        "messages.c",
        "steps.c",
        "programs.c",
        "errands.c",
        "sync.c",
        "sessions.c",
        "lending.c",
        "numbers.c",
        "worker.c",
    ),
    "init": ("init.c",),
    "door": ("door.c",),
}
FLAGS = (
    "-std=c11",
    "-Os",
    "-g0",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-nostdlib",
    "-static",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-sanitize=all",
    "-fno-ident",
    "-fno-pic",
    "-fno-pie",
    "-Wl,--build-id=none",
    "-Wl,-s",
    "-Wl,-z,noexecstack",
)


def build(out: Path) -> dict[str, str]:
    """Compile every program into ``out`` and return the digests by relative path."""
    found = importlib.metadata.version("ziglang")
    if found != ZIG_VERSION:
        raise SystemExit(f"build_init: ziglang {ZIG_VERSION} is pinned, {found} is installed")
    digests = {}
    for arch, (target, arch_headers) in ARCHES.items():
        folder = out / arch
        folder.mkdir(parents=True, exist_ok=True)
        for name, sources in PROGRAMS.items():
            path = folder / name
            # Run inside the source folder, so that no path of this machine reaches the compiler.
            command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-mcpu=baseline"]
            command += [*FLAGS, *sources, "-o", str(path)]
            # Without a C library the wheel's kernel headers are no longer on the path by default.
            for part in (arch_headers, "any-linux-any"):
                command += ["-isystem", str(_headers() / part)]
            subprocess.run(command, cwd=INIT / "src", check=True, env=_environment())
            path.chmod(0o755)
            digests[f"{arch}/{name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


def _headers() -> Path:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise SystemExit("build_init: ziglang is not installed")
    return Path(spec.origin).parent / "lib" / "libc" / "include"


def _environment() -> dict[str, str]:
    keep = {key: os.environ[key] for key in ("HOME", "PATH", "XDG_CACHE_HOME") if key in os.environ}
    return {**keep, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}


def _listing(digests: dict[str, str]) -> str:
    return "".join(f"{digest}  bin/{path}\n" for path, digest in sorted(digests.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args()
    if not options.check:
        digests = build(INIT / "bin")
        (INIT / "DIGESTS").write_text(_listing(digests))
        sys.stdout.write(_listing(digests))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        listing = _listing(build(Path(folder)))
        same = listing == (INIT / "DIGESTS").read_text()
        for line in (INIT / "DIGESTS").read_text().splitlines():
            digest, path = line.split()
            same &= hashlib.sha256((INIT / path).read_bytes()).hexdigest() == digest
    if not same:
        sys.stderr.write("build_init: the shipped programs are not what the sources build\n")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
