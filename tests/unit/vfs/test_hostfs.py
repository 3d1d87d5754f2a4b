# SPDX-License-Identifier: Apache-2.0
"""The host directory file system called directly: hidden paths, descriptors, owners."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from serdab.errors import FsError, UsageError
from serdab.vfs.api import ROOT_INO, SetAttr
from serdab.vfs.hostfs import HostFs, Owners
from serdab.vfs.hostnodes import plan_hidden

MakeFs = Callable[..., HostFs]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeFs]:
    made: list[HostFs] = []

    def build(**options: object) -> HostFs:
        made.append(HostFs(tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    before = set(os.listdir("/proc/self/fd"))
    yield build
    for fs in made:
        fs.close()
        fs.close()
    # What tests before this one forgot may be closed meanwhile.
    assert set(os.listdir("/proc/self/fd")) <= before, "a descriptor was left open"


def code_of(function: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the caller compares the errno
        function()
    return caught.value.errno


def read(fs: HostFs, ino: int) -> bytes:
    buf = bytearray(100)
    return bytes(buf[: fs.read_into(ino, 0, memoryview(buf))])


class TestKernelInterfaces:
    """As host root, a write there would change the host's kernel: core_pattern runs programs."""

    @pytest.mark.parametrize("root", ["/proc", "/proc/sys/kernel", "/sys"])
    def test_one_is_never_the_root(self, root: str) -> None:
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(UsageError, match="never shown"):
            HostFs(root)
        assert set(os.listdir("/proc/self/fd")) <= before, "a descriptor was left open"

    @pytest.mark.parametrize("name", [b"proc", b"sys"])
    def test_one_that_is_mounted_below_is_not_entered(self, name: bytes) -> None:
        fs = HostFs("/")
        try:
            assert code_of(lambda: fs.lookup(ROOT_INO, name)) == errno.EACCES
            assert name in [entry.name for entry in fs.readdir(ROOT_INO, 0)]
            # Another device is no reason by itself: /dev is a file system of files.
            dev = fs.lookup(ROOT_INO, b"dev").ino
            assert code_of(lambda: fs.lookup(dev, b"pts")) == errno.EACCES
        finally:
            fs.close()


class TestHidden:
    @pytest.mark.parametrize("path", [b"", b"/abs", b"a//b", b"../up", b"a/.", b"a/"])
    def test_a_path_that_is_not_plain_is_refused(self, path: bytes) -> None:
        with pytest.raises(ValueError, match="plain"):
            plan_hidden([path])

    def test_what_is_below_something_hidden_adds_nothing(self) -> None:
        plan = plan_hidden([b"a/b", b"a", b"c/d"])
        assert plan.below[b"a"].is_whole
        assert not plan.below[b"a"].below
        assert not plan.below[b"c"].is_whole
        assert plan.below[b"c"].below[b"d"].is_whole

    def test_a_path_deep_inside_is_hidden_and_its_parents_stay(
        self, tmp_path: Path, make: MakeFs
    ) -> None:
        (tmp_path / "a/keys").mkdir(parents=True)
        (tmp_path / "a/keys/key").write_text("secret")
        (tmp_path / "a/open").write_text("open")
        fs = make(hidden=[b"a/keys"])
        a = fs.lookup(ROOT_INO, b"a").ino
        keys = fs.lookup(a, b"keys").ino
        assert code_of(lambda: fs.lookup(keys, b"key")) == errno.ENOENT
        assert [entry.name for entry in fs.readdir(keys, 0)] == [b".", b".."]
        assert read(fs, fs.lookup(a, b"open").ino) == b"open"
        for name in (b"a", b"moved"):
            assert code_of(partial(fs.rename, ROOT_INO, b"a", ROOT_INO, name, 0)) == (errno.EBUSY)
        assert code_of(lambda: fs.rename(a, b"keys", ROOT_INO, b"k", 0)) == errno.EBUSY
        assert code_of(lambda: fs.mknod(keys, b"x", 0o100644, 0, 0, 0)) == errno.EROFS

    def test_a_second_name_for_it_on_the_host_is_no_way_around(
        self, tmp_path: Path, make: MakeFs
    ) -> None:
        # A hard link stands in for a case-folding directory: another name, the same file.
        (tmp_path / "key").write_text("secret")
        os.link(tmp_path / "key", tmp_path / "KEY")
        fs = make(hidden=[b"key"])
        assert code_of(lambda: fs.lookup(ROOT_INO, b"KEY")) == errno.ENOENT
        assert b"KEY" not in [entry.name for entry in fs.readdir(ROOT_INO, 0)]
        assert code_of(lambda: fs.unlink(ROOT_INO, b"KEY")) == errno.EBUSY
        assert code_of(lambda: fs.rename(ROOT_INO, b"KEY", ROOT_INO, b"k", 0)) == errno.EBUSY

    def test_a_hidden_path_that_does_not_exist_cannot_be_made(self, make: MakeFs) -> None:
        fs = make(hidden=[b"run"])
        assert stat.S_ISDIR(fs.lookup(ROOT_INO, b"run").mode)
        assert code_of(lambda: fs.mkdir(ROOT_INO, b"run", 0o755, 0, 0)) == errno.EBUSY
        assert code_of(lambda: fs.symlink(ROOT_INO, b"run", b"x", 0, 0)) == errno.EBUSY


