# SPDX-License-Identifier: Apache-2.0
"""A change of the key that is killed anywhere leaves an instance that one of the two keys opens.

The killed process is a fork that counts its changes of the host (writes, flushes, names) and kills
itself at one of them; what then happens is done by the real code on the real file system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from serdab.errors import EnvironmentRefused, Error, RollbackError, UsageError, WrongKeyError
from serdab.instance import publish, rekeystage, switch
from serdab.instance.layout import IMAGE, Instance
from serdab.instance.locks import is_switch_cut_off
from serdab.instance.rekey import RekeyRequest, rekey
from serdab.instance.sealedroot import verified_chain
from serdab.keys import Key
from serdab.linux.dirfd import DirFd
from serdab.sefs import volumecopy
from serdab.sefs.volume import Volume
from serdab.vfs.union import Union
from tests.harness.signers import signer
from tests.recovery.rekeying import (
    NEW,
    OLD,
    Place,
    do_rekey,
    make_place,
    use,
)

CHANGES: Final = (
    "rename", "mkdir", "unlink", "rmdir", "pwrite", "fsync", "fdatasync", "ftruncate",
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return make_place(tmp_path / "at", tmp_path / "saved", monkeypatch)


# Kills ------------------------------------------------------------------------------------


def no_exchange(*_: object) -> None:
    """As on a file system that cannot do it."""
    raise OSError(errno.EINVAL, "no exchange")


def in_child(act: Callable[[], object], *, kill_at: int) -> int | None:
    """Do it in a child that is killed before a change; None: it was, else how many it made."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(out)
            count = _count_changes(kill_at)
            act()
            os.write(into, b"%d" % count[0])
            code = 0
        except BaseException:  # whatever it is, this process ends here
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(into)
    with open(out, "rb") as stream:
        said = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == -signal.SIGKILL:
        return None
    assert status == 0, "the command failed of itself"
    return int(said)


def _count_changes(kill_at: int) -> list[int]:
    count = [0]

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
            return function(*args, **options)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    setattr(DirFd, "exchange", counted(DirFd.exchange))  # noqa: B010 - not for the type checker
    return count


def opening_key(place: Place) -> Key:
    """Return the one key that opens the instance, which shows what it showed before."""
    opened = []
    for key in (OLD, NEW):
        try:
            assert use(place.instance, key) == place.before
        except WrongKeyError:
            continue
        opened.append(key)
    (key,) = opened
    return key


def check_after_kill(place: Place, *, use_first: bool) -> bool:
    """Check what a kill left, and that the command completes it; return whether it was decided."""
    decided = False
    if use_first:
        decided = opening_key(place) == NEW
        assert not is_switch_cut_off(place.instance)
    result = do_rekey(place.instance)
    assert result.was_done == decided or not use_first
    assert not is_switch_cut_off(place.instance)
    assert opening_key(place) == NEW
    assert sorted(os.listdir(place.instance.path)) == sorted(os.listdir(place.saved / "instance"))
    return decided


def check_kills(place: Place, points: list[int]) -> set[bool]:
    outcomes = set()
    for index, point in enumerate(points):
        place.restore()
        assert in_child(lambda: do_rekey(place.instance), kill_at=point) is None, point
        try:
            outcomes.add(check_after_kill(place, use_first=index % 2 == 0))
        except BaseException:
            print(f"killed before change {point}")
            raise
    return outcomes


def count_changes(place: Place) -> int:
    total = in_child(lambda: do_rekey(place.instance), kill_at=-1)
    assert total is not None
    return total


def test_a_kill_anywhere_leaves_what_one_key_opens_and_is_completed(place: Place) -> None:
    total = count_changes(place)
    assert total > 50
    chance = random.Random(7)
    # The switch is in the last part; what comes before is one long preparation.
    points = sorted({*chance.sample(range(total - 30), 6), *range(total - 30, total, 3)})
    assert check_kills(place, points) == {True, False}


def test_a_kill_where_directories_cannot_be_exchanged(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DirFd, "exchange", no_exchange)
    total = count_changes(place)
    assert check_kills(place, list(range(total - 28, total - 8, 2))) == {True, False}


@pytest.mark.soak
def test_a_kill_at_every_change(place: Place) -> None:
    total = count_changes(place)
    assert check_kills(place, list(range(total))) == {True, False}
    assert check_kills(place, [0, *range(total)]) == {True, False}  # the other first use


