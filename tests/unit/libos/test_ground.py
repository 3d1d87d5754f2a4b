# SPDX-License-Identifier: Apache-2.0
"""How a boot opens host directories, and where those of programs may lie."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serdab.errors import FormatError, NotAllowedError, UsageError
from serdab.libos.fence import Fence
from serdab.libos.ground import (
    Ground,
    LedElsewhere,
    Roots,
    dump_identities,
    parse_identities,
)
from serdab.libos.orders import HOST, UNION, Orders
from serdab.libos.pinplace import placed_outside
from serdab.libos.request import BootRequest, Freshness
from serdab.linux.dirfd import DirFd


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "inst"
    for name in ("share/in", "build", "run/mount", "other"):
        (path / name).mkdir(parents=True)
    (path / "Occlum.json").touch()
    (tmp_path / "outside/in").mkdir(parents=True)
    return path


@pytest.fixture
def ground(home: Path) -> Iterator[Ground]:
    gc.collect()  # what others left to the collector is not closed in between
    before = len(os.listdir("/proc/self/fd"))
    with Ground.at(str(home)) as ground:
        yield ground
    assert len(os.listdir("/proc/self/fd")) == before


def real(ground: Ground, path: str) -> str:
    with ground.way(path) as way:
        return way.real()


class TestWays:
    @pytest.mark.parametrize("path", ["share/in", "./share//in/", "share/../share/in"])
    def test_below_the_instance(self, ground: Ground, home: Path, path: str) -> None:
        assert real(ground, path) == f"{home}/share/in"

    def test_beside_it_and_by_an_absolute_path(self, ground: Ground, tmp_path: Path) -> None:
        assert real(ground, "../outside/in") == f"{tmp_path}/outside/in"
        assert real(ground, f"{tmp_path}/outside") == f"{tmp_path}/outside"

    @pytest.mark.parametrize(
        "path", ["link", "link/in", "share/up", "../inst/link", "share/../link"]
    )
    def test_a_link_in_the_instance_is_not_followed(
        self, ground: Ground, home: Path, tmp_path: Path, path: str
    ) -> None:
        (home / "link").symlink_to(tmp_path / "outside")
        (home / "share/up").symlink_to("..")
        with pytest.raises(LedElsewhere):
            ground.way(path)

    def test_a_link_of_our_own_outside_is(self, ground: Ground, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("outside")
        assert real(ground, "../link/in") == f"{tmp_path}/outside/in"

    def test_one_where_others_write_or_programs_are_shown_is_not(
        self, ground: Ground, tmp_path: Path
    ) -> None:
        (tmp_path / "link").symlink_to("outside")
        tmp_path.chmod(0o777)
        with pytest.raises(LedElsewhere):
            ground.way("../link/in")
        tmp_path.chmod(0o700)
        ground.close_off([str(tmp_path), "nothing/there"])
        with pytest.raises(LedElsewhere):
            ground.way("../link/in")

    @pytest.mark.parametrize("path", ["Occlum.json", "Occlum.json/x", "nothing", "", "a\0b"])
    def test_what_is_no_directory_is_no_attack(self, ground: Ground, path: str) -> None:
        with pytest.raises(UsageError) as caught:
            ground.way(path)
        assert not isinstance(caught.value, LedElsewhere)

    def test_it_stays_where_it_was_opened(self, ground: Ground, home: Path, tmp_path: Path) -> None:
        home.rename(tmp_path / "moved")
        home.symlink_to(tmp_path / "outside")
        assert real(ground, "share") == f"{tmp_path}/moved/share"


class TestMaking:
    def test_below_and_outside(self, ground: Ground, home: Path, tmp_path: Path) -> None:
        for path, made in (("run/a/b", home / "run/a/b"), ("../c/d", tmp_path / "c/d")):
            ground.make(path, mode=0o700).close()
            ground.make(path, mode=0o700).close()
            assert made.is_dir()
        ground.make(f"{tmp_path}/e/f", mode=0o700).close()
        assert (tmp_path / "e/f").is_dir()

    def test_what_is_not_there_yet_is_remembered_by_its_real_path(
        self, ground: Ground, home: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "link").symlink_to("outside")
        assert ground.real(f"{tmp_path}/link/a/b") == f"{tmp_path}/outside/a/b"
        assert ground.real(f"{tmp_path}/link/in") == f"{tmp_path}/outside/in"
        assert ground.real("run/mount/__ROOT") == f"{home}/run/mount/__ROOT"
        assert ground.real(".") == str(home)

    @pytest.mark.parametrize("path", ["way/a", "way/a/b", "run/file", "run/file/a", "way"])
    def test_never_through_something_else(
        self, ground: Ground, home: Path, tmp_path: Path, path: str
    ) -> None:
        (home / "way").symlink_to(tmp_path / "outside")
        (home / "run/file").touch()
        with pytest.raises(UsageError):
            ground.make(path, mode=0o700)
        assert os.listdir(tmp_path / "outside") == ["in"]


class TestFence:
    def fence(self, ground: Ground, *names: str, private: tuple[str, ...] = ()) -> Fence:
        return Fence(Roots(names, ground).identities, names, private)

    def enter(self, fence: Fence, ground: Ground, path: str) -> str:
        place = fence.enter(ground, path)
        place.directory.close()
        return place.path

    def test_a_root_is_what_was_opened_not_its_name(self, ground: Ground, home: Path) -> None:
        fence = self.fence(ground, "share")
        (home / "share").rename(home / "moved")
        (home / "other").rename(home / "share")
        assert self.enter(fence, ground, "moved/in") == f"{home}/moved/in"
        assert self.enter(fence, ground, f"{home}/moved") == f"{home}/moved"
        with pytest.raises(NotAllowedError):
            fence.enter(ground, "share")

    @pytest.mark.parametrize("path", ["..", "/", "other", "share/..", "share/../other"])
    def test_nothing_beside_a_root(self, ground: Ground, path: str) -> None:
        with pytest.raises(NotAllowedError):
            self.fence(ground, "share").enter(ground, path)

    @pytest.mark.parametrize("path", ["build", "run/mount", "../second/build"])
    def test_what_is_never_shown(self, ground: Ground, home: Path, path: str) -> None:
        (home.parent / "second/build").mkdir(parents=True)
        (home.parent / "second/Occlum.json").touch()
        with pytest.raises(NotAllowedError):
            self.fence(ground, "..").enter(ground, path)

    def test_what_is_private_under_another_path(self, ground: Ground, home: Path) -> None:
        state = home / "share/state"
        state.mkdir()
        link = home.parent / "link"
        link.symlink_to("inst/share")
        fence = self.fence(ground, ".", private=(f"{link}/state",))
        with pytest.raises(NotAllowedError):
            fence.enter(ground, "share/state")

    def test_a_root_that_comes_later_is_found_then(self, ground: Ground, home: Path) -> None:
        roots = Roots(("late",), ground)
        assert not roots.identities
        (home / "late").mkdir()
        roots.look()
        fence = Fence(roots.identities, roots.names, ())
        assert self.enter(fence, ground, "late") == f"{home}/late"


class TestRecords:
    def orders(self, ground: Ground) -> Orders:
        fence = Fence(frozenset(ground.closed), (".",), ("/private",))
        host = DirFd.at("/")
        return Orders(
            HOST, host_path="/", ground=ground, fence=fence, host=host, files={"/a": b"b"}
        )

    def test_orders_come_through(self, ground: Ground) -> None:
        orders = self.orders(ground)
        parsed = Orders.parse(orders.dump(), tuple(map(os.dup, orders.fds)))
        assert (parsed.fence, parsed.files, parsed.kind) == (orders.fence, orders.files, HOST)
        assert parsed.ground is not None
        assert parsed.ground.closed == ground.closed
        parsed.close()
        assert orders.host is not None
        orders.host.close()

    def test_each_member_must_be_there_and_of_its_type(self, ground: Ground) -> None:
        orders = self.orders(ground)
        record = orders.dump()
        assert orders.host is not None
        for name in set(record) - {"op"}:
            for bad in ({k: v for k, v in record.items() if k != name}, record | {name: [1]}):
                if name in ("hidden", "private") and name in bad:
                    continue  # any list of words
                with pytest.raises(FormatError):
                    Orders.parse(bad, orders.fds)
        orders.host.close()

    def test_descriptors_are_counted(self) -> None:
        record = Orders(UNION).dump()
        with pytest.raises(FormatError):
            Orders.parse(record, (0,))
        with pytest.raises(FormatError):
            Orders.parse(record | {"has_host": True}, ())

    def test_each_member_of_a_boot_request_too(self) -> None:
        request = BootRequest(
            instance="/i", descriptor=b"", config=b"", initfs="a", rootfs="b", private=(),
            environment=(), umask=0,
        )  # fmt: skip
        record = request.dump()
        assert BootRequest.parse(record) == request
        for name in set(record) - {"op"}:
            other = 0 if isinstance(record[name], bool) else True
            for bad in ({k: v for k, v in record.items() if k != name}, record | {name: other}):
                with pytest.raises(FormatError):
                    BootRequest.parse(bad)

    def test_identities_of_any_size(self) -> None:
        some = frozenset({(1, (1 << 64) - 1), ((1 << 63) + 5, 2)})
        assert parse_identities(dump_identities(some)) == some
        with pytest.raises(FormatError):
            parse_identities(b"x")


class TestPins:
    def test_one_outside_has_its_real_path(self, home: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("outside/pin")
        for path in (tmp_path / "link", tmp_path / "outside/pin"):
            assert placed_outside(str(path), "--pin-file", str(home)) == f"{tmp_path}/outside/pin"
        (tmp_path / "outside/pin").touch()
        assert placed_outside(str(tmp_path / "link"), "--pin-file", str(home)) == (
            f"{tmp_path}/outside/pin"
        )

    @pytest.mark.parametrize("path", ["inst/pin", "inst/share/in/pin", "link/pin", "pin"])
    def test_one_within_protects_nothing(self, home: Path, tmp_path: Path, path: str) -> None:
        (tmp_path / "link").symlink_to("inst/share")
        (tmp_path / "pin").symlink_to("inst/pin")
        with pytest.raises(UsageError, match="a pin in the instance protects nothing"):
            Freshness(pin_file=str(tmp_path / path)).placed_outside(str(home))

    def test_nor_does_one_behind_a_link_that_the_storage_put_there(
        self, home: Path, tmp_path: Path
    ) -> None:
        (home / "link").symlink_to(tmp_path / "outside")
        with pytest.raises(UsageError):
            Freshness(pin_file=str(home / "link/pin")).placed_outside(str(home))
