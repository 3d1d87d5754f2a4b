# SPDX-License-Identifier: Apache-2.0
"""A host directory through the real kernel: shown as it is, but for what must not be."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serdab.linux.files import renameat2
from serdab.linux.mounts import MountFlag, UmountFlag, mount, umount
from tests.fuse.conftest import Served
from tests.fuse.test_posix import refused
from tests.posix.operations import steps
from tests.posix.subject import Subject

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "source"
    path.mkdir()
    # On a tmpfs of its own: user.* attributes and O_TMPFILE wherever the tests are run.
    mount("tmpfs", os.fspath(path), "tmpfs", MountFlag(0), "mode=777")
    try:
        yield path
    finally:
        umount(os.fspath(path), UmountFlag.DETACH | UmountFlag.NOFOLLOW)


@pytest.fixture
def host(source: Path, serve: Callable[..., Served]) -> Iterator[Path]:
    """The mount over ``source``, an instance, in which "private/key" is hidden."""
    (source / "build").mkdir()
    (source / "build/secret").write_text("secret")
    served = serve("host", "--source", str(source))
    yield served.path
    if served.process.poll() is None:
        assert served.unmount() == ""


class TestShown:
    def test_changes_on_the_host_are_seen_at_once(self, source: Path, host: Path) -> None:
        assert not (host / "f").exists()
        (source / "f").write_text("one")
        assert (host / "f").read_text() == "one"
        (source / "f").write_text("other")
        assert (host / "f").read_text() == "other"
        os.rename(source / "f", source / "g")
        assert sorted(os.listdir(host)) == ["build", "g"]
        assert not (host / "f").exists()
        (source / "g").unlink()
        (source / "g").mkdir()
        assert (host / "g").is_dir()

    def test_changes_inside_are_seen_on_the_host(self, source: Path, host: Path) -> None:
        (host / "d").mkdir()
        (host / "d/f").write_text("content")
        os.symlink("/etc/passwd", host / "d/link")
        os.link(host / "d/f", host / "d/hard")
        assert (source / "d/f").read_text() == "content"
        assert os.readlink(source / "d/link") == "/etc/passwd"
        assert (source / "d/f").stat().st_nlink == 2
        assert (host / "d/hard").stat().st_ino == (host / "d/f").stat().st_ino

    @pytest.mark.parametrize("seed", range(20, 24))
    def test_random_operations_answer_as_the_host_does(
        self, host: Path, tmpfs: Path, seed: int
    ) -> None:
        (tmpfs / "build").mkdir(mode=0o555)
        ours, theirs = Subject(host), Subject(tmpfs)
        try:
            for step in steps(random.Random(seed), 1500, set_id=False, preallocation=True):
                assert ours.apply(step) == theirs.apply(step), repr(step)[:300]
            assert ours.tree() == theirs.tree()
        finally:
            ours.close()
            theirs.close()

    def test_a_large_directory_is_read_once_each_while_names_vanish(
        self, source: Path, host: Path
    ) -> None:
        (source / "many").mkdir()
        names = {f"n{number}" for number in range(5000)}
        for name in names:
            (source / "many" / name).touch()
        seen = []
        with os.scandir(host / "many") as listing:
            for entry in listing:
                seen.append(entry.name)
                if len(seen) % 2:
                    os.unlink(entry)
        assert len(seen) == len(set(seen))
        assert set(seen) == names

    def test_more_files_than_descriptors(self, source: Path, host: Path) -> None:
        for number in range(700):
            (source / f"f{number}").write_text(str(number))
        kept = [open(host / f"f{number}") for number in range(600)]  # noqa: SIM115
        for number in range(700):
            assert (host / f"f{number}").read_text() == str(number)
        for number, file in enumerate(kept):
            assert file.read() == str(number)
            file.close()


class TestRefused:
    @pytest.mark.parametrize("bits", [stat.S_ISUID, stat.S_ISGID])
    def test_no_set_id_file_comes_into_being(self, source: Path, host: Path, bits: int) -> None:
        (host / "f").write_text("x")
        with refused(errno.EPERM):
            os.chmod(host / "f", 0o755 | bits)
        old = os.umask(0)
        try:
            os.close(os.open(host / "g", os.O_CREAT | os.O_WRONLY, 0o755 | bits))
        finally:
            os.umask(old)
        fd = os.open(host, os.O_TMPFILE | os.O_RDWR, 0o755 | bits)
        assert os.fstat(fd).st_mode & 0o7000 == 0
        os.close(fd)
        for name in ("f", "g"):
            assert (source / name).stat().st_mode & 0o7000 == 0

    def test_no_device_comes_into_being(self, host: Path) -> None:
        for kind in (stat.S_IFCHR, stat.S_IFBLK):
            with refused(errno.EPERM):
                os.mknod(host / "dev", 0o666 | kind, os.makedev(1, 3))
        with refused(errno.EINVAL):
            (host / "w").touch()
            renameat2(-100, os.fsencode(host / "w"), -100, os.fsencode(host / "x"), 4)

    def test_a_set_id_file_of_the_host_loses_its_bits_when_it_is_written(
        self, source: Path, host: Path
    ) -> None:
        (source / "su").write_text("old")
        os.chmod(source / "su", 0o6755)
        with open(host / "su", "r+") as file:
            file.write("new")
        assert stat.S_IMODE((source / "su").stat().st_mode) == 0o755
        os.chmod(source / "su", 0o6755)
        os.truncate(host / "su", 0)
        assert stat.S_IMODE((source / "su").stat().st_mode) == 0o755

    def test_no_file_capability_can_be_set(self, source: Path, host: Path) -> None:
        (host / "f").touch()
        with refused(errno.EOPNOTSUPP):
            os.setxattr(host / "f", "security.capability", b"\0\0\0\x02" + b"\xff" * 16)
        os.setxattr(source / "f", "trusted.x", b"1")
        os.setxattr(host / "f", "user.x", b"2")
        assert os.listxattr(host / "f") == ["user.x"]
        assert os.getxattr(source / "f", "user.x") == b"2"

    def test_a_fifo_of_the_host_makes_nobody_wait(self, source: Path, host: Path) -> None:
        os.mkfifo(source / "fifo")
        with refused(errno.ENXIO):
            os.open(host / "fifo", os.O_WRONLY | os.O_NONBLOCK)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(source / "s"))
            assert stat.S_ISSOCK((host / "s").stat().st_mode)


class TestShownEmpty:
    def test_it_is_an_empty_directory(self, source: Path, host: Path) -> None:
        assert "build" in os.listdir(host)
        assert os.listdir(host / "build") == []
        assert stat.S_IMODE((host / "build").stat().st_mode) == 0o555
        assert not (host / "build/secret").exists()

    def test_it_cannot_be_written_moved_or_removed(self, source: Path, host: Path) -> None:
        with refused(errno.EROFS):
            (host / "build/new").touch()
        with refused(errno.EROFS):
            (host / "build/new").mkdir()
        with refused(errno.EROFS):
            os.chmod(host / "build", 0o777)
        with refused(errno.EBUSY):
            os.rename(host / "build", host / "shown")
        with refused(errno.EBUSY):
            os.rmdir(host / "build")
        (host / "d").mkdir()
        with refused(errno.EBUSY):
            os.rename(host / "d", host / "build")
        with refused(errno.EBUSY):
            renameat2(-100, os.fsencode(host / "d"), -100, os.fsencode(host / "build"), 2)
        assert (source / "build/secret").read_text() == "secret"

    def test_a_link_of_the_host_into_it_leads_to_the_empty_one(
        self, source: Path, host: Path
    ) -> None:
        os.symlink("build", source / "way")
        assert os.listdir(host / "way") == []

    def test_a_program_cannot_go_through_the_parent_or_magic_links(
        self, source: Path, host: Path
    ) -> None:
        (source / "d").mkdir()
        done = subprocess.run(
            ["cat", "../build/secret"], cwd=host / "d", capture_output=True, check=False
        )
        assert b"No such file" in done.stderr


class TestHidden:
    def test_it_is_neither_found_nor_listed(self, source: Path, host: Path) -> None:
        (source / "Occlum.json").write_text("{}")
        (source / "image").mkdir()
        (source / "image/f").write_text("source")
        (source / "private").mkdir()
        (source / "private/key").write_text("secret")
        (source / "private/note").write_text("note")
        assert sorted(os.listdir(host)) == ["build", "private"]
        assert os.listdir(host / "private") == ["note"]
        for path in ("Occlum.json", "image", "image/f", "private/key"):
            with refused(errno.ENOENT):
                os.stat(host / path)
        assert (host / "private/note").read_text() == "note"

    @pytest.mark.parametrize("name", ["Occlum.json", "image", ".build-staging", "image.owners"])
    @pytest.mark.parametrize("is_there", [False, True])
    def test_nothing_is_made_at_its_name(
        self, source: Path, host: Path, name: str, is_there: bool
    ) -> None:
        if is_there:
            (source / name).mkdir()
        (host / "f").write_text("f")
        (host / "d").mkdir()
        with refused(errno.EBUSY):
            os.open(host / name, os.O_CREAT | os.O_WRONLY)
        with refused(errno.EBUSY):
            os.mkdir(host / name)
        with refused(errno.EBUSY):
            os.symlink("f", host / name)
        with refused(errno.EBUSY):
            os.mkfifo(host / name)
        with refused(errno.EBUSY):
            os.link(host / "f", host / name)
        for made in ("f", "d"):
            with refused(errno.EBUSY):
                os.rename(host / made, host / name)
        fd = os.open(host, os.O_TMPFILE | os.O_RDWR)
        try:
            with refused(errno.EBUSY):
                os.link(f"/proc/self/fd/{fd}", host / name, src_dir_fd=fd, follow_symlinks=True)
        finally:
            os.close(fd)
        assert os.path.lexists(source / name) == is_there

    def test_a_mapping_is_not_written_back_over_it(self, source: Path, host: Path) -> None:
        (source / "mine").write_bytes(b"A" * 4096)
        fd = os.open(host / "mine", os.O_RDWR)
        try:
            with mmap.mmap(fd, 4096) as mapped:
                mapped[0:1] = b"x"
                mapped.flush()
                assert (source / "mine").read_bytes()[:1] == b"x"
                os.rename(source / "mine", source / "Occlum.json")
                mapped[0:1] = b"y"
                with pytest.raises(OSError, match=r"not permitted|Input/output"):
                    mapped.flush()
        finally:
            os.close(fd)
        assert (source / "Occlum.json").read_bytes()[:1] == b"x"

    def test_a_lock_inside_is_none_on_the_host(self, source: Path, host: Path) -> None:
        ours = [os.open(host / name, os.O_RDONLY) for name in (".", "build")]
        theirs = [os.open(source / name, os.O_RDONLY) for name in (".", "build")]
        try:
            for fd in ours:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for fd in theirs:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            for fd in (*ours, *theirs):
                os.close(fd)


class TestHostileHost:
    def test_a_file_swapped_for_a_link_is_told_as_a_link(self, source: Path, host: Path) -> None:
        outside = source.parent / "outside"
        outside.write_text("outside")
        (source / "f").write_text("inside")
        fd = os.open(host / "f", os.O_RDONLY)
        try:
            os.unlink(source / "f")
            os.symlink(outside, source / "f")
            assert os.pread(fd, 10, 0) == b"inside"
            assert os.readlink(host / "f") == str(outside)
            # A symbolic link leads where the caller's root has it, as on any file system.
            assert (host / "f").read_text() == "outside"
        finally:
            os.close(fd)

    def test_a_directory_swapped_for_a_link_is_not_followed_by_the_server(
        self, source: Path, host: Path
    ) -> None:
        outside = source.parent / "outside"
        outside.mkdir()
        (source / "d").mkdir()
        fd = os.open(host / "d", os.O_RDONLY)
        try:
            os.rmdir(source / "d")
            os.symlink(outside, source / "d")
            with pytest.raises(OSError, match=r"Stale|No such"):
                os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
            assert os.listdir(outside) == []
        finally:
            os.close(fd)
