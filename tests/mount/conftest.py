# SPDX-License-Identifier: Apache-2.0
"""An instance whose programs mount, as root and as an ordinary user."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.command import Command
from tests.harness.cprogram import CompileC
from tests.harness.instances import BuiltInstance, MakeInstance
from tests.harness.user import OrdinaryUser

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "demos/runtime_boot"
KEY = "c7-32-b3-ed-44-df-ec-7b-25-2d-9a-32-38-8d-58-61"
OTHER_KEY = "00-32-b3-ed-44-df-ec-7b-25-2d-9a-32-38-8d-58-61"


@dataclass(frozen=True, slots=True)
class Mounter:
    """A built instance; ``calls`` runs system calls inside and returns what each gave."""

    instance: BuiltInstance
    user: OrdinaryUser | None

    @property
    def path(self) -> Path:
        return self.instance.path

    def folder(self, name: str) -> Path:
        """Make a host directory in the instance."""
        path = self.path / name
        path.mkdir(parents=True, exist_ok=True)
        if self.user:
            self.user.own(self.path / name.split("/")[0])
        return path

    def calls(self, *words: str, program: str = "/bin/mounter") -> list[str]:
        """Return one word per call: ``ok``, the errno's name, or the text that was read."""
        done = self.instance.run(program, *words)
        assert done.returncode == 0, done.stderr.decode()
        return [line.partition(" ")[2] for line in done.stdout.decode().splitlines()]

    def told(self, *words: str) -> str:
        """Return what the operator reads."""
        return self.instance.run("/bin/mounter", *words).stderr.decode()


NewMounter = Callable[..., Mounter]


@pytest.fixture(scope="session")
def mounter_program(compile_c: CompileC) -> Path:
    return compile_c(
        (HERE / "mounter.c").read_text(), flags=("-static", "-D_GNU_SOURCE", "-pthread")
    )


@pytest.fixture(scope="session")
def dynamic_files(compile_c: CompileC) -> dict[str, bytes]:
    """The same program linked dynamically as /bin/mounter-dynamic, and its libraries."""
    flags = ("-D_GNU_SOURCE", "-pthread")
    program = compile_c((HERE / "mounter.c").read_text(), flags=flags)
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"(/\S+) \(0x", listed)
    return {path: Path(path).read_bytes() for path in libraries} | {
        "/bin/mounter-dynamic": program.read_bytes()
    }


def put_files(image: Path, files: dict[str, bytes]) -> None:
    """Write files, all executable, by their path inside."""
    for name, content in files.items():
        path = image / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755)


def put_python(image: Path, command: Command) -> None:
    """Copy this machine's Python into an image, as a demo does, and mounter.py."""
    found = subprocess.run(
        [sys.executable, DEMO / "find_python.py"], capture_output=True, text=True, check=True
    ).stdout
    env = dict(re.findall(r"^export (\w+)=(.*)$", found, re.MULTILINE))
    done = command.run(
        *("copy-bom", "-f", DEMO / "init_python.yaml", "--root", image),
        env={**env, "DEMO_DIR": str(DEMO)},
    )
    assert done.returncode == 0, done.stderr.decode()
    shutil.copy(HERE / "mounter.py", image / "bin/mounter.py")
    (image / "bin/mounter.py").chmod(0o755)


@pytest.fixture(params=["root", "user"])
def new_mounter(
    request: pytest.FixtureRequest, make_instance: MakeInstance, mounter_program: Path
) -> NewMounter:
    """Return ``new_mounter(fill)``: an instance with /bin/mounter, /mnt, /mnt2, and busybox."""
    user: OrdinaryUser | None = None
    if request.param == "user":
        user = request.getfixturevalue("as_user")

    def make(more: Callable[[Path], None] = lambda image: None) -> Mounter:
        def fill(image: Path) -> None:
            for name in ("mnt", "mnt2", "mnt/inner"):
                (image / name).mkdir()
            (image / "file").write_text("a file\n")
            (image / "link").symlink_to("mnt")
            (image / "loop").symlink_to("loop")
            for applet in ("mount", "umount", "grep", "mkdir"):
                (image / "bin" / applet).symlink_to("busybox")
            shutil.copy(mounter_program, image / "bin/mounter")
            more(image)

        return Mounter(make_instance(encrypted=False, fill=fill, user=user), user)

    return make


@pytest.fixture
def mounter(new_mounter: NewMounter) -> Mounter:
    return new_mounter()
