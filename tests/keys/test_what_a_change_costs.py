# SPDX-License-Identifier: Apache-2.0
"""The table "What a change costs" of docs/keys.md, every cell, by the real builds and keys.

Each cell: an instance whose writable layer holds data, the change, a build where the change is one,
and whether the layer opens then. ``build`` must have warned exactly where it does not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from serdab import structs
from serdab.errors import WrongKeyError
from serdab.instance.build import BuildRequest, build
from serdab.instance.layout import Instance
from serdab.instance.measurements import read_measurements
from serdab.keys import Key
from serdab.libos.volumekey import volume_key
from serdab.sefs.image import open_image
from serdab.sefs.lowerbinding import bound_lower
from serdab.sefs.volume import open_volume
from serdab.trust import platform
from serdab.trust.signing import load_signer
from serdab.vfs.union import Union
from tests.harness.signers import signer

ROOT: Final = Path(__file__).parents[2]
SIGNER: Final = signer()
KEY: Final = Key(bytes(range(16)))
OTHER_KEY: Final = Key(bytes(range(1, 17)))
COLUMNS: Final = (
    "image key",
    "automatic key",
    "automatic key and `autokey_policy`",
    "built-in image key",
)
KEPT, PREVIOUS, LOST, NONE = "kept", "kept, previous", "lost", "-"


def rows() -> dict[str, tuple[str, ...]]:
    """Return the table of the document: what changes, and a word per column."""
    text = (ROOT / "docs/keys.md").read_text().split("\n## What a change costs\n")[1]
    lines = re.findall(r"^\| (.*) \|$", text.split("\n## ")[0], re.MULTILINE)
    cells = [tuple(cell.strip() for cell in line.split(" | ")) for line in lines]
    assert cells[0] == ("what changes", *COLUMNS)
    return {cell[0]: cell[1:] for cell in cells[1:]}


@dataclass
class Case:
    """An instance in the making; ``change`` functions alter it before the second build."""

    path: Path
    monkeypatch: pytest.MonkeyPatch
    request: BuildRequest
    opened_with: Key | None
    warnings: list[str] = field(default_factory=list)

    def configure(self, section: str, **fields: object) -> None:
        path = self.path / "Occlum.json"
        config: dict[str, Any] = json.loads(path.read_text())
        place = config
        if section == "upper":
            place = config["mount"][0]["options"]["layers"][1].setdefault("options", {})
        elif section:
            place = config[section]
        place.update(fields)
        path.write_text(json.dumps(config))

    def build(self) -> None:
        self.warnings.clear()
        build(Instance(str(self.path)), self.request, say=self.warnings.append)

    def ask(self, **fields: object) -> None:
        self.request = structs.replace(self.request, **fields)

    def key(self) -> tuple[Key, bytes, bytes]:
        """Return the key of the writable layer, the image's MAC and the key's origin, as now."""
        measured = read_measurements(Instance(str(self.path)))
        found = volume_key(
            measured.config,
            None if self.opened_with is None else self.opened_with.raw(),
            platform=platform.current(),
            mrsigner=measured.mrsigner,
            mrenclave=measured.descriptor.mrenclave(),
        )
        return Key(found.key), measured.config.root_mac, found.source

    @property
    def upper(self) -> Path:
        return self.path / "run/mount/__ROOT"

    def write(self) -> None:
        key, mac, source = self.key()
        image_key = self.opened_with
        lower = open_image(self.path / "build/mount/__ROOT", key=image_key, expected_mac=mac)
        self.upper.mkdir(parents=True, exist_ok=True)
        volume = open_volume(self.upper, key=key, lower=lower, create=True, source=source)
        union = Union(volume, lower)
        union.mkdir(1, b"data", 0o40755, 0, 0)
        union.close()

    def outcome(self) -> str:
        try:
            key, mac, _ = self.key()
            return KEPT if bound_lower(self.upper, key) == mac else PREVIOUS
        except WrongKeyError:
            return LOST


def another_serdab(case: Case) -> None:
    """Build with a Serdab whose code differs, as after an upgrade."""
    package = case.path.parent / "upgraded/serdab"
    shutil.copytree(
        ROOT / "src/serdab", package, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True
    )
    (package / "upgraded.py").write_text("")
    key = case.path.parent / "key"
    key.write_text(KEY.dump())
    given = ["--image-key", str(key)] if case.request.image_key else []
    given += ["--buildin-image-key"] if case.request.builtin_key else []
    done = subprocess.run(
        [sys.executable, "-m", "serdab", "-C", case.path, "build",
         "--sign-key", ROOT / "tests/vectors/signing-key.pem", *given],
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        cwd=case.path.parent, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    case.warnings[:] = done.stderr.decode().splitlines()


def moved(case: Case) -> None:
    target = case.path.with_name("elsewhere")
    shutil.copytree(case.path, target)
    case.path = target


def toggle_policy(case: Case) -> None:
    path = case.path / "Occlum.json"
    layer = json.loads(path.read_text())["mount"][0]["options"]["layers"][1]
    now = layer.get("options", {}).get("autokey_policy", 0)
    case.configure("upper", autokey_policy=0 if now else 1)


def toggle_key(case: Case) -> None:
    key = None if case.request.image_key else KEY
    case.ask(image_key=key, builtin_key=False)
    case.opened_with = key


def another_key(case: Case) -> None:
    case.ask(image_key=OTHER_KEY)
    case.opened_with = OTHER_KEY


def another_signer(case: Case) -> None:
    path = case.path.parent / "other.pem"
    subprocess.run(["openssl", "genrsa", "-out", path, "3072"], capture_output=True, check=True)
    case.ask(signer=load_signer(str(path)))


def another_user(case: Case) -> None:
    case.monkeypatch.setenv("XDG_STATE_HOME", str(case.path.parent / "other-user"))


def lost_secret(case: Case) -> None:
    (Path(os.environ["XDG_STATE_HOME"]) / "serdab/platform-simulation.json").unlink(missing_ok=True)


def another_machine(case: Case) -> None:
    case.monkeypatch.setattr(platform, "machine_name", lambda: "ab" * 32)


# What changes, and whether a build goes with it.
CHANGES: Final[dict[str, tuple[Callable[[Case], object], bool]]] = {
    "nothing: the same is built again": (lambda case: None, True),
    "the instance directory is moved, or copied on the same machine": (moved, False),
    "a file of `image/`": (lambda case: (case.path / "image/new").write_text("x"), True),
    "a file of `initfs/`": (lambda case: (case.path / "initfs/new").write_text("x"), True),
    "`Occlum.json`: environment, entry points, limits, mounts": (
        lambda case: case.configure("", entry_points=["/bin", "/opt"]), True),
    "`metadata.version_number`": (lambda case: case.configure("metadata", version_number=3), True),
    "`metadata.debuggable`": (lambda case: case.configure("metadata", debuggable=False), True),
    "`metadata.family_id`, with `enable_kss`": (
        lambda case: case.configure(
            "metadata", enable_kss=True, family_id={"high": "0x1", "low": "0x2"}), True),
    "Serdab is upgraded, or its code changes": (another_serdab, False),
    "`metadata.product_id`": (lambda case: case.configure("metadata", product_id=3), True),
    "`autokey_policy` is set, or taken away": (toggle_policy, True),
    "the signing key": (another_signer, True),
    "the image key": (another_key, True),
    "`--image-key` is given from now on, or no longer": (toggle_key, True),
    "`--buildin-image-key` is given from now on, or no longer": (
        lambda case: case.ask(builtin_key=not case.request.builtin_key), True),
    "another user of the same machine": (another_user, False),
    "the platform's secret is lost": (lost_secret, False),
    "another machine, with a copy of the user's state directory": (another_machine, False),
}  # fmt: skip


def test_every_row_of_the_document_is_tried_and_every_trial_has_a_row() -> None:
    assert set(rows()) == set(CHANGES)
    assert {word for row in rows().values() for word in row} <= {KEPT, PREVIOUS, LOST, NONE}


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("change", list(CHANGES))
def test_a_change_costs_what_the_document_says(
    change: str, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promised = rows()[change][COLUMNS.index(column)]
    if promised == NONE:
        return
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "instance"
    (path / "image/etc").mkdir(parents=True)
    (path / "initfs/bin").mkdir(parents=True)
    init = path / "initfs/bin/init"
    init.write_text("never run here")
    init.chmod(0o755)
    shutil.copy(ROOT / "src/serdab/instance/templates/Occlum.json", path)
    has_key = column in ("image key", "built-in image key")
    request = BuildRequest(
        SIGNER, image_key=KEY if has_key else None, builtin_key=column.startswith("built-in")
    )
    case = Case(path, monkeypatch, request, request.image_key)
    if "policy" in column:
        case.configure("upper", autokey_policy=1)
    case.build()
    assert not [line for line in case.warnings if "will not open" in line]
    case.write()
    assert case.outcome() == KEPT
    make, has_build = CHANGES[change]
    make(case)
    if has_build:
        case.build()
    assert case.outcome() == promised
    if has_build or make is another_serdab:
        warned = [line for line in case.warnings if "will not open after this build" in line]
        assert bool(warned) == (promised == LOST), case.warnings
