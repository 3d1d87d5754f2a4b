# SPDX-License-Identifier: Apache-2.0
"""An instance whose programs mount, as root and as an ordinary user."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.cprogram import CompileC
from tests.harness.instances import BuiltInstance, MakeInstance
from tests.harness.user import OrdinaryUser

HERE = Path(__file__).parent
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


@pytest.fixture(scope="session")
def mounter_program(compile_c: CompileC) -> Path:
    return compile_c(
        (HERE / "mounter.c").read_text(), flags=("-static", "-D_GNU_SOURCE", "-pthread")
    )


@pytest.fixture(params=["root", "user"])
def mounter(
    request: pytest.FixtureRequest, make_instance: MakeInstance, mounter_program: Path
) -> Mounter:
    """An instance with /bin/mounter, /mnt, /mnt2, and busybox."""
    user: OrdinaryUser | None = None
    if request.param == "user":
        user = request.getfixturevalue("as_user")

    def fill(image: Path) -> None:
        for name in ("mnt", "mnt2", "mnt/inner"):
            (image / name).mkdir()
        (image / "file").write_text("a file\n")
        (image / "link").symlink_to("mnt")
        (image / "loop").symlink_to("loop")
        for applet in ("mount", "umount", "grep", "mkdir"):
            (image / "bin" / applet).symlink_to("busybox")
        shutil.copy(mounter_program, image / "bin/mounter")

    instance = make_instance(encrypted=False, fill=fill, user=user)
    return Mounter(instance, user)