class TestConfinement:
    @pytest.mark.parametrize("name", [b"", b".", b"..", b"../x", b"d/f", b"/etc"])
    def test_a_name_is_one_step_and_never_up(
        self, tmp_path: Path, make: MakeFs, name: bytes
    ) -> None:
        (tmp_path / "d").mkdir()
        (tmp_path / "d/f").touch()
        fs = make()
        assert code_of(lambda: fs.lookup(ROOT_INO, name)) == errno.EINVAL
        if name:
            assert code_of(lambda: fs.unlink(ROOT_INO, name)) == errno.EINVAL
            assert code_of(lambda: fs.mkdir(ROOT_INO, name, 0o755, 0, 0)) == errno.EINVAL

    def test_a_link_is_never_followed(self, tmp_path: Path, make: MakeFs) -> None:
        os.symlink("/etc/passwd", tmp_path / "link")
        fs = make()
        inode = fs.lookup(ROOT_INO, b"link")
        assert fs.readlink(inode.ino) == b"/etc/passwd"
        assert code_of(lambda: read(fs, inode.ino)) == errno.EINVAL
        assert code_of(lambda: fs.lookup(inode.ino, b"x")) == errno.ENOTDIR


class TestDescriptors:
    def test_closed_ones_are_opened_again_where_the_file_is_now(
        self, tmp_path: Path, make: MakeFs
    ) -> None:
        for number in range(20):
            (tmp_path / f"d{number}").mkdir()
            (tmp_path / f"d{number}/f").write_text(str(number))
        fs = make(max_path_fds=4)
        files = {}
        for number in range(20):
            folder = fs.lookup(ROOT_INO, b"d%d" % number).ino
            files[number] = fs.lookup(folder, b"f").ino
        fs.rename(ROOT_INO, b"d3", ROOT_INO, b"moved", 0)
        fs.rename(fs.lookup(ROOT_INO, b"d4").ino, b"f", ROOT_INO, b"f4", 0)
        for number, ino in files.items():
            assert read(fs, ino) == str(number).encode()
            assert fs.getattr(ino).size == len(str(number))

    def test_an_unlinked_file_lives_until_it_is_forgotten(
        self, tmp_path: Path, make: MakeFs
    ) -> None:
        for number in range(20):
            (tmp_path / f"f{number}").write_text(str(number))
        fs = make(max_path_fds=4)
        files = [fs.lookup(ROOT_INO, b"f%d" % number).ino for number in range(20)]
        for number in range(20):
            fs.unlink(ROOT_INO, b"f%d" % number)
        for number, ino in enumerate(files):
            assert read(fs, ino) == str(number).encode()
            fs.forget(ino, 1)
            assert code_of(partial(fs.getattr, ino)) == errno.ESTALE

    def test_another_file_in_its_place_is_stale_and_not_taken_for_it(
        self, tmp_path: Path, make: MakeFs
    ) -> None:
        (tmp_path / "f").write_text("mine")
        fs = make(max_path_fds=2)
        ino = fs.lookup(ROOT_INO, b"f").ino
        for number in range(4):
            (tmp_path / str(number)).touch()
            fs.lookup(ROOT_INO, str(number).encode())  # the descriptor of f is closed
        (tmp_path / "other").write_text("other")
        os.rename(tmp_path / "f", tmp_path / "elsewhere")
        os.rename(tmp_path / "other", tmp_path / "f")
        with pytest.raises(FsError) as caught:
            fs.getattr(ino)
        assert caught.value.errno == errno.ESTALE

    def test_the_numbers_of_inodes_are_the_hosts(self, tmp_path: Path, make: MakeFs) -> None:
        (tmp_path / "f").touch()
        fs = make()
        ino = fs.lookup(ROOT_INO, b"f").ino
        assert ino == (tmp_path / "f").stat().st_ino
        listed = {entry.name: entry.ino for entry in fs.readdir(ROOT_INO, 0)}
        assert listed == {b".": ROOT_INO, b"..": ROOT_INO, b"f": ino}


@pytest.mark.root
class TestOwners:
    def test_owners_are_mapped_both_ways(self, tmp_path: Path, make: MakeFs) -> None:
        if os.geteuid() != 0:
            pytest.skip("gives files away")
        owners = Owners(
            show=lambda uid, gid: (uid - 1000, gid - 2000),
            keep=lambda uid, gid: (uid + 1000, gid + 2000),
        )
        fs = make(owners=owners)
        inode = fs.mknod(ROOT_INO, b"f", 0o100644, 0, 5, 6)
        assert (inode.uid, inode.gid) == (5, 6)
        status = (tmp_path / "f").stat()
        assert (status.st_uid, status.st_gid) == (1005, 2006)
        inode = fs.setattr(inode.ino, SetAttr(gid=7))
        assert (inode.uid, inode.gid) == (5, 7)
        fs.symlink(ROOT_INO, b"l", b"f", 8, 9)
        status = (tmp_path / "l").lstat()
        assert (status.st_uid, status.st_gid) == (1008, 2009)
