# SPDX-License-Identifier: Apache-2.0
"""No name that a program or the storage can change leads a boot or a mount elsewhere.

Each test plants something between a name and what it meant; the *outside* is a directory that no
configuration lists.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness.cprogram import CompileC
from tests.mount.conftest import KEY, Mounter, NewMounter
from tests.recovery.processes import find_family

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

HERE = Path(__file__).parent
SECRET = "what lies outside"
ROUNDS = 200


@dataclass(frozen=True, slots=True)
class Outside:
    """A directory beside the instance, with a file and an empty directory in it."""

    path: Path

    @property
    def empty(self) -> Path:
        return self.path / "empty"

    def is_untouched(self) -> bool:
        return sorted(item.name for item in self.path.iterdir()) == ["empty", "in", "secret"] and (
            not any(self.empty.iterdir())
        )


@pytest.fixture
def outside(mounter: Mounter) -> Outside:
    path = mounter.path.parent / "outside"
    for name in ("empty", "in"):
        (path / name).mkdir(parents=True)
    for name in ("secret", "in/secret"):
        (path / name).write_text(SECRET)
    if mounter.user:
        mounter.user.own(path)
    return Outside(path)


def configure(
    mounter: Mounter,
    *,
    mounts: list[dict[str, Any]] | None = None,
    **fields: Any,  # noqa: ANN401 - the configuration's own
) -> None:
    """Set fields of the section ``serdab``, add to the mounts, and build again."""
    file = mounter.path / "Occlum.json"
    config = json.loads(file.read_text())
    config["serdab"] = fields
    config["mount"] += mounts or []
    file.write_text(json.dumps(config))
    mounter.instance.command.ok("-C", mounter.path, "build")


def own(mounter: Mounter, *paths: Path) -> None:
    if mounter.user:
        mounter.user.own(*paths)


class TestAProgramThatPlantsALink:
    @pytest.mark.parametrize(
        "policy",
        [
            {"host_directories": ["share"]},
            {"host_directories": ["share", "other"], "runtime_mounts": {"layers": ["share"]}},
        ],
        ids=["host directories", "layers"],
    )
    def test_where_a_root_was_reaches_nothing_else(
        self, mounter: Mounter, outside: Outside, policy: dict[str, Any]
    ) -> None:
        configure(mounter, **policy)
        mounter.folder("share/in")
        script = (
            "busybox mv /host/share /host/s2 && busybox ln -s / /host/share && exec /bin/mounter "
            f"mount x /mnt hostfs 0 dir={outside.path} read /mnt/secret "
            f"mount x /mnt hostfs 0 dir=share{outside.path} read /mnt/secret "
            f"mount x /mnt sefs 0 dir={outside.empty} mount x /mnt sefs 0 dir=share{outside.empty} "
            "mount x /mnt hostfs 0 dir=s2/in"
        )
        done = mounter.instance.run("/bin/sh", "-c", script)
        said = [line.partition(" ")[2] for line in done.stdout.decode().splitlines()]
        # What was opened when the boot began is what may be mounted, whatever it is called now.
        assert said == ["EPERM", "ENOENT", "EPERM", "ENOENT", "EPERM", "EPERM", "ok"]
        assert outside.is_untouched()

    def test_is_told_to_the_operator(self, mounter: Mounter, outside: Outside) -> None:
        (mounter.path / "way").symlink_to(outside.path)
        told = mounter.told("mount", "x", "/mnt", "hostfs", "0", "dir=way/in")
        assert str(mounter.path / "way") in told
        assert "expected a directory, found a symbolic link" in told

    def test_for_a_layer_makes_no_volume_there(self, mounter: Mounter, outside: Outside) -> None:
        configure(mounter, runtime_mounts={"layers": ["volumes"]})
        mounter.folder("volumes")
        (mounter.path / "volumes/a").symlink_to(outside.empty)
        out = mounter.calls("mount", "x", "/mnt", "sefs", "0", "dir=volumes/a")
        assert out == ["EPERM"]
        assert outside.is_untouched()

    def test_finds_none_on_an_absolute_way_either(self, mounter: Mounter, outside: Outside) -> None:
        mounter.folder("share")
        (mounter.path / "share/way").symlink_to(mounter.path)
        out = mounter.calls(
            *("mount", "x", "/mnt", "hostfs", "0", f"dir={mounter.path}/share/way/share"),
            *("mount", "x", "/mnt", "hostfs", "0", f"dir={mounter.path}/share"),
        )
        assert out == ["EPERM", "ok"]

    def test_for_the_source_of_a_mount_is_shown_nothing_at_the_next_boot(
        self, mounter: Mounter, outside: Outside
    ) -> None:
        mounter.folder("share")
        configure(mounter, mounts=[{"type": "hostfs", "source": "share", "target": "/share"}])
        plant = f"busybox rmdir /host/share && busybox ln -s {outside.path} /host/share"
        planted = mounter.instance.run("/bin/sh", "-c", plant)
        assert planted.returncode == 0, planted.stderr.decode()
        done = mounter.instance.run("/bin/cat", "/share/secret")
        assert done.returncode == 125
        assert SECRET not in done.stdout.decode()
        told = done.stderr.decode()
        assert "error: config: " in told
        assert f"{mounter.path}/share (expected a directory, found a symbolic link)" in told


def link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def file(path: Path, outside: Path) -> None:
    path.write_text("a file")


THINGS = {"a symbolic link": link, "a FIFO": fifo, "a file": file}


class TestTheStorage:
    @pytest.mark.parametrize("name", ["run/mount/__ROOT", "run/mount"])
    def test_puts_something_else_in_place_of_the_writable_layer(
        self, mounter: Mounter, outside: Outside, name: str
    ) -> None:
        assert mounter.instance.run("/bin/echo", "on").returncode == 0
        place = mounter.path / name
        shutil.rmtree(place, ignore_errors=True)
        for word, put in THINGS.items():
            place.parent.mkdir(exist_ok=True)
            put(place, outside.empty)
            done = mounter.instance.run("/bin/echo", "on")
            told = done.stderr.decode()
            assert (done.returncode, done.stdout) == (125, b""), word
            assert "error: rootfs: " in told
            assert f"{place} (expected a directory, found {word})" in told
            place.unlink()
        assert outside.is_untouched()

    def test_puts_a_link_in_place_of_an_image(self, mounter: Mounter, outside: Outside) -> None:
        real = outside.path.parent / "real"
        for name in ("build/mount", "build/mount/__ROOT", "build/initfs/__ROOT"):
            place = mounter.path / name
            place.rename(real)
            place.symlink_to(real)
            done = mounter.instance.run("/bin/echo", "on")
            assert (done.returncode, done.stdout) == (125, b""), name
            assert "found a symbolic link" in done.stderr.decode()
            place.unlink()
            real.rename(place)
        assert mounter.instance.run("/bin/echo", "on").returncode == 0

    def test_the_layer_is_where_it_was_once_the_link_is_gone(
        self, mounter: Mounter, outside: Outside
    ) -> None:
        assert mounter.instance.run("/bin/sh", "-c", "echo kept > /mnt/f").returncode == 0
        place = mounter.path / "run/mount"
        aside = mounter.path / "run/aside"
        place.rename(aside)
        place.symlink_to(aside)
        assert mounter.instance.run("/bin/cat", "/mnt/f").returncode == 125
        place.unlink()
        aside.rename(place)
        assert mounter.instance.run("/bin/cat", "/mnt/f").stdout == b"kept\n"


class TestNamedKeys:
    def mount_with(self, mounter: Mounter, source: Path) -> tuple[list[str], str]:
        configure(mounter, runtime_mounts={"keys": [{"name": "file", "source": str(source)}]})
        mounter.folder("f")
        done = mounter.instance.run(
            "/bin/mounter", "mount", "x", "/mnt", "sefs", "0", "dir=f,key=@file", timeout_s=60
        )
        said = [line.partition(" ")[2] for line in done.stdout.decode().splitlines()]
        return said, done.stderr.decode()

    def test_a_fifo_hangs_nobody(self, mounter: Mounter, outside: Outside) -> None:
        os.mkfifo(outside.path / "key")
        own(mounter, outside.path)
        said, told = self.mount_with(mounter, outside.path / "key")
        assert said == ["EPERM"]
        assert "expected a file, found a FIFO" in told

    def test_one_where_programs_write_is_none(self, mounter: Mounter, outside: Outside) -> None:
        place = mounter.folder("keys") / "key"
        place.write_text(KEY + "\n")
        own(mounter, place)
        said, told = self.mount_with(mounter, place)
        assert said == ["EPERM"]
        assert "the key named file cannot be read" in told

    def test_a_link_where_others_write_is_none(self, mounter: Mounter, outside: Outside) -> None:
        place = outside.path / "keys"
        place.mkdir()
        place.chmod(0o777)
        (outside.path / "key").write_text(KEY + "\n")
        (place / "key").symlink_to(outside.path / "key")
        own(mounter, outside.path / "key")
        said, told = self.mount_with(mounter, place / "key")
        assert said == ["EPERM"]
        assert "the key named file cannot be read" in told


@pytest.fixture
def alias(mounter: Mounter, tmp_path: Path) -> Iterator[Path]:
    """Another path of share/: a bind mount on the host."""
    source = mounter.folder("share/in").parent
    target = tmp_path / "alias"
    target.mkdir()
    subprocess.run(["mount", "--bind", source, target], check=True)
    yield target
    subprocess.run(["umount", target], check=True)


@pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
class TestAnotherPath:
    def test_of_a_listed_directory_is_as_good(self, mounter: Mounter, alias: Path) -> None:
        configure(mounter, host_directories=["share"])
        out = mounter.calls(
            *("mount", "x", "/mnt", "hostfs", "0", f"dir={alias}/in", "umount", "/mnt", "0"),
            *("mount", "x", "/mnt", "hostfs", "0", f"dir={alias.parent}"),
        )
        assert out == ["ok", "ok", "EPERM"]


def open_at(pid: int, path: Path) -> int:
    """Return how many descriptors of a process are this very directory."""
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # it is closed by now
            found += os.path.samestat(os.stat(link), os.stat(path))
    return found


class TestDescriptors:
    def test_of_the_instance_are_with_those_alone_who_need_one(self, mounter: Mounter) -> None:
        for name in ("share", "volume"):
            mounter.folder(name)
        process = mounter.instance.command.popen(
            *("-C", mounter.path, "run", "/bin/mounter"),
            *("mount", "x", "/mnt", "hostfs", "0", "dir=share"),
            *("mount", "x", "/mnt2", "sefs", "0", "dir=volume"),
            *("write", "/mnt2/f", "1", "wait"),
            stdin=subprocess.PIPE,
        )
        with process:
            assert process.stdout is not None
            assert [process.stdout.readline().split()[-1] for _ in range(3)] == [b"ok"] * 3
            family = find_family(process.pid, mounter.path)
            holders = [each for each in family.servers if open_at(each.pid, mounter.path)]
            # The kernel process for what is mounted later, and the server of /host.
            assert open_at(family.kernel.pid, mounter.path)
            assert len(holders) == 1
            assert not open_at(family.launcher.pid, mounter.path)
            process.communicate(b"\n", timeout=60)
        assert process.returncode == 0


class TestARace:
    @pytest.fixture
    def swapped(self, new_mounter: NewMounter, compile_c: CompileC) -> Mounter:
        program = compile_c((HERE / "swapper.c").read_text(), flags=("-static", "-D_GNU_SOURCE"))
        return new_mounter(lambda image: shutil.copy(program, image / "bin/swapper"))

    def test_of_a_directory_with_a_link_leads_nowhere_else(
        self, swapped: Mounter, tmp_path: Path
    ) -> None:
        outside = swapped.path.parent / "elsewhere"
        (outside / "in").mkdir(parents=True)
        (outside / "in/secret").write_text(SECRET)
        own(swapped, outside)
        swapped.folder("share/in")
        (swapped.path / "way").symlink_to(outside)
        done = swapped.instance.run("/bin/swapper", str(ROUNDS), "share/in", timeout_s=300)
        assert done.returncode == 0, done.stderr.decode()
        mounted, refused, swaps, led = map(int, done.stdout.split())
        assert led == 0
        assert mounted > 0
        assert refused > 0
        assert mounted + refused == ROUNDS
        assert swaps > ROUNDS
