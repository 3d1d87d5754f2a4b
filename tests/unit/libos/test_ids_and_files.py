# SPDX-License-Identifier: Apache-2.0
"""Id maps, host directories, the host's three files: decisions without a kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serdab.errors import EnvironmentRefused, UsageError
from serdab.libos import hostdirs, hostfiles, idslots
from serdab.libos.ground import Ground
from serdab.libos.idmaps import RANGE_IDS, Here, IdMap, choose, subordinate_range


class TestIdMaps:
    def ids(self, uid: int, subid: str = "", *, has_helpers: bool = True) -> object:
        return choose(
            uid=uid, gid=uid, user="anna", subuid=subid, subgid=subid, has_helpers=has_helpers
        )

    @pytest.mark.parametrize("subid", ["", "root:0:65536\n", "root:100000:65536\n", "junk"])
    def test_host_root_is_never_mapped(self, subid: str) -> None:
        ids = choose(uid=0, gid=0, user="", subuid=subid, subgid=subid, has_helpers=True)
        for inside, outside, count in (*ids.uids, *ids.gids):
            assert inside == 0
            assert outside > 0
            assert count == RANGE_IDS

    def test_root_uses_its_own_subordinate_range(self) -> None:
        ids = choose(
            uid=0, gid=0, user="", subuid="root:5:65536", subgid="serdab:7:65536", has_helpers=True
        )
        assert (ids.uids[0][1], ids.gids[0][1]) == (5, 7)

    def test_a_user_with_subordinate_ids_gets_them_after_himself(self) -> None:
        ids = choose(
            uid=1000,
            gid=1001,
            user="anna",
            subuid="otto:1:65536\nanna:200000:65536",
            subgid="anna:300000:65536",
            has_helpers=True,
        )
        assert ids.uids == ((0, 1000, 1), (1, 200000, RANGE_IDS - 1))
        assert ids.gids == ((0, 1001, 1), (1, 300000, RANGE_IDS - 1))
        assert ids.through_newuidmap
        assert not ids.is_single

    @pytest.mark.parametrize(
        ("subid", "has_helpers"), [("", True), ("anna:1:10", True), ("anna:1:65536", False)]
    )
    def test_without_them_there_is_one_id(self, subid: str, has_helpers: bool) -> None:
        ids = choose(
            uid=1000, gid=1000, user="anna", subuid=subid, subgid=subid, has_helpers=has_helpers
        )
        assert ids.is_single
        assert ids.uids == ((0, 1000, 1),)
        assert not ids.drop_groups

    def few(self, *ranges: tuple[int, int], host_root: int | None = None) -> IdMap:
        return choose(
            uid=0,
            gid=0,
            user="",
            subuid="root:100000:65536",
            subgid="root:100000:65536",
            has_helpers=True,
            here=Here(ranges, ranges, host_root),
        )

    def test_root_of_a_container_has_what_ids_there_are(self) -> None:
        assert self.few((0, 1)).is_single
        ids = self.few((0, 1), (1, 70000))  # podman without root
        assert ids.uids == ids.gids == ((0, 0, 1), (1, 1, RANGE_IDS - 1))
        assert self.few((0, 1000)).uids == ((0, 0, 1000),)
        assert self.few((0, 165536)).uids == ((0, 100000, RANGE_IDS),)  # its own range is there

    def test_host_root_with_few_ids_is_refused(self) -> None:
        with pytest.raises(EnvironmentRefused, match="machine's root"):
            self.few((0, 1000), host_root=0)

    def test_host_root_by_another_number_is_left_out(self) -> None:
        assert self.few((0, 1000), host_root=5).uids == ((0, 0, 5), (6, 6, 994))
        assert self.few((0, 1), (1, 9), host_root=1).uids == ((0, 0, 1), (2, 2, 8))

    @pytest.mark.parametrize("line", ["anna:x:65536", "anna:1", "anna:0:65536", ":1:65536", ""])
    def test_lines_that_are_of_no_use_are_passed_over(self, line: str) -> None:
        assert subordinate_range(f"{line}\nanna:9:65536", ("anna",)) == (9, 65536)


class TestHostDirectories:
    def show(self, path: str) -> hostdirs.Shown:
        return hostdirs.show(path, instance="/srv/i", private=("/home/u/.local/state/serdab",))

    def test_the_instance_is_known_by_its_place(self) -> None:
        assert self.show("/srv/i").instance == "."
        assert self.show("/srv").instance == "i"
        assert self.show("/srv/i/data").instance == ""
        assert self.show("/srv/ix").instance == ""

    def test_private_paths_are_hidden_from_above(self) -> None:
        assert self.show("/").hidden == ("home/u/.local/state/serdab",)
        assert self.show("/srv/i").hidden == ()

    @pytest.mark.parametrize(
        "path",
        [
            "/srv/i/build",
            "/srv/i/run/mount",
            "/srv/i/image",
            "/srv/i/Image/etc",
            "/srv/i/initfs",
            "/srv/i/.build-staging/x",
            "/srv/i/.rekey-staging-old",
            "/home/u/.local/state/serdab/x",
        ],
    )
    def test_what_is_private_is_refused(self, path: str) -> None:
        with pytest.raises(UsageError, match="never shown"):
            self.show(path)

    def test_names_of_another_instance_are_refused_too(self, tmp_path: Path) -> None:
        other = tmp_path / "other"
        (other / "image/etc").mkdir(parents=True)
        assert self.show(str(other / "image/etc")).hidden == ()
        (other / "Occlum.json").touch()
        with pytest.raises(UsageError, match="never shown"):
            self.show(str(other / "image/etc"))
        mine = str(other / "image/mine")  # an instance of its own, below another's image
        assert hostdirs.show(mine, instance=mine, private=()).instance == "."

    def test_a_source_tree_is_shown_read_only_where_the_configuration_names_it(
        self, tmp_path: Path
    ) -> None:
        for name in ("image/opt", "initfs", "build", "run"):
            (tmp_path / name).mkdir(parents=True)

        def find(source: str) -> hostdirs.Shown:
            with Ground.at(str(tmp_path)) as ground:
                shown, directory = hostdirs.find(source, ground=ground, private=())
                directory.close()
                return shown

        for source in ("image", "./initfs", str(tmp_path / "image")):
            assert find(source).read_only
        assert not find(".").read_only
        for source in ("image/opt", "build", "run"):
            with pytest.raises(UsageError, match="never shown"):
                find(source)
        (tmp_path / "initfs").rmdir()
        (tmp_path / "initfs").symlink_to("build")
        with pytest.raises(UsageError, match="something else stands"):
            find("initfs")


class TestHostFiles:
    @pytest.mark.parametrize(
        ("path", "raw"),
        [
            ("/etc/resolv.conf", b""),
            ("/etc/resolv.conf", b"# x\nnameserver 1.2.3.4\nsearch a.b\noptions ndots:1\n"),
            ("/etc/resolv.conf", b"nameserver fe80::1%eth0\n"),
            ("/etc/hosts", b"127.0.0.1 localhost # here\n::1 ip6-localhost\n\n"),
            ("/etc/hostname", b"# name\nbox.example\n"),
        ],
    )
    def test_good_files_pass(self, path: str, raw: bytes) -> None:
        hostfiles.check(path, raw)

    @pytest.mark.parametrize(
        ("path", "raw"),
        [
            ("/etc/resolv.conf", b"nameserver\n"),
            ("/etc/resolv.conf", b"nameserver example.com\n"),
            ("/etc/resolv.conf", b"<html>\n"),
            ("/etc/hosts", b"localhost 127.0.0.1\n"),
            ("/etc/hosts", b"127.0.0.1\n"),
            ("/etc/hosts", b"127.0.0.1 a;b\n"),
            ("/etc/hosts", b"\0"),
            ("/etc/hosts", b"\xff\xfe"),
            ("/etc/hostname", b""),
            ("/etc/hostname", b"a\nb\n"),
            ("/etc/hostname", b"-x\n"),
            ("/etc/hosts", b"# x\n" * (20 << 10)),
        ],
    )
    def test_bad_files_are_refused(self, path: str, raw: bytes) -> None:
        with pytest.raises(ValueError, match=r"\w"):
            hostfiles.check(path, raw)


class TestRangesOfRoot:
    def test_each_holder_has_a_range_of_its_own_until_it_lets_go(self, tmp_path: Path) -> None:
        def ids(subid: str) -> IdMap:
            return choose(
                uid=0,
                gid=0,
                user="",
                subuid=subid,
                subgid=subid,
                has_helpers=False,
                take=lambda count: idslots.take(count, str(tmp_path / "ids")),
            )

        line = f"root:100000:{2 * RANGE_IDS}"
        first, second, third = ids(line), ids(line), ids(line)
        assert [each.uids[0][1] for each in (first, second)] == [100000, 100000 + RANGE_IDS]
        assert (first.is_shared, second.is_shared, third.is_shared) == (False, False, True)
        assert third.uids == second.uids
        os.close(first.slot_fd)
        again = ids(line)
        assert (again.uids, again.is_shared) == (first.uids, False)
        os.close(again.slot_fd)
        os.close(second.slot_fd)

    def test_the_computed_ranges_are_many_and_end_before_ids_that_look_negative(self) -> None:
        ids = choose(
            uid=0,
            gid=0,
            user="",
            subuid="",
            subgid="",
            has_helpers=False,
            take=lambda count: (count - 1, -1),
        )
        ((_, first, count),) = ids.uids
        assert first + count == 1 << 31
