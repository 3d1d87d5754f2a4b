# SPDX-License-Identifier: Apache-2.0
"""An instance in an image layer: overlayfs renames no directory that a layer below holds (EXDEV).

The layer is a real one. The killed process is a fork, as in ``test_rekey``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serdab.errors import BusyError
from serdab.instance import movable
from serdab.instance.layout import MOVED_COPIES, Instance
from serdab.instance.locks import is_switch_cut_off, lock_run
from serdab.instance.reset import reset
from serdab.linux.dirfd import DirFd
from serdab.linux.mounts import MountFlag, UmountFlag, mount, umount
from tests.recovery.rekeying import NEW, OLD, Place, change, do_build, do_rekey, make_place, use
from tests.recovery.test_rekey import in_child, opening_key

pytestmark = [pytest.mark.root]


class Layered(Place):
    """A place whose files lie in the lower layer of an overlay, which restoring makes anew."""

    __slots__ = ()

    @property
    def room(self) -> Path:
        return self.saved.parent / "room"

    def restore(self) -> None:
        if os.path.ismount(self.base):
            umount(str(self.base), UmountFlag.DETACH)
        for name in ("upper", "work"):
            shutil.rmtree(self.room / name, ignore_errors=True)
            (self.room / name).mkdir()
        # As engines mount it; the first would let directories be renamed.
        options = "redirect_dir=off,index=off,"
        options += f"lowerdir={self.saved},upperdir={self.room}/upper,workdir={self.room}/work"
        mount("layers", str(self.base), "overlay", MountFlag(0), options)

    def commit(self) -> None:
        """Make what is there a layer, as an engine does that makes an image of a container."""
        merged = self.saved.parent / "merged"
        shutil.copytree(self.base, merged, symlinks=True)
        shutil.rmtree(self.saved)
        merged.rename(self.saved)
        self.restore()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Layered]:
    made = make_place(tmp_path / "at", tmp_path / "saved", monkeypatch)
    layered = Layered(made.base, made.saved, made.before)
    layered.room.mkdir()
    mount(
        "room", str(layered.room), "tmpfs", MountFlag(0), ""
    )  # an overlay cannot have another for its upper layer
    try:
        layered.restore()
        yield layered
    finally:
        subprocess.run(["umount", "-l", layered.base], check=True)
        umount(str(layered.room), UmountFlag.DETACH)


def seal_another(instance: Instance) -> None:
    """Build with another init FS: the writable layer stays with the image."""
    count = Path(instance.at("initfs/another"))
    count.write_bytes(b"%d" % (int(count.read_bytes()) + 1 if count.exists() else 0))
    do_build(instance, OLD)


def names(place: Place) -> list[str]:
    return sorted(os.listdir(place.instance.path))


def test_the_kernel_refuses_what_this_is_about(place: Layered) -> None:
    with pytest.raises(OSError, match="cross-device"):
        os.rename(place.instance.at("build"), place.instance.at("other"))


def test_build_and_use(place: Layered) -> None:
    before = names(place)
    seal_another(place.instance)
    assert use(place.instance, OLD) == place.before
    seal_another(place.instance)  # now it is in the upper layer
    assert names(place) == before


def test_the_image_of_the_layer_is_kept(place: Layered) -> None:
    image = Path(place.instance.at("build/mount/__ROOT/image.sefs")).read_bytes()
    for number in range(2):
        Path(place.instance.at("image/root/another")).write_bytes(b"%d" % number)
        do_build(place.instance, OLD)
    kept = Path(place.instance.at("build/previous")).glob("*/image.sefs")
    assert image in [path.read_bytes() for path in kept]
    reset(place.instance, say=lambda _: None)
    assert not place.instance.root.exists("build/previous")


def test_rekey_and_use(place: Layered) -> None:
    before = names(place)
    do_rekey(place.instance)
    assert opening_key(place) == NEW
    assert names(place) == before
    do_rekey(place.instance, NEW, OLD)
    assert opening_key(place) == OLD


def test_reset_and_use(place: Layered) -> None:
    reset(place.instance, say=lambda _: None)
    assert use(place.instance, OLD) != place.before
    do_rekey(place.instance)
    assert use(place.instance, NEW, change) == place.before


def test_an_instance_that_was_copied_up_in_part(place: Layered) -> None:
    os.utime(place.instance.at("build/mount/__ROOT/image.sefs"))
    Path(place.instance.at("build/more")).write_bytes(b"of the upper layer")
    seal_another(place.instance)
    do_rekey(place.instance)
    assert opening_key(place) == NEW


def test_a_build_beside_a_user_is_refused_and_changes_nothing(place: Layered) -> None:
    before = names(place)
    with lock_run(place.instance), pytest.raises(BusyError, match="in use"):
        seal_another(place.instance)
    assert names(place) == before
    assert use(place.instance, OLD) == place.before


def kill_everywhere(
    place: Layered,
    act: Callable[[Instance], object],
    check: Callable[[], object],
    *,
    points: slice,
    committed: bool = False,
) -> None:
    """Kill before these of the changes that ``act`` makes of the host."""
    kept = place.saved.parent / "kept"
    shutil.copytree(place.saved, kept, symlinks=True)
    total = in_child(lambda: act(place.instance), kill_at=-1)
    assert total is not None
    for point in range(total)[points]:
        place.restore()
        assert in_child(lambda: act(place.instance), kill_at=point) is None, point
        if committed:
            place.commit()
        try:
            check()
            assert not is_switch_cut_off(place.instance)
            assert not place.instance.root.exists(MOVED_COPIES)
        except BaseException:
            print(f"killed before change {point} of {total}")
            raise
        if committed:
            shutil.rmtree(place.saved)
            shutil.copytree(kept, place.saved, symlinks=True)


#: Of what leads to the switch, and of the switch itself: a part of it in each run of the suite.
EVERYWHERE = [pytest.param(1, marks=pytest.mark.soak), pytest.param(4)]


def own_build(instance: Instance) -> None:
    """Do what comes before the exchange, then die."""
    with lock_run(instance):
        movable.make_movable(instance.root, "build")


@pytest.mark.parametrize("step", EVERYWHERE)
@pytest.mark.parametrize("committed", [False, True])
def test_a_kill_while_a_directory_is_made_ours(
    place: Layered, step: int, *, committed: bool
) -> None:
    def check() -> None:
        assert use(place.instance, OLD) == place.before
        seal_another(place.instance)
        assert use(place.instance, OLD) == place.before

    kill_everywhere(
        place, own_build, check, points=slice(committed, None, step), committed=committed
    )


@pytest.mark.parametrize("step", EVERYWHERE)
@pytest.mark.parametrize("committed", [False, True])
def test_a_kill_of_rekey(place: Layered, step: int, *, committed: bool) -> None:
    def check() -> None:
        opening_key(place)
        do_rekey(place.instance)
        assert opening_key(place) == NEW

    kill_everywhere(
        place, do_rekey, check, points=slice(-40 + committed, None, step), committed=committed
    )


@pytest.mark.parametrize("step", EVERYWHERE)
def test_a_kill_of_build(place: Layered, step: int) -> None:
    def check() -> None:
        assert use(place.instance, OLD) == place.before
        seal_another(place.instance)
        assert use(place.instance, OLD) == place.before

    kill_everywhere(place, seal_another, check, points=slice(-40, None, step))


def test_work_of_a_rekey_that_became_a_layer(place: Layered) -> None:
    """Killed before its decision, committed to an image: the next one does it again."""

    def die(instance: Instance) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DirFd, "exchange", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            do_rekey(instance)

    assert in_child(lambda: die(place.instance), kill_at=-1) is None
    place.commit()
    do_rekey(place.instance)
    assert opening_key(place) == NEW
