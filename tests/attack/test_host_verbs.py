# SPDX-License-Identifier: Apache-2.0
"""Verbs on the host, and links, FIFOs and renames that a program or the storage left for them.

What a program inside writes through /host, and what the storage hands out, is what the next verb
finds. Each attack leads, where it succeeds, to canaries outside of the instance.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from serdab.errors import Error
from tests.attack.test_paths_table import VERBS, make_template, open_copy
from tests.harness.canaries import Canaries
from tests.harness.command import Command, describe
from tests.harness.cprogram import CompileC
from tests.harness.user import OrdinaryUser

_TRIES: Final = 3
_BOOTS: Final = ("mount", "run")  # once: it takes long enough for hundreds of swaps
RACER: Final = (Path(__file__).parents[1] / "harness/racer.c").read_text()


@dataclass(frozen=True, slots=True)
class Attacked:
    """An instance of somebody, and the canaries beside it."""

    command: Command
    path: Path
    canaries: Path


@pytest.fixture(params=["root", "user"])
def attacked(request: pytest.FixtureRequest, tmp_path: Path) -> Attacked:
    if request.param == "user":
        user: OrdinaryUser = request.getfixturevalue("as_user")
        command, base = user.command, user.home
    else:
        command, base = request.getfixturevalue("serdab"), tmp_path
    path = base / "attacked"
    command.ok("new", path)
    canaries = base / "canaries"
    with Canaries(canaries):
        pass
    if request.param == "user":
        user.own(canaries)
    return Attacked(command, path, canaries)


def configure(attacked: Attacked, upper: str) -> None:
    """Let the writable layer lie at ``upper``."""
    config = attacked.path / "Occlum.json"
    value = json.loads(config.read_text())
    value["mount"][0]["options"]["layers"][1]["source"] = upper
    config.write_text(json.dumps(value))


def refused(attacked: Attacked, *words: str | Path, code: int = 2) -> str:
    with Canaries(attacked.canaries):
        result = attacked.command.run("-C", attacked.path, *words, timeout_s=60)
    assert result.returncode == code, describe(result)
    return result.stderr.decode()


def test_a_reset_through_a_link_removes_nothing(attacked: Attacked) -> None:
    configure(attacked, "./lnk/deep")
    (attacked.path / "lnk").symlink_to(attacked.canaries)
    said = refused(attacked, "reset", "--yes")
    assert "lnk" in said
    assert "symbolic link" in said


def test_a_reset_of_a_volume_through_a_link_removes_nothing(attacked: Attacked) -> None:
    (attacked.path / "volume").symlink_to(attacked.canaries)
    for name in ("volume", "volume/deep", attacked.path / "volume"):
        assert "link" in refused(attacked, "reset", "--yes", "--volume", name)


def test_a_tree_that_is_a_link_is_neither_filled_nor_sealed(attacked: Attacked) -> None:
    image = attacked.path / "image"
    shutil.rmtree(image)
    image.symlink_to(attacked.canaries)
    bom = attacked.path / "bom.yaml"
    bom.write_text("targets:\n- target: /\n  mkdirs: [new]\n")
    bom.chmod(0o644)
    assert "link" in refused(attacked, "copy-bom", "-f", bom, "--root", image)
    assert "symbolic link" in refused(attacked, "build")


@pytest.mark.parametrize(
    ("planted", "target", "wanted"),
    [
        ("notes", "secret", "files: [notes]"),
        ("data", "", "dirs: [data]"),
        ("way", "", "files: [way/secret]"),
    ],
)
def test_a_source_of_a_bom_that_a_program_made_a_link_is_not_copied(
    attacked: Attacked, planted: str, target: str, wanted: str
) -> None:
    """The default source of a BOM is the instance itself, where programs write."""
    (attacked.path / planted).symlink_to(attacked.canaries / target)
    bom = attacked.path.parent / "bom.yaml"
    bom.write_text(f"targets:\n- target: /opt\n  copy: [{{{wanted}}}]\n")
    bom.chmod(0o644)
    told = refused(attacked, "copy-bom", "-f", bom, "--root", attacked.path / "image")
    assert "no link in an instance" in told
    assert not list((attacked.path / "image").rglob("secret"))


def test_a_fifo_where_owners_are_noted_hangs_nobody(attacked: Attacked) -> None:
    os.mkfifo(attacked.path / "image.owners", 0o666)
    assert "FIFO" in refused(attacked, "build")


def test_a_key_behind_a_link_in_the_instance_is_not_read(attacked: Attacked) -> None:
    (attacked.path / "key").symlink_to(attacked.canaries / "secret")
    for option in ("--image-key", "--sign-key"):
        told = refused(attacked, "build", option, attacked.path / "key")
        assert "programs of this instance can read and replace this file" in told


@dataclass(slots=True)
class Swaps:
    """How often two names were exchanged; known when that is over."""

    count: int = 0


@contextmanager
def racing(program: Path, real: Path, other: Path) -> Iterator[Swaps]:
    """Exchange two names again and again; an even number of times at the end."""
    swaps = Swaps()
    racer = subprocess.Popen([program, real, other], stdout=subprocess.PIPE)
    assert racer.stdout is not None
    try:
        assert racer.stdout.readline() == b"ready\n"
        yield swaps
    finally:
        racer.send_signal(signal.SIGTERM)
        swaps.count = int(racer.stdout.read())
        racer.stdout.close()
        racer.wait()


def test_a_staging_directory_that_is_swapped_during_a_build_is_not_published(
    attacked: Attacked, compile_c: CompileC
) -> None:
    """Whoever swaps it gets a refusal, or is too late; nothing is written behind the link."""
    attacked.command.ok("-C", attacked.path, "build")
    evil = attacked.path.parent / "evil"
    with Canaries(attacked.canaries):
        for _ in range(3):
            evil.unlink() if evil.is_symlink() else shutil.rmtree(evil, ignore_errors=True)
            evil.symlink_to(attacked.canaries)
            with racing(compile_c(RACER), attacked.path / ".build-staging", evil):
                result = attacked.command.run("-C", attacked.path, "build", "-f")
            assert result.returncode in (0, 1, 2), describe(result)
            assert not (attacked.path / "build").is_symlink()
            assert (attacked.path / "build/lib/libserdab.signed.json").is_file()
    attacked.command.ok("-C", attacked.path, "build", "-f")


#: A verb, and what of the instance is exchanged while it runs.
RACES: Final = (
    ("build", ".build-staging"),
    ("build", "image"),
    ("build", "image/root"),
    ("build", "image/root/lower"),
    ("build", "initfs/bin"),
    ("build", "build"),
    ("build", "image.owners"),
    ("copy-bom", "image"),
    ("copy-bom", "image/opt"),
    ("copy-bom", "image.owners"),
    ("rekey", ".rekey-staging"),
    ("rekey", "build"),
    ("rekey", "build/mount"),
    ("rekey", "run"),
    ("package", "build"),
    ("package", "build/mount/__ROOT/image.sefs"),
    ("reset", "run/mount"),
    ("reset", "run"),
    ("volume", "volumes"),
    ("volume", "volumes/one"),
    ("fsck", "run/mount/__ROOT"),
    ("fsck", "build/initfs"),
    ("rebind", "run/mount/__ROOT"),
    ("rekey", "run/mount"),
    ("rekey", "run/mount/__ROOT"),
    *(
        (verb, path)
        for verb in ("mount", "run")
        for path in ("run", "run/mount", "run/mount/__ROOT", "build", "build/mount/__ROOT")
    ),
    ("lock", "run"),
)
OTHERS: Final = ("link", "fifo", "directory")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("races"))


def plant(other: str, evil: Path, canaries: Path) -> None:
    if evil.is_symlink() or not evil.is_dir():
        evil.unlink(missing_ok=True)
    else:
        shutil.rmtree(evil)
    match other:
        case "link":
            evil.symlink_to(canaries)
        case "fifo":
            os.mkfifo(evil)
        case "directory":
            (evil / "deep").mkdir(parents=True)
            (evil / "deep/link").symlink_to(canaries)


def race(base: Path, program: Path, verb: str, path: str, other: str, *, least_swaps: int) -> int:
    """Run a verb beside a renamer until it has swapped so often; return how often it succeeded."""
    instance, evil = base / "instance", base / "evil"
    swaps = succeeded = 0
    saved = base / "saved"
    for name in ("instance", "state"):
        shutil.copytree(base / name, saved / name, symlinks=True)
    with Canaries(base / "canaries"):
        while swaps < least_swaps:
            # With what is remembered of it: else the next verb finds an older layer, and stops.
            for name in ("instance", "state"):
                shutil.rmtree(base / name)
                shutil.copytree(saved / name, base / name, symlinks=True)
            plant(other, evil, base / "canaries")
            (base / "instance.tar.gz").unlink(missing_ok=True)
            (base / "instance.tar.gz.sig").unlink(missing_ok=True)
            act: Callable[[str], None] = VERBS[verb]
            with racing(program, instance / path, evil) as swapped:
                for _ in range(1 if verb in _BOOTS else _TRIES):
                    with suppress(Error, OSError, AssertionError):
                        act(str(instance))
                        succeeded += 1
            swaps += swapped.count
    return succeeded


@pytest.mark.parametrize(("verb", "path"), RACES)
def test_a_renamer_beside_a_verb_leads_it_nowhere(
    template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compile_c: CompileC,
    verb: str,
    path: str,
) -> None:
    base = open_copy(template, tmp_path / "base", monkeypatch)
    race(base, compile_c(RACER), verb, path, "link", least_swaps=100)


@pytest.mark.soak
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(("verb", "path"), RACES)
def test_ten_thousand_renames_beside_a_verb_lead_it_nowhere(
    template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compile_c: CompileC,
    verb: str,
    path: str,
    other: str,
) -> None:
    base = open_copy(template, tmp_path / "base", monkeypatch)
    race(base, compile_c(RACER), verb, path, other, least_swaps=10_000)
