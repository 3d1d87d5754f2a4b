# SPDX-License-Identifier: Apache-2.0
"""The programs of the gallery: what each needs of this machine, and how its image is filled.

Each has a directory with ``app.yaml``, its BOM, and ``work.sh``, which does work inside and ends at
the first answer that is wrong. Programs are this machine's own; nothing is downloaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demos.apps.sealed import Sealed, run

HERE: Final = Path(__file__).resolve().parent
WORK: Final = ("/bin/sh", "/app/work.sh")
_POSTGRESQL: Final = Path("/usr/lib/postgresql")

Variables = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class App:
    """A program of the gallery.

    ``find`` returns the variables of its BOM, or None where this machine does not have it; it may
    make files in the directory that it is given. ``is_cheap``: some seconds of a processor at most.
    ``needs_users``: it refuses to be user 0, so the instance must have other users.
    ``disk``: what its writable layer may hold, where work on a full disk is part of it.
    """

    name: str
    packages: str
    find: Callable[[Path], Variables | None]
    is_cheap: bool = False
    needs_users: bool = False
    disk: str | None = None

    def fill(self, instance: Sealed, variables: Variables) -> None:
        """Fill the image and build it."""
        bom = HERE / self.name / variables.get("APP_BOM", "app.yaml")
        instance.copy_bom(bom, {"APPS_DIR": os.fspath(HERE), **variables}, HERE)
        if self.disk:
            instance.limit_disk(self.disk)
        instance.build()


def _commands(*names: str) -> Callable[[Path], Variables | None]:
    def find(_: Path) -> Variables | None:
        return {} if all((Path("/usr/bin") / name).exists() for name in names) else None

    return find


def _find_python(_: Path) -> Variables | None:
    """The system's own, whose extension modules lie where its packages expect them."""
    python = Path("/usr/bin/python3")
    if not python.exists():
        return None
    program = python.resolve()
    stdlib = subprocess.run(
        [program, "-Ic", "import sysconfig; print(sysconfig.get_path('stdlib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    has_numpy = Path("/usr/lib/python3/dist-packages/numpy").is_dir()
    return {
        "APP_PROGRAM_DIR": os.fspath(program.parent),
        "APP_PROGRAM": program.name,
        "APP_LIBRARY_DIR": os.path.dirname(stdlib),
        "APP_BOM": "numpy.yaml" if has_numpy else "app.yaml",
    }


def _find_node(_: Path) -> Variables | None:
    node = shutil.which("node")
    return {"APP_PROGRAM_DIR": os.fspath(Path(node).resolve().parent)} if node else None


def _find_java(_: Path) -> Variables | None:
    compiler = shutil.which("javac")
    if compiler is None:
        return None
    home = Path(compiler).resolve().parents[1]
    return {"APP_HOME_PARENT": os.fspath(home.parent), "APP_HOME_NAME": home.name}


def _find_postgresql(_: Path) -> Variables | None:
    versions = sorted(path.name for path in _POSTGRESQL.glob("*") if (path / "bin/initdb").exists())
    if not versions:
        return None
    return {"APP_VERSION": versions[-1], "APP_BIN": os.fspath(_POSTGRESQL / versions[-1] / "bin")}


def _find_nginx(_: Path) -> Variables | None:
    return {} if Path("/usr/sbin/nginx").exists() else None


def _compiled(source: str, *compile_: str) -> Callable[[Path], Variables | None]:
    def find(made: Path) -> Variables | None:
        compiler = shutil.which(compile_[0])
        if compiler is None:
            return None
        env = {**os.environ, "GOCACHE": os.fspath(made / "cache"), "CGO_ENABLED": "0"}
        run([compiler, *compile_[1:], made / "work", HERE / source], env=env, cwd=made)
        return {"APP_MADE": os.fspath(made)}

    return find


APPS: Final = {
    app.name: app
    for app in (
        App("sqlite", "sqlite3", _commands("sqlite3"), is_cheap=True),
        App("git", "git", _commands("git"), is_cheap=True),
        App("tmux", "tmux", _commands("tmux"), is_cheap=True),
        App("python", "python3 python3-numpy", _find_python, is_cheap=True),
        App("gcc", "gcc libc6-dev", _commands("gcc", "as", "ld", "ar")),
        App("rust", "rustc", _compiled("rust/work.rs", "rustc", "-Copt-level=1", "-o")),
        App("go", "golang-go", _compiled("go/work.go", "go", "build", "-o")),
        App("redis", "redis-server", _commands("redis-server", "redis-cli"), is_cheap=True),
        App("nginx", "nginx-light", _find_nginx, is_cheap=True),
        App("node", "nodejs", _find_node),
        App("postgresql", "postgresql", _find_postgresql, needs_users=True, disk="220MB"),
        App("ffmpeg", "ffmpeg", _commands("ffmpeg")),
        App("java", "default-jdk-headless", _find_java),
    )
}


def plain_command(tree: Path) -> list[str]:
    """Return what does the same work in a plain directory, in namespaces of the kernel's alone."""
    script = (
        'mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" && '
        'exec chroot "$0" /bin/sh /app/work.sh'
    )
    ids = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return [
        "unshare", *ids, "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child",
        "/bin/sh", "-c", script, os.fspath(tree),
    ]  # fmt: skip


def has_other_users(instance: Sealed) -> bool:
    """Return whether an instance of this user has more users than user 0 inside."""
    lines = instance.inside("/bin/cat", "/proc/self/uid_map").output.splitlines()
    return sum(int(line.split()[2]) for line in lines) > 1
