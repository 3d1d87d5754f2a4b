# SPDX-License-Identifier: Apache-2.0
"""What ``build`` says of what it finds: images that were damaged, and what a build will cost."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serdab.instance.fingerprint import RACY_NS
from tests.harness.command import Command, describe
from tests.harness.instances import make_new

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

IMAGES = ("build/mount/__ROOT/image.sefs", "build/initfs/__ROOT/image.sefs")


def flip(offset: int) -> Callable[[Path], None]:
    """Return what changes a byte; from the end if the offset is negative."""

    def change(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))

    return change


DAMAGES: dict[str, Callable[[Path], None]] = {
    "magic": flip(0),
    "header": flip(70),
    "data": flip(-1),
    "cut": lambda path: os.truncate(path, 100),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
}


@pytest.fixture
def app(serdab: Command, tmp_path: Path) -> Path:
    """An instance that was built, and may be run."""
    path = tmp_path / "app"
    make_new(serdab, path)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, path / "image/bin/sh")
    time.sleep(RACY_NS / 1e9)  # what changed a moment before a build is sealed again by the next
    return path


def test_a_damaged_image_is_noticed_named_and_sealed_anew(serdab: Command, app: Path) -> None:
    serdab.ok("-C", app, "build")
    whole = {name: (app / name).read_bytes() for name in IMAGES}
    assert "all was up to date" in serdab.ok("-C", app, "build")
    for number, (what, damage) in enumerate(DAMAGES.items()):
        name = IMAGES[number % 2]
        damage(app / name)
        result = serdab.run("-C", app, "--json", "build")
        assert result.returncode == 0, describe(result)
        sealed = json.loads(result.stdout)["sealed"]
        assert sealed == [["image", "initfs"][number % 2]], what
        assert name.encode() in result.stderr, what
        assert b"build -f" in result.stderr, what
        assert (app / name).read_bytes() == whole[name], what
    assert "all was up to date" in serdab.ok("-C", app, "build")


@pytest.mark.parametrize("what", ["magic", "header", "cut", "emptied", "longer"])
def test_the_refusal_of_a_damaged_header_has_path_and_hint(
    serdab: Command, app: Path, what: str
) -> None:
    serdab.ok("-C", app, "build")
    DAMAGES[what](app / IMAGES[0])
    result = serdab.run("-C", app, "--json", "fsck")
    assert result.returncode == 3, describe(result)
    error = json.loads(result.stdout)
    assert IMAGES[0] in error["subject"]
    assert "build" in error["hint"]
    assert "b''" not in error["found"]


def test_a_check_warns_of_what_a_build_warns_of(serdab: Command, app: Path, tmp_path: Path) -> None:
    serdab.ok("gen-image-key", tmp_path / "key")
    configure(app, version_number=7)
    key = ("--image-key", tmp_path / "key")
    serdab.ok("-C", app, "build", *key)
    serdab.ok("-C", app, "run", *key, "/bin/sh", "-c", "echo kept > /root/kept")
    configure(app, version_number=1, product_id=5)
    checked, built = (
        [line for line in serdab.run("-C", app, *words).stderr.splitlines() if b"warning:" in line]
        for words in (("build", "--check"), ("build",))
    )
    assert checked == built
    said = b"\n".join(built)
    for words in (b"will not open after this build", b"lowered from 7 to 1", b"was encrypted"):
        assert words in said, said


def configure(app: Path, **metadata: int) -> None:
    config = json.loads((app / "Occlum.json").read_text())
    config["metadata"].update(metadata)
    (app / "Occlum.json").write_text(json.dumps(config))
