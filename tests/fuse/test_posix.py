# SPDX-License-Identifier: Apache-2.0
"""What programs do with files, through the real kernel, on the file system in memory."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serdab.linux.files import renameat2
from serdab.linux.libc import check, libc

pytestmark = [pytest.mark.fuse, pytest.mark.root]

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


def rename(old: Path, new: Path, flags: int) -> None:
    renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)


def refused(code: int) -> pytest.RaisesExc[OSError]:
    def has_code(exc: OSError) -> bool:
        return exc.errno == code

    return pytest.RaisesExc(OSError, check=has_code)


class TestContent:
    def test_what_was_written_is_read_after_the_cache_was_dropped(self, mem: Path) -> None:
        data = os.urandom(5_000_001)
        fd = os.open(mem / "f", os.O_RDWR | os.O_CREAT)
        try:
            assert os.write(fd, data) == len(data)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(fd, len(data) + 1, 0) == data
            for offset, count in ((0, 1), (4095, 2), (131071, 2), (1048575, 3), (4_999_999, 100)):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.pread(fd, count, offset) == data[offset : offset + count]
        finally:
            os.close(fd)

    def test_a_hole_reads_as_zeros_and_can_be_found(self, mem: Path) -> None:
        path = mem / "sparse"
        with open(path, "wb") as file:
            file.seek(1 << 40)
            file.write(b"end")
        assert path.stat().st_size == (1 << 40) + 3
        assert path.stat().st_blocks < 1000
        fd = os.open(path, os.O_RDONLY)
        try:
            assert os.pread(fd, 10, 12345) == bytes(10)
            assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
            data_at = os.lseek(fd, 0, os.SEEK_DATA)
            assert 0 < data_at <= 1 << 40
            assert os.pread(fd, 10, 1 << 40) == b"end"
            with refused(errno.ENXIO):
                os.lseek(fd, 1 << 41, os.SEEK_DATA)
        finally:
            os.close(fd)

    def test_appending_descriptors_do_not_overwrite_each_other(self, mem: Path) -> None:
        one = os.open(mem / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        two = os.open(mem / "log", os.O_WRONLY | os.O_APPEND)
        try:
            for number in range(50):
                os.write(one, b"a%03d\n" % number)
                os.write(two, b"b%03d\n" % number)
        finally:
            os.close(one)
            os.close(two)
        lines = (mem / "log").read_bytes().split()
        assert lines == [b"%c%03d" % (who, n) for n in range(50) for who in b"ab"]

    def test_opening_with_truncate_empties_a_file(self, mem: Path) -> None:
        path = mem / "f"
        path.write_bytes(b"old content")
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
        assert path.stat().st_size == 0
        assert path.read_bytes() == b""

    def test_stores_through_a_shared_mapping_are_in_the_file(self, mem: Path) -> None:
        path = mem / "mapped"
        path.write_bytes(bytes(100_000))
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as area:
            area[70_000:70_005] = b"store"
            area.flush()
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with open(path, "rb") as again:
            os.posix_fadvise(again.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(again.fileno(), 7, 69_999) == b"\0store\0"

    def test_a_mapping_sees_what_is_written_later(self, mem: Path) -> None:
        path = mem / "mapped"
        path.write_bytes(bytes(8192))
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as area:
            os.pwrite(file.fileno(), b"new", 5000)
            assert area[5000:5003] == b"new"

    def test_direct_io_goes_past_the_cache(self, mem: Path) -> None:
        path = mem / "direct"
        path.write_bytes(b"x" * 8192)
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        try:
            area = mmap.mmap(-1, 4096)
            area[:] = b"y" * 4096
            assert os.pwrite(fd, area, 4096) == 4096
            area[:] = bytes(4096)
            assert os.preadv(fd, [area], 4096) == 4096
            assert area[:] == b"y" * 4096
        finally:
            os.close(fd)
        assert path.read_bytes() == b"x" * 4096 + b"y" * 4096

    def test_space_can_be_allocated_punched_and_zeroed(self, mem: Path) -> None:
        path = mem / "f"
        path.write_bytes(b"x" * 300_000)

        def fallocate(mode: int, offset: int, length: int) -> None:
            with open(path, "r+b") as file:
                check(
                    libc.fallocate(
                        file.fileno(), mode, ctypes.c_long(offset), ctypes.c_long(length)
                    ),
                    "fallocate",
                )

        fallocate(0, 0, 400_000)
        assert path.stat().st_size == 400_000
        fallocate(1, 400_000, 50_000)
        assert path.stat().st_size == 400_000
        fallocate(3, 1000, 200_000)
        fallocate(16, 250_000, 10)
        expected = bytearray(b"x" * 300_000 + bytes(100_000))
        expected[1000:201_000] = bytes(200_000)
        expected[250_000:250_010] = bytes(10)
        assert path.read_bytes() == expected
        with refused(errno.EOPNOTSUPP):
            fallocate(8, 0, 131072)  # collapse

    def test_a_range_is_copied_between_files(self, mem: Path) -> None:
        (mem / "a").write_bytes(os.urandom(3_000_000))
        with open(mem / "a", "rb") as source, open(mem / "b", "wb") as target:
            assert os.copy_file_range(source.fileno(), target.fileno(), 2_000_000, 5, 7) > 0
        size = (mem / "b").stat().st_size
        assert (mem / "b").read_bytes()[7:] == (mem / "a").read_bytes()[5 : 5 + size - 7]

    def test_a_full_file_system_says_so_at_the_write(self, mem: Path) -> None:
        block = bytes(1 << 20)
        fd = os.open(mem / "full", os.O_WRONLY | os.O_CREAT)
        try:
            os.posix_fallocate(fd, 0, 1 << 20)
            with refused(errno.ENOSPC):
                for _ in range(1100):
                    os.write(fd, block)
        finally:
            os.close(fd)
        os.unlink(mem / "full")
        (mem / "again").write_bytes(block)


class TestNames:
    def test_a_directory_of_ten_thousand_is_read_once_each_while_names_vanish(
        self, mem: Path
    ) -> None:
        folder = mem / "many"
        folder.mkdir()
        names = {f"n{number:05d}" for number in range(10_000)}
        for name in names:
            os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY))
        seen: list[str] = []
        removed: set[str] = set()
        with os.scandir(folder) as listing:
            for entry in listing:
                seen.append(entry.name)
                if len(seen) % 3 == 0:
                    victim = f"n{(len(seen) * 7919) % 10_000:05d}"
                    if victim not in removed:
                        os.unlink(folder / victim)
                        removed.add(victim)
        assert len(seen) == len(set(seen))
        assert names - set(seen) <= removed
        assert set(os.listdir(folder)) == names - removed

    def test_everything_in_a_directory_can_be_removed_while_it_is_read(self, mem: Path) -> None:
        folder = mem / "many"
        folder.mkdir()
        for number in range(3000):
            (folder / str(number)).touch()
        with os.scandir(folder) as listing:
            for entry in listing:
                os.unlink(entry)
        folder.rmdir()

    def test_names_up_to_the_limit_and_of_any_bytes(self, mem: Path) -> None:
        base = os.fsencode(mem)
        names = [b"\xff\xfe", b"new\nline", b" ", b"-rf", b"\xc3\xa4" * 127, b"x" * 255]
        for name in names:
            os.close(os.open(base + b"/" + name, os.O_CREAT | os.O_WRONLY))
        assert sorted(os.listdir(base)) == sorted(names)
        with refused(errno.ENAMETOOLONG):
            os.open(base + b"/" + b"x" * 256, os.O_CREAT | os.O_WRONLY)

    def test_an_absent_name_is_remembered_until_it_is_made(self, mem: Path) -> None:
        for _ in range(3):
            assert not (mem / "later").exists()
        (mem / "later").mkdir()
        assert (mem / "later").is_dir()
        (mem / "later").rmdir()
        assert not (mem / "later").exists()
        os.symlink("x", mem / "later")
        assert os.readlink(mem / "later") == "x"

    def test_exclusive_creation_refuses_what_exists(self, mem: Path) -> None:
        (mem / "f").touch()
        with refused(errno.EEXIST):
            os.open(mem / "f", os.O_CREAT | os.O_EXCL)

    def test_rename_flags(self, mem: Path) -> None:
        (mem / "a").write_text("a")
        (mem / "b").write_text("b")
        with refused(errno.EEXIST):
            rename(mem / "a", mem / "b", NOREPLACE)
        rename(mem / "a", mem / "b", EXCHANGE)
        assert ((mem / "a").read_text(), (mem / "b").read_text()) == ("b", "a")
        with refused(errno.ENOENT):
            rename(mem / "a", mem / "none", EXCHANGE)
        with refused(errno.EINVAL):
            rename(mem / "a", mem / "c", WHITEOUT)
        rename(mem / "a", mem / "c", NOREPLACE)
        os.replace(mem / "c", mem / "b")
        assert os.listdir(mem) == ["b"]
        assert (mem / "b").read_text() == "b"

    def test_directories_are_exchanged_across_parents(self, mem: Path) -> None:
        (mem / "p/x/inner").mkdir(parents=True)
        (mem / "q").mkdir()
        (mem / "q/file").write_text("f")
        rename(mem / "p/x", mem / "q/file", EXCHANGE)
        assert (mem / "p/x").read_text() == "f"
        assert (mem / "q/file/inner/..").samefile(mem / "q/file")
        assert ((mem / "p").stat().st_nlink, (mem / "q").stat().st_nlink) == (2, 3)
        with refused(errno.EINVAL):
            os.rename(mem / "q", mem / "q/file/inner/q")

    def test_hard_links_share_one_inode(self, mem: Path) -> None:
        (mem / "a").write_text("one")
        os.link(mem / "a", mem / "b")
        with open(mem / "b", "a") as file:
            file.write(" two")
        assert (mem / "a").read_text() == "one two"
        assert (mem / "a").stat().st_nlink == 2
        os.unlink(mem / "a")
        assert (mem / "b").stat().st_nlink == 1
        with refused(errno.EPERM):
            os.link(mem, mem / "dir", follow_symlinks=False)

    def test_an_unlinked_file_lives_while_it_is_open(self, mem: Path) -> None:
        with open(mem / "gone", "w+b") as file:
            file.write(b"x" * 100_000)
            file.flush()
            os.unlink(mem / "gone")
            assert os.fstat(file.fileno()).st_nlink == 0
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            assert file.read() == b"x" * 100_000
            file.write(b"more")
            os.ftruncate(file.fileno(), 7)
            assert os.fstat(file.fileno()).st_size == 7

    def test_a_file_without_a_name_can_be_given_one(self, mem: Path) -> None:
        fd = os.open(mem, os.O_TMPFILE | os.O_RDWR, 0o640)
        try:
            os.write(fd, b"secret")
            assert os.listdir(mem) == []
            # os.link never passes AT_SYMLINK_FOLLOW where link(2) would do.
            check(
                libc.linkat(
                    -100, b"/proc/self/fd/%d" % fd, -100, os.fsencode(mem / "named"), 0x400
                ),
                "linkat",
            )
        finally:
            os.close(fd)
        assert (mem / "named").read_bytes() == b"secret"

    def test_a_removed_directory_takes_nothing_in(self, mem: Path) -> None:
        (mem / "d").mkdir()
        fd = os.open(mem / "d", os.O_RDONLY)
        try:
            os.rmdir(mem / "d")
            with refused(errno.ENOENT):
                os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        finally:
            os.close(fd)


class TestAttributes:
    def test_times_to_the_nanosecond_and_before_1970(self, mem: Path) -> None:
        path = mem / "f"
        path.touch()
        for stamp in (0, 1, 10**9 - 1, 1_700_000_000_123_456_789, -1_000_000_001, 2**62):
            os.utime(path, ns=(stamp, stamp + 1))
            status = path.stat()
            assert (status.st_atime_ns, status.st_mtime_ns) == (stamp, stamp + 1)

    def test_a_time_of_birth_is_told(self, mem: Path) -> None:
        before = time.time() - 1
        (mem / "f").touch()
        told = subprocess.run(
            ["stat", "-c", "%W", mem / "f"], capture_output=True, check=True, text=True
        )
        assert before <= int(told.stdout) + 1

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
    def test_the_umask_counts_for_each_kind_of_creation(self, mem: Path, umask: int) -> None:
        old = os.umask(umask)
        try:
            os.close(os.open(mem / "file", os.O_CREAT | os.O_WRONLY, 0o666))
            os.mkdir(mem / "dir", 0o777)
            os.mkfifo(mem / "fifo", 0o644)
        finally:
            os.umask(old)
        modes = [stat.S_IMODE((mem / name).stat().st_mode) for name in ("file", "dir", "fifo")]
        assert modes == [0o666 & ~umask, 0o777 & ~umask, 0o644 & ~umask]

    def test_a_file_created_unreadable_is_open_all_the_same(self, mem: Path) -> None:
        script = (
            "import os\n"
            "fd=os.open('f', os.O_CREAT|os.O_EXCL|os.O_RDWR, 0o000)\n"
            "os.write(fd, b'x'); assert os.pread(fd, 1, 0) == b'x'\n"
            "try: os.open('f', os.O_RDONLY)\n"
            "except PermissionError: print('closed')\n"
        )
        done = subprocess.run(
            [
                "setpriv", "--reuid=1", "--regid=1", "--clear-groups", "--inh-caps=-all", "--",
                "/usr/bin/python3", "-Ic", script,
            ],
            cwd=mem, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout == "closed\n", done.stderr

    def test_device_nodes_keep_their_numbers(self, mem: Path) -> None:
        os.mknod(mem / "dev", 0o600 | stat.S_IFCHR, os.makedev(259, 70_000))
        status = (mem / "dev").stat()
        assert stat.S_ISCHR(status.st_mode)
        assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == (259, 70_000)

    def test_a_set_group_id_directory_passes_its_group_on(self, mem: Path) -> None:
        (mem / "d").mkdir()
        os.chown(mem / "d", -1, 1234)
        os.chmod(mem / "d", 0o2777)
        (mem / "d/file").touch()
        (mem / "d/sub").mkdir()
        assert (mem / "d/file").stat().st_gid == 1234
        assert (mem / "d/sub").stat().st_gid == 1234
        assert (mem / "d/sub").stat().st_mode & stat.S_ISGID

    def test_a_change_of_owner_or_content_takes_set_id_bits_away(self, mem: Path) -> None:
        path = mem / "f"
        path.write_bytes(b"x")
        os.chmod(path, 0o6755)
        os.chown(path, 5, 5)
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
        os.chmod(path, 0o6777)
        subprocess.run(
            [
                "setpriv", "--reuid=9", "--regid=9", "--clear-groups", "--inh-caps=-all",
                "--bounding-set=-all", "--", "dd", "if=/dev/zero", "of=f", "bs=1", "count=1",
                "conv=notrunc", "status=none",
            ],
            cwd=mem, check=True,
        )  # fmt: skip
        assert stat.S_IMODE(path.stat().st_mode) == 0o777

    def test_extended_attributes_with_probing_and_too_little_room(self, mem: Path) -> None:
        path = mem / "f"
        path.touch()
        os.setxattr(path, "user.one", b"1" * 5000)
        os.setxattr(path, "user.two", b"")
        assert os.getxattr(path, "user.one") == b"1" * 5000
        assert sorted(os.listxattr(path)) == ["user.one", "user.two"]
        buf = ctypes.create_string_buffer(10)
        assert libc.getxattr(os.fsencode(path), b"user.one", None, 0) == 5000
        assert libc.getxattr(os.fsencode(path), b"user.one", buf, 10) == -1
        assert ctypes.get_errno() == errno.ERANGE
        with refused(errno.EEXIST):
            os.setxattr(path, "user.one", b"", os.XATTR_CREATE)
        with refused(errno.ENODATA):
            os.setxattr(path, "user.three", b"", os.XATTR_REPLACE)
        os.removexattr(path, "user.one")
        with refused(errno.ENODATA):
            os.getxattr(path, "user.one")
        os.symlink("x", mem / "link")
        with refused(errno.EPERM):
            os.setxattr(mem / "link", "user.x", b"", follow_symlinks=False)

    def test_who_may_not_read_trusted_attributes_is_not_told_of_them(
        self, mem: Path, tmpfs: Path
    ) -> None:
        script = "import os; print(sorted(os.listxattr('f')))"
        other = ["setpriv", "--reuid=9", "--regid=9", "--clear-groups", "--inh-caps=-all", "--"]
        for where in (mem, tmpfs):
            (where / "f").touch()
            os.setxattr(where / "f", "user.one", b"")
            os.setxattr(where / "f", "trusted.two", b"")
            for by, expected in ((other, ["user.one"]), ([], ["trusted.two", "user.one"])):
                told = subprocess.run(
                    [*by, "/usr/bin/python3", "-Ic", script],
                    cwd=where, capture_output=True, check=True, text=True,
                )  # fmt: skip
                assert told.stdout == f"{expected}\n"

    def test_access_control_lists_and_labels_are_not_supported_rather_than_absent(
        self, mem: Path
    ) -> None:
        (mem / "f").touch()
        for name in ("system.posix_acl_access", "system.posix_acl_default", "security.selinux"):
            with refused(errno.EOPNOTSUPP):
                os.getxattr(mem / "f", name)
        with refused(errno.ENODATA):
            os.getxattr(mem / "f", "security.capability")

    def test_an_attribute_of_a_kind_that_no_file_system_knows_is_not_supported(
        self, mem: Path, tmp_path: Path
    ) -> None:
        for path in (mem / "f", tmp_path / "on-a-disk"):
            path.touch()
            for name in ("system.other", "other.name", "name", "user"):
                with refused(errno.EOPNOTSUPP):
                    os.setxattr(path, name, b"value")
                with refused(errno.EOPNOTSUPP):
                    os.getxattr(path, name)
                with refused(errno.EOPNOTSUPP):
                    os.removexattr(path, name)
            with refused(errno.EINVAL):
                os.setxattr(path, "user.", b"value")
            assert os.listxattr(path) == []
            os.setxattr(path, "trusted.name", b"value")
            assert os.getxattr(path, "trusted.name") == b"value"

    def test_statvfs_counts_down_as_space_is_used(self, mem: Path) -> None:
        before = os.statvfs(mem)
        (mem / "f").write_bytes(bytes(1 << 20))
        after = os.statvfs(mem)
        assert before.f_namemax == 255
        assert (before.f_bfree - after.f_bfree) * after.f_frsize == 1 << 20


class TestTheRest:
    def test_locks_are_kept_by_the_kernel(self, mem: Path) -> None:
        path = mem / "lock"
        path.touch()
        tries = (
            "import fcntl,sys\n"
            "f=open(sys.argv[1],'r+')\n"
            "for lock in (fcntl.flock, fcntl.lockf):\n"
            "    try: lock(f, fcntl.LOCK_EX|fcntl.LOCK_NB); print('free')\n"
            "    except OSError: print('held')\n"
        )
        with open(path, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            fcntl.lockf(file, fcntl.LOCK_EX)
            done = subprocess.run(
                [sys.executable, "-c", tries, path], capture_output=True, text=True, check=True
            )
        assert done.stdout == "held\nheld\n"

    def test_an_unknown_ioctl_is_no_tty(self, mem: Path) -> None:
        with open(mem / "f", "w") as file, refused(errno.ENOTTY):
            fcntl.ioctl(file, 0x1234)

    def test_fifos_and_sockets_connect_programs(self, mem: Path) -> None:
        os.mkfifo(mem / "fifo")
        with subprocess.Popen(["cat", mem / "fifo"], stdout=subprocess.PIPE) as reader:
            (mem / "fifo").write_text("through the pipe")
            out, _ = reader.communicate(timeout=30)
        assert out == b"through the pipe"

    def test_programs_and_libraries_run_from_it(self, mem: Path) -> None:
        (mem / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
        os.chmod(mem / "busybox", 0o755)
        done = subprocess.run([mem / "busybox", "echo", "ran"], capture_output=True, check=True)
        assert done.stdout == b"ran\n"
        with refused(errno.ETXTBSY), subprocess.Popen([mem / "busybox", "sleep", "60"]) as running:
            try:
                os.open(mem / "busybox", os.O_WRONLY)
            finally:
                running.kill()

    def test_a_shell_unpacks_and_removes_a_tree(self, mem: Path, tmp_path: Path) -> None:
        source = tmp_path / "tree"
        for number in range(30):
            folder = source / f"d{number}" / "sub"
            folder.mkdir(parents=True)
            (folder / "file").write_bytes(os.urandom(number * 1000))
            os.symlink("file", folder / "link")
        subprocess.run(
            f"tar -C {source} -cf - . | tar -C {mem} -xf - && diff -r {source} {mem}"
            f" && cp -a {mem}/d3 {mem}/copy && diff -r {source}/d3 {mem}/copy && rm -r {mem}/*",
            shell=True,
            check=True,
        )
        assert os.listdir(mem) == []