def test_a_rekey_that_was_cut_off_and_given_up_leaves_nothing(place: Place) -> None:
    total = count_changes(place)
    place.restore()
    assert in_child(lambda: do_rekey(place.instance), kill_at=total // 3) is None
    assert is_switch_cut_off(place.instance)
    assert use(place.instance, OLD, change_again) != place.before
    assert not is_switch_cut_off(place.instance)


def change_again(fs: Union, _: Volume) -> None:
    inode = fs.mknod(1, b"later", 0o100644, 0, 0, 0)
    fs.write(inode.ino, 0, memoryview(b"later"), kill_suidgid=False)


def die_at_the_switch(instance: Instance) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DirFd, "exchange", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        do_rekey(instance)


def test_what_was_staged_before_the_layer_went_on_is_refused(place: Place, tmp_path: Path) -> None:
    """The storage keeps what was staged and given up, and brings it back as if decided."""
    instance, kept = place.instance, tmp_path / "kept"
    assert in_child(lambda: die_at_the_switch(instance), kill_at=-1) is None
    shutil.copytree(instance.path, kept, symlinks=True)
    # It is given up: the old key is used on, without a single commit.
    use(instance, OLD, change_again)
    for name in (".rekey-staging", "run/.rekey"):
        shutil.copytree(kept / name, Path(instance.at(name)), symlinks=True)
    with instance.root.directory(".rekey-staging") as staged:
        publish.put_in_place(instance, ".rekey-staging", staged)
    with pytest.raises(RollbackError):
        use(instance, NEW)


# Space ------------------------------------------------------------------------------------


@pytest.fixture
def small_host(tmp_path: Path) -> Iterator[Path]:
    """A host file system of 24 MiB."""
    base = tmp_path / "small"
    base.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "small", base], check=True)
    try:
        yield base
    finally:
        subprocess.run(["umount", "-l", base], check=True)


