# SPDX-License-Identifier: Apache-2.0
"""The host directory file system called directly: hidden paths, descriptors, owners."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from serdab.errors import FsError, UsageError
from serdab.linux.mounts import MountFlag, UmountFlag, mount, umount
from serdab.vfs.api import ROOT_INO, SetAttr
from serdab.vfs.hiding import plan
from serdab.vfs.hostfs import HostFs, Owners

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


RESERVED = [
    b"Occlum.json",
    b"Occlum.json.new",
    b"image",
    b"initfs",
    b"image.owners",
    b"initfs.owners",
    b"image.owners.new-17",
    b".build-staging",
    b".build-staging-old",
    b".rekey-staging",
    b".rekey-staging-old",
    b"inst.tar.gz.new-4711",
]
#: The same to some host: ext4 and tmpfs with casefold, vfat, network shares.
VARIANTS = [
    b"occlum.JSON",
    b"OCCLUM.json.bak",
    b"IMAGE",
    b"image.",
    b"image. .",
    b"Initfs.Owners",
    b".BUILD-staging",
    "\uff49mage".encode(),
    "im\u200bage".encode(),
    "im\u00adage".encode(),
    "\u0131mage".encode(),
    "occlum.j\u017fon".encode(),
    ".re\u212aey-staging".encode(),
    b"Build",
    b"RUN",
]


def names(fs: HostFs, ino: int = ROOT_INO) -> list[bytes]:
    return sorted(entry.name for entry in fs.readdir(ino, 0) if entry.name not in (b".", b".."))


def makers(fs: HostFs, at: int, name: bytes) -> list[Callable[[], object]]:
    """Return every way to put something at a name; what is put there is made at the root."""
    fs.mknod(ROOT_INO, b"f-of-makers", 0o100644, 0, 0, 0)
    file = fs.lookup(ROOT_INO, b"f-of-makers").ino
    fs.mkdir(ROOT_INO, b"d-of-makers", 0o755, 0, 0)
    return [
        partial(fs.mknod, at, name, 0o100644, 0, 0, 0),
        partial(fs.mknod, at, name, stat.S_IFIFO | 0o644, 0, 0, 0),
        partial(fs.mkdir, at, name, 0o755, 0, 0),
        partial(fs.symlink, at, name, b"/etc", 0, 0),
        partial(fs.link, file, at, name),
        partial(fs.rename, ROOT_INO, b"f-of-makers", at, name, 0),
        partial(fs.rename, ROOT_INO, b"d-of-makers", at, name, 0),
        partial(fs.rename, ROOT_INO, b"d-of-makers", at, name, 1),
        partial(fs.rename, ROOT_INO, b"d-of-makers", at, name, 2),
        partial(fs.unlink, at, name),
        partial(fs.rmdir, at, name),
    ]


class TestHidden:
    @pytest.mark.parametrize("path", [b"", b"/abs", b"a//b", b"../up", b"a/.", b"a/"])
    def test_a_path_that_is_not_plain_is_refused(self, path: bytes) -> None:
        with pytest.raises(ValueError, match="plain"):
            plan([path])
        with pytest.raises(ValueError, match="plain"):
            plan([], path)

    def test_what_is_below_something_hidden_adds_nothing(self) -> None:
        made = plan([b"a/b", b"a", b"c/d"])
        assert made.below[b"a"].is_whole
        assert not made.below[b"a"].below
        assert not made.below[b"c"].is_whole
        assert made.below[b"c"].below[b"d"].is_whole

    def test_a_path_deep_inside_is_hidden_and_its_parents_stay(
        self, tmp_path: Path, make: MakeFs
    ) -> None:
        (tmp_path / "a/keys").mkdir(parents=True)
        (tmp_path / "a/keys/key").write_text("secret")
        (tmp_path / "a/open").write_text("open")
        fs = make(hidden=[b"a/keys"])
        a = fs.lookup(ROOT_INO, b"a").ino
        assert code_of(lambda: fs.lookup(a, b"keys")) == errno.ENOENT
        assert names(fs, a) == [b"open"]
        assert read(fs, fs.lookup(a, b"open").ino) == b"open"
        for name in (b"a", b"moved"):
            assert code_of(partial(fs.rename, ROOT_INO, b"a", ROOT_INO, name, 0)) == (errno.EBUSY)
        for act in makers(fs, a, b"keys"):
            assert code_of(act) == errno.EBUSY
        for changes in (SetAttr(mode=0o777), SetAttr(uid=7), SetAttr(gid=7)):
            assert code_of(partial(fs.setattr, a, changes)) == errno.EPERM
        fs.setattr(a, SetAttr(mode=(tmp_path / "a").stat().st_mode))

    def test_a_second_name_for_it_on_the_host_is_no_way_around(
        self, tmp_path: Path, make: MakeFs
    ) -> None:
        (tmp_path / "key").write_text("secret")
        (tmp_path / "d").mkdir()
        os.link(tmp_path / "key", tmp_path / "other")
        os.link(tmp_path / "key", tmp_path / "d/other")
        fs = make(hidden=[b"key"])
        for at in (ROOT_INO, fs.lookup(ROOT_INO, b"d").ino):
            assert code_of(partial(fs.lookup, at, b"other")) == errno.ENOENT
            assert b"other" not in names(fs, at)
            assert code_of(partial(fs.unlink, at, b"other")) == errno.EBUSY
            assert code_of(partial(fs.rename, at, b"other", ROOT_INO, b"k", 0)) == errno.EBUSY

    def test_a_key_moved_over_a_key_stays_unreadable(self, tmp_path: Path, make: MakeFs) -> None:
        (tmp_path / "key").write_text("secret")
        fs = make(hidden=[b"key"])
        assert code_of(lambda: fs.lookup(ROOT_INO, b"key")) == errno.ENOENT
        (tmp_path / "newkey").write_text("newer")
        kept = fs.lookup(ROOT_INO, b"newkey").ino
        os.rename(tmp_path / "newkey", tmp_path / "key")
        assert code_of(lambda: fs.lookup(ROOT_INO, b"key")) == errno.ENOENT
        assert code_of(lambda: read(fs, kept)) == errno.EPERM
        assert code_of(lambda: fs.link(kept, ROOT_INO, b"mine")) == errno.EPERM


class TestReservedNames:
    @pytest.mark.parametrize("name", [*RESERVED, *VARIANTS])
    def test_one_is_neither_found_nor_listed_nor_made(
        self, tmp_path: Path, make: MakeFs, name: bytes
    ) -> None:
        fs = make(instance=b".")
        for act in makers(fs, ROOT_INO, name):
            assert code_of(act) == errno.EBUSY
        assert code_of(lambda: fs.lookup(ROOT_INO, name)) == errno.ENOENT
        (tmp_path / os.fsdecode(name)).mkdir()
        assert code_of(lambda: fs.lookup(ROOT_INO, name)) == errno.ENOENT
        assert names(fs) == [b"d-of-makers", b"f-of-makers"]
        assert code_of(lambda: fs.rmdir(ROOT_INO, name)) == errno.EBUSY

    @pytest.mark.parametrize("name", [b"build", b"run"])
    def test_these_are_empty_directories(self, tmp_path: Path, make: MakeFs, name: bytes) -> None:
        (tmp_path / os.fsdecode(name)).mkdir()
        (tmp_path / os.fsdecode(name) / "secret").touch()
        fs = make(instance=b".")
        ino = fs.lookup(ROOT_INO, name).ino
        assert stat.S_IMODE(fs.getattr(ino).mode) == 0o555
        assert names(fs) == [name]
        assert names(fs, ino) == []
        assert code_of(lambda: fs.lookup(ino, b"secret")) == errno.ENOENT
        assert code_of(lambda: fs.mknod(ino, b"x", 0o100644, 0, 0, 0)) == errno.EROFS
        for act in makers(fs, ROOT_INO, name):
            assert code_of(act) == errno.EBUSY

    @pytest.mark.parametrize(
        "name", [b"images", b"builder", b"runner", b"build.log", b"my-image", b"x.owners", b"new-1"]
    )
    def test_others_are_files_like_any(self, tmp_path: Path, make: MakeFs, name: bytes) -> None:
        fs = make(instance=b".")
        fs.mkdir(ROOT_INO, name, 0o755, 0, 0)
        assert fs.lookup(ROOT_INO, name).ino == (tmp_path / os.fsdecode(name)).stat().st_ino
        assert names(fs) == [name]

    def test_elsewhere_than_in_an_instance_they_are_too(self, tmp_path: Path, make: MakeFs) -> None:
        fs = make(instance=b".")
        d = fs.mkdir(ROOT_INO, b"d", 0o755, 0, 0).ino
        for name in (b"image", b"build", b"run", b".build-staging"):
            fs.mkdir(d, name, 0o755, 0, 0)
        assert len(names(fs, d)) == 4
        # But nothing becomes an instance: the next lookup would hide what the program made.
        for act in makers(fs, d, b"Occlum.json"):
            assert code_of(act) == errno.EBUSY

    def test_above_one_that_is_shown_empty_is_what_it_is_in(
        self, tmp_path: Path, make: MakeFs
    ) -> None:
        (tmp_path / "one/build").mkdir(parents=True)
        fs = make(instance=b"one")
        one = fs.lookup(ROOT_INO, b"one").ino
        for _ in range(2):
            build = fs.lookup(one, b"build").ino
            assert {e.name: e.ino for e in fs.readdir(build, 0)} == {b".": build, b"..": one}

    @pytest.mark.parametrize("instance", [None, b"one"])
    def test_every_instance_below_hides_them(
        self, tmp_path: Path, make: MakeFs, instance: bytes | None
    ) -> None:
        for place in ("one", "deep/two"):
            (tmp_path / place / "image").mkdir(parents=True)
            (tmp_path / place / "build/lib").mkdir(parents=True)
            (tmp_path / place / "share").mkdir()
        (tmp_path / "one/Occlum.json").touch()
        (tmp_path / "deep/two/build/lib/libserdab.signed.json").touch()
        fs = make(instance=instance)
        one = fs.lookup(ROOT_INO, b"one").ino
        deep = fs.lookup(ROOT_INO, b"deep").ino
        two = fs.lookup(deep, b"two").ino
        for ino in (one, two):
            assert names(fs, ino) == [b"build", b"share"]
            assert code_of(partial(fs.lookup, ino, b"image")) == errno.ENOENT
            assert names(fs, fs.lookup(ino, b"build").ino) == []
            assert code_of(partial(fs.mkdir, ino, b"initfs", 0o755, 0, 0)) == errno.EBUSY
            assert code_of(partial(fs.setattr, ino, SetAttr(mode=0o777))) == errno.EPERM
            fs.mkdir(ino, b"mine", 0o755, 0, 0)
        fs.mkdir(ROOT_INO, b"mine", 0o755, 0, 0)
        for parent, name in ((ROOT_INO, b"one"), (deep, b"two")):
            # In its place another one could be put.
            move = partial(fs.rename, parent, name)
            assert code_of(partial(move, ROOT_INO, b"moved", 0)) == errno.EBUSY
            assert code_of(partial(move, ROOT_INO, b"mine", 2)) == errno.EBUSY
        first, second = (fs.lookup(ino, b"build").ino for ino in (one, two))
        assert first != second

    def test_the_running_instance_is_one_while_its_configuration_is_replaced(
        self, tmp_path: Path, make: MakeFs
    ) -> None:
        (tmp_path / "i/image").mkdir(parents=True)
        fs = make(instance=b"i")
        i = fs.lookup(ROOT_INO, b"i").ino
        assert code_of(lambda: fs.lookup(i, b"image")) == errno.ENOENT
        assert code_of(lambda: fs.rename(ROOT_INO, b"i", ROOT_INO, b"j", 0)) == errno.EBUSY

    def test_a_hard_link_to_the_configuration_is_no_way_around(
        self, tmp_path: Path, make: MakeFs
    ) -> None:
        for place in ("", "other"):
            (tmp_path / place / "share").mkdir(parents=True)
            (tmp_path / place / "Occlum.json").write_text("{}")
        os.link(tmp_path / "Occlum.json", tmp_path / "share/c")
        os.link(tmp_path / "other/Occlum.json", tmp_path / "other/c")
        os.link(tmp_path / "share/c", tmp_path / "d")
        fs = make(instance=b".")
        share = fs.lookup(ROOT_INO, b"share").ino
        other = fs.lookup(ROOT_INO, b"other").ino
        for at, name in ((share, b"c"), (other, b"c"), (ROOT_INO, b"d")):
            assert code_of(partial(fs.lookup, at, name)) == errno.ENOENT
            assert code_of(partial(fs.unlink, at, name)) == errno.EBUSY
        assert names(fs, share) == []

    def test_a_root_that_the_host_moves_there_takes_no_more_changes(self, tmp_path: Path) -> None:
        (tmp_path / "inst").mkdir()
        (tmp_path / "inst/Occlum.json").touch()
        (tmp_path / "next/bin").mkdir(parents=True)
        (tmp_path / "next/bin/tool").write_text("tool")
        fs = HostFs(tmp_path / "next", hidden=[])
        try:
            folder = fs.lookup(ROOT_INO, b"bin").ino
            tool = fs.lookup(folder, b"tool").ino
            fs.write(tool, 0, memoryview(b"mine"), kill_suidgid=False)
            os.rename(tmp_path / "next", tmp_path / "moved")
            fs.write(tool, 0, memoryview(b"same"), kill_suidgid=False)
            os.rename(tmp_path / "moved", tmp_path / "inst/image")
            for act in (
                partial(fs.write, tool, 0, memoryview(b"evil"), kill_suidgid=False),
                partial(fs.mknod, folder, b"new", stat.S_IFREG | 0o644, 0, 0, 0),
                partial(fs.unlink, folder, b"tool"),
            ):
                assert code_of(act) == errno.EPERM
        finally:
            fs.close()
        assert (tmp_path / "inst/image/bin/tool").read_text() == "same"

    def test_what_the_host_moves_there_takes_no_more_changes(
        self, tmp_path: Path, make: MakeFs
    ) -> None:
        (tmp_path / "new/usr/bin").mkdir(parents=True)
        (tmp_path / "new/usr/bin/tool").write_text("tool")
        (tmp_path / "edited").write_text("{}")
        fs = make(instance=b".")
        at = ROOT_INO
        for name in (b"new", b"usr", b"bin"):
            at = fs.lookup(at, name).ino
        tool, config = fs.lookup(at, b"tool").ino, fs.lookup(ROOT_INO, b"edited").ino
        fs.write(tool, 0, memoryview(b"mine"), kill_suidgid=False)
        fs.write(config, 0, memoryview(b"{1"), kill_suidgid=False)
        os.rename(tmp_path / "new", tmp_path / "image")
        # By a link, so that no name of what is open tells.
        os.link(tmp_path / "edited", tmp_path / "Occlum.json")
        os.unlink(tmp_path / "edited")
        for ino in (tool, config):
            acts: list[Callable[[], object]] = [
                partial(fs.write, ino, 0, memoryview(b"evil"), kill_suidgid=False),
                partial(fs.setattr, ino, SetAttr(size=0)),
                partial(fs.setattr, ino, SetAttr(mode=0o100777)),
                partial(fs.fallocate, ino, 0, 0, 100),
                partial(fs.setxattr, ino, b"user.x", b"1", 0),
                partial(fs.link, ino, ROOT_INO, b"mine"),
            ]
            for act in acts:
                assert code_of(act) == errno.EPERM
        for act in makers(fs, at, b"x"):
            assert code_of(act) in (errno.EPERM, errno.ENOENT)
        assert code_of(lambda: fs.unlink(at, b"tool")) == errno.EPERM
        assert (tmp_path / "image/usr/bin/tool").read_text() == "mine"
        assert (tmp_path / "Occlum.json").read_text() == "{1"
        assert os.listdir(tmp_path / "image/usr/bin") == ["tool"]

    @pytest.mark.root
    def test_a_bind_mount_of_the_host_is_no_way_around(self, tmp_path: Path, make: MakeFs) -> None:
        if os.geteuid() != 0:
            pytest.skip("mounts")
        (tmp_path / "image").mkdir()
        (tmp_path / "Occlum.json").touch()
        (tmp_path / "share/dir").mkdir(parents=True)
        (tmp_path / "share/file").touch()
        (tmp_path / "share/self").mkdir()
        pairs = [("image", "share/dir"), ("Occlum.json", "share/file"), (".", "share/self")]
        with ExitStack() as stack:
            for source, target in pairs:
                place = os.fspath(tmp_path / target)
                mount(os.fspath(tmp_path / source), place, "", MountFlag.BIND, "")
                stack.callback(umount, place, UmountFlag.DETACH)
            fs = make(instance=b".")
            stack.callback(fs.close)
            share = fs.lookup(ROOT_INO, b"share").ino
            for name in (b"dir", b"file"):
                assert code_of(partial(fs.lookup, share, name)) == errno.ENOENT
            again = fs.lookup(share, b"self").ino
            for name in (b"image", b"Occlum.json"):
                assert code_of(partial(fs.lookup, again, name)) == errno.ENOENT

    @pytest.mark.root
    def test_a_host_directory_that_folds_case_has_no_other_names_for_them(
        self, tmp_path: Path, make: MakeFs
    ) -> None:
        place = tmp_path / "folding"
        place.mkdir()
        try:
            mount("tmpfs", os.fspath(place), "tmpfs", MountFlag(0), "mode=777,casefold")
        except OSError as exc:
            pytest.skip(f"no tmpfs with casefold here: {exc}")
        try:
            folder = place / "i"
            folder.mkdir()
            set_casefold(folder)
            (folder / "image").mkdir()
            (folder / "Key").touch()
            fs = HostFs(folder, hidden=[b"key"], instance=b".")
            try:
                for name in (*VARIANTS[:13], b"KEY", "ke\u200by".encode()):
                    assert code_of(partial(fs.lookup, ROOT_INO, name)) == errno.ENOENT
                    assert code_of(partial(fs.mkdir, ROOT_INO, name, 0o755, 0, 0)) == errno.EBUSY
                assert names(fs) == []
            finally:
                fs.close()
            assert sorted(os.listdir(folder)) == ["Key", "image"]
        finally:
            umount(os.fspath(place), UmountFlag.DETACH)

    def test_a_source_tree_that_is_shown_cannot_be_changed(
        self, tmp_path: Path, make: MakeFs
    ) -> None:
        (tmp_path / "f").write_text("f")
        fs = make(read_only=True)
        ino = fs.lookup(ROOT_INO, b"f").ino
        assert read(fs, ino) == b"f"
        acts: list[Callable[[], object]] = [
            partial(fs.write, ino, 0, memoryview(b"x"), kill_suidgid=False),
            partial(fs.setattr, ino, SetAttr(size=0)),
            partial(fs.setattr, ino, SetAttr(mode=0o100600)),
            partial(fs.setxattr, ino, b"user.x", b"1", 0),
            partial(fs.removexattr, ino, b"user.x"),
            partial(fs.fallocate, ino, 0, 0, 1),
            partial(fs.mknod, ROOT_INO, b"x", 0o100644, 0, 0, 0),
            partial(fs.tmpfile, ROOT_INO, 0o100644, 0, 0),
            partial(fs.unlink, ROOT_INO, b"f"),
            partial(fs.rename, ROOT_INO, b"f", ROOT_INO, b"g", 0),
        ]
        for act in acts:
            assert code_of(act) == errno.EROFS


def set_casefold(folder: Path) -> None:
    """Let a directory fold case: FS_CASEFOLD_FL of ioctl_iflags(2)."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        flags = bytearray(8)
        fcntl.ioctl(fd, 0x80086601, flags)
        wanted = int.from_bytes(flags, "little") | 0x40000000
        fcntl.ioctl(fd, 0x40086602, wanted.to_bytes(8, "little"))
    finally:
        os.close(fd)


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