@pytest.mark.root
@pytest.mark.parametrize("label", ["image", "writable layer"])
def test_a_host_that_becomes_full_in_the_middle_loses_nothing(
    small_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    place = make_place(small_host, tmp_path / "saved", monkeypatch)
    hog = small_host / "hog"

    def fill(step: str, _: int) -> None:
        if step == label and not hog.exists():
            with hog.open("wb", buffering=0) as file:
                while True:
                    try:
                        file.write(bytes(4096))
                    except OSError:
                        return

    request = RekeyRequest(signer(), old=OLD, new=NEW)
    with pytest.raises(EnvironmentRefused, match="no room"):
        rekey(place.instance, request, say=lambda _: None, progress=fill)
    assert hog.exists()
    assert not is_switch_cut_off(place.instance)
    hog.unlink()
    assert use(place.instance, OLD) == place.before
    do_rekey(place.instance)
    assert use(place.instance, NEW) == place.before


@pytest.mark.root
def test_a_host_that_is_too_small_is_told_at_once(
    small_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(small_host, tmp_path / "saved", monkeypatch)
    (small_host / "hog").write_bytes(bytes(22 << 20))
    with pytest.raises(EnvironmentRefused) as refusal:
        do_rekey(place.instance)
    assert "bytes free at" in refusal.value.expected
    assert use(place.instance, OLD) == place.before


def written_by(act: Callable[[], object]) -> int:
    """Return how many bytes a child of ours wrote while it did something."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            act()
            for line in Path("/proc/self/io").read_text().splitlines():
                name, _, value = line.partition(": ")
                if name == "wchar":
                    os.write(into, value.encode())
        finally:
            os._exit(0)
    os.close(into)
    with open(out, "rb") as stream:
        said = stream.read()
    os.waitpid(pid, 0)
    return int(said)


def test_file_data_is_written_once(place: Place) -> None:
    def add(fs: Union, _: Volume) -> None:
        inode = fs.mknod(1, b"bulk", 0o100644, 0, 0, 0)
        block = memoryview(os.urandom(1 << 20))
        for number in range(40):
            fs.write(inode.ino, number << 20, block, kill_suidgid=False)

    before = use(place.instance, OLD, add)
    image = Path(place.instance.at(IMAGE), "image.sefs").stat().st_size
    data = (40 << 20) + image
    assert written_by(lambda: do_rekey(place.instance)) < 1.05 * data
    assert use(place.instance, NEW) == before


# Going on ---------------------------------------------------------------------------------


def die_before(module: ModuleType, name: str) -> None:
    vars(module)[name] = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)


def test_an_image_that_was_sealed_is_not_sealed_again(place: Place) -> None:
    def cut_off() -> None:
        die_before(rekeystage, "copy_volume")
        do_rekey(place.instance)

    assert in_child(cut_off, kill_at=-1) is None
    staged = Path(place.instance.at(".rekey-staging/mount/__ROOT/image.sefs")).stat()
    result = do_rekey(place.instance)
    now = Path(place.instance.at(IMAGE), "image.sefs").stat()
    assert (now.st_ino, now.st_mtime_ns) == (staged.st_ino, staged.st_mtime_ns)
    assert not result.was_done
    assert use(place.instance, NEW) == place.before
    assert not list((place.base / "state/serdab/rekeys").iterdir())


def test_an_attempt_with_another_new_key_begins_anew(place: Place) -> None:
    def cut_off() -> None:
        die_before(switch, "decide")
        do_rekey(place.instance)

    assert in_child(cut_off, kill_at=-1) is None
    third = Key(b"t" * 16)
    do_rekey(place.instance, OLD, third)
    assert use(place.instance, third) == place.before
    with pytest.raises(WrongKeyError):
        use(place.instance, NEW)


def test_a_staged_image_that_the_storage_changed_is_sealed_again(place: Place) -> None:
    def cut_off() -> None:
        die_before(switch, "decide")
        do_rekey(place.instance)

    assert in_child(cut_off, kill_at=-1) is None
    file = Path(place.instance.at(".rekey-staging/mount/__ROOT/image.sefs"))
    shutil.copyfile(Path(place.instance.at("build/initfs/__ROOT/image.sefs")), file)
    do_rekey(place.instance)
    assert use(place.instance, NEW) == place.before


def test_the_copy_of_a_layer_goes_on_where_it_was_cut_off(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumecopy, "_BATCH_CONTENT", 4 << 20)

    def add(fs: Union, _: Volume) -> None:
        for name in (b"bulk", b"more"):
            inode = fs.mknod(1, name, 0o100644, 0, 0, 0)
            block = memoryview(os.urandom(1 << 20))
            for number in range(16):
                fs.write(inode.ino, number << 20, block, kill_suidgid=False)

    before = use(place.instance, OLD, add)

    def cut_off() -> None:
        def count(label: str, done: int) -> None:
            if label == "writable layer" and done > 24 << 20:
                os.kill(os.getpid(), signal.SIGKILL)

        request = RekeyRequest(signer(), old=OLD, new=NEW)
        rekey(place.instance, request, say=lambda _: None, progress=count)

    assert in_child(cut_off, kill_at=-1) is None
    # 24 of 33 MiB were done, the last 4 of them behind the last checkpoint.
    assert written_by(lambda: do_rekey(place.instance)) < 14 << 20
    assert use(place.instance, NEW) == before


def test_a_copy_of_an_older_state_is_not_gone_on_with(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage brings back the work of an attempt that was given up before the layer went on."""
    monkeypatch.setattr(volumecopy, "_BATCH_CONTENT", 64 << 10)

    def cut_off() -> None:
        die_before(switch, "stage_layer")
        do_rekey(place.instance)

    assert in_child(cut_off, kill_at=-1) is None
    kept = tmp_path / "kept"
    shutil.copytree(place.instance.at("run/.rekey"), kept)
    before = use(place.instance, OLD, change_again)
    shutil.copytree(kept, place.instance.at("run/.rekey"))
    do_rekey(place.instance)
    assert use(place.instance, NEW) == before


# A hostile storage ------------------------------------------------------------------------


def outside(tmp_path: Path) -> dict[str, str]:
    return {
        str(path.relative_to(tmp_path / "precious")): path.read_text() if path.is_file() else "-"
        for path in sorted((tmp_path / "precious").rglob("*"))
    }


@pytest.mark.parametrize(
    "link", ["run/.rekey", ".rekey-staging", ".rekey-staging-old", "run/mount/__ROOT", "run/mount"]
)
@pytest.mark.parametrize("again", [False, True], ids=["used", "rekeyed"])
def test_a_link_that_the_storage_put_there_leads_nowhere(
    place: Place, tmp_path: Path, link: str, again: bool
) -> None:
    precious = tmp_path / "precious"
    for name in ("old/a", "new/b", "__ROOT/c", "mount/__ROOT/image.sefs", "anchor"):
        path = precious / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    before = outside(tmp_path)
    instance = place.instance
    conf_mac = str(verified_chain(instance).descriptor.conf_mac)
    # What waits for the place of the layer, as if a switch had been decided.
    if not link.startswith(".rekey") and link != "run/.rekey":
        Path(instance.at("run/.rekey"), conf_mac).mkdir(parents=True)
    target = Path(instance.at(link))
    if target.is_dir():
        shutil.move(target, tmp_path / "aside")
    target.symlink_to(precious)
    if link == "run/.rekey":
        shutil.rmtree(instance.at("run/mount/__ROOT"))
    with contextlib.suppress(Error, OSError):
        if again:
            do_rekey(instance)
        else:
            use(instance, OLD)
    assert outside(tmp_path) == before


@pytest.mark.parametrize("name", ["mount", "mount/__ROOT"])
def test_a_link_in_what_was_staged_leads_nowhere(place: Place, tmp_path: Path, name: str) -> None:
    (tmp_path / "precious/__ROOT").mkdir(parents=True)
    (tmp_path / "precious/__ROOT/image.sefs").write_text("precious")
    (tmp_path / "precious/image.sefs").write_text("precious")
    before = outside(tmp_path)
    staged = Path(place.instance.at(".rekey-staging"), name)
    staged.parent.mkdir(parents=True)
    staged.symlink_to(tmp_path / "precious")
    do_rekey(place.instance)
    assert outside(tmp_path) == before
    assert use(place.instance, NEW) == place.before


def test_a_layer_that_an_init_named_is_not_left_behind(place: Place) -> None:
    use(place.instance, OLD, change_again, upper="run/other")
    with pytest.raises(UsageError, match="another writable layer"):
        do_rekey(place.instance)
    shutil.rmtree(place.instance.at("run/other"))
    do_rekey(place.instance)
    assert use(place.instance, NEW) == place.before
