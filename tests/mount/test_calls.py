# SPDX-License-Identifier: Apache-2.0
"""mount(2) and umount2(2) of programs: what a mount is good for. Errors: test_errors.py."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace

import pytest

from tests.mount.balance import server_of
from tests.mount.conftest import KEY, OTHER_KEY, Mounter
from tests.recovery.processes import Process, descendants, find_family, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.userns]


def test_the_operator_reads_why(mounter: Mounter) -> None:
    told = mounter.told("mount", "none", "/mnt", "hostfs", "0", "dir=/etc")
    assert "expected a directory below" in told
    assert "/etc" in told
    told = mounter.told("mount", "none", "/mnt", "sefs", "0", f"dir=s,ky={KEY}")
    assert "expected dir, key, mac" in told
    assert KEY not in told


class TestSealed:
    def test_what_is_written_is_there_after_umount_and_in_the_next_boot(
        self, mounter: Mounter
    ) -> None:
        folder = mounter.folder("s")
        options = f"dir=s,key={KEY}"
        out = mounter.calls(
            *("mount", "none", "/mnt", "sefs", "0", options, "write", "/mnt/f", "known text"),
            *("umount", "/mnt", "0", "read", "/mnt/f"),
            *("mount", "none", "/mnt", "sefs", "0", options, "read", "/mnt/f"),
        )
        assert out == ["ok", "ok", "ok", "ENOENT", "ok", "known text"]
        again = mounter.calls("mount", "x", "link", "sefs", "0", options, "read", "/link/f")
        assert again == ["ok", "known text"]
        content = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
        assert b"known text" not in content

    def test_another_key_and_a_volume_in_use_are_errors(self, mounter: Mounter) -> None:
        mounter.folder("s")
        good, bad = f"dir=s,key={KEY}", f"dir=./s/,key={OTHER_KEY}"
        out = mounter.calls(
            *("mount", "none", "/mnt", "sefs", "0", good, "write", "/mnt/f", "x"),
            *("mount", "none", "/mnt2", "sefs", "0", good, "umount", "/mnt", "0"),
            *("mount", "none", "/mnt", "sefs", "0", bad),
            *("mount", "none", "/mnt", "sefs", "0", "dir=s"),
            *("mount", "none", "/mnt", "sefs", "0", good, "read", "/mnt/f"),
        )
        assert out == ["ok", "ok", "EIO", "ok", "EIO", "EIO", "ok", "x"]

    def test_the_automatic_key_opens_it_again(self, mounter: Mounter) -> None:
        mounter.folder("s")
        mounter.calls("mount", "none", "/mnt", "sefs", "0", "dir=s", "write", "/mnt/f", "auto")
        out = mounter.calls("mount", "none", "/mnt", "sefs", "0", "dir=s", "read", "/mnt/f")
        assert out == ["ok", "auto"]


class TestSync:
    @pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
    def test_sync_reaches_mappings_on_every_mount(self, mounter: Mounter) -> None:
        for name in ("s", "l", "u"):
            mounter.folder(name)
        mounts = (
            *("mount", "x", "/mnt", "sefs", "0", "dir=s"),
            *("mkdir", "/mnt/with space", "mount", "x", "/mnt/with space", "unionfs", "0"),
            "lowerdir=l,upperdir=u",
        )
        maps = (("/mnt/f", "one"), ("/mnt/with space/f", "two"), ("/root/f", "three"))
        acts = [word for path, text in maps for word in ("map", path, text)]
        process = mounter.instance.command.popen(
            *("-C", str(mounter.path), "run", "/bin/mounter"),
            *(*mounts, *acts, "sync", "pause"),
            start_new_session=True,
        )
        with process:
            assert process.stdout is not None
            said = [process.stdout.readline().decode().strip() for _ in range(7)]
            everybody = find_family(process.pid, mounter.path).everybody()
            everybody += descendants(process.pid)
            for member in everybody:
                member.kill()
        assert said == ["mount ok", "mkdir ok", "mount ok", "map ok", "map ok", "map ok", "sync ok"]
        wait_until(lambda: not any(m.is_alive() for m in everybody), "the end of all of it")
        reads = [word for path, _ in maps for word in ("read", path)]
        found = mounter.calls(*mounts[:6], *mounts[8:], *reads)
        assert found == ["ok", "ok", "one", "two", "three"]

    @pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
    def test_what_is_no_open_file_is_refused(self, mounter: Mounter) -> None:
        out = mounter.calls(
            *("syncfd", "0", "syncfd", "77", "syncfd", "-1", "syncfs", "/nowhere"),
            *("open", "/file", "syncfd", "9", "opath", "/file", "syncfd", "9"),
        )
        assert out == ["ok", "EBADF", "EBADF", "EBADF", "ok", "ok", "ok", "EBADF"]

    @pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
    def test_it_succeeds_while_what_was_unmounted_closes(self, mounter: Mounter) -> None:
        mounter.folder("s")
        here = "mount x /mnt sefs 0 dir=s write /mnt/f text umount /mnt 0 " * 40
        script = f"mounter {'syncfs / ' * 400} > /tmp/said & mounter {here}; wait; cat /tmp/said"
        done = mounter.instance.run("/bin/sh", "-c", script)
        said = Counter(done.stdout.decode().splitlines())
        assert said == {"mount ok": 40, "write ok": 40, "umount ok": 40, "syncfs ok": 400}

    def test_whoever_kills_what_syncs_gets_an_error_and_does_not_wait(
        self, mounter: Mounter
    ) -> None:
        folder = mounter.folder("s")
        process = mounter.instance.command.popen(
            *("-C", str(mounter.path), "run", "/bin/mounter"),
            *("mount", "x", "/mnt", "sefs", "0", "dir=s", "map", "/mnt/f", "text"),
            *("wait", "syncfs", "/"),
            stdin=subprocess.PIPE,
        )
        with process, ExitStack() as stack:
            assert process.stdout is not None
            assert process.stdin is not None
            assert [process.stdout.readline() for _ in range(2)] == [b"mount ok\n", b"map ok\n"]
            family = find_family(process.pid, mounter.path)
            server = server_of(process.pid, folder)
            stack.callback(server.kill, signal.SIGCONT)
            server.kill(signal.SIGSTOP)
            process.stdin.write(b"\n")
            process.stdin.flush()

            syncing: list[Process] = []

            def is_syncing() -> bool:
                below = [p for p in descendants(process.pid) if p not in family.everybody()]
                syncing[:] = [p for p in below if p.name() == "serdab"]
                return bool(syncing)

            wait_until(is_syncing, "pid 1's child")
            syncing[0].kill()
            assert process.stdout.readline() == b"syncfs EIO\n"
            server.kill(signal.SIGCONT)
            assert process.wait(60) == 0


class TestGone:
    """A volume that is remembered is never begun anew unless somebody says so."""

    @pytest.mark.parametrize("verb", ["new", "init"])
    def test_an_instance_made_again_begins_its_volumes_anew_and_the_moved_one_lives(
        self, mounter: Mounter, verb: str
    ) -> None:
        mounter.folder("s")
        words = ("mount", "none", "/mnt", "sefs", "0", "dir=s")
        written = ("write", "/mnt/f", "old", "write", "/root/f", "old")
        assert mounter.calls(*words, *written) == ["ok", "ok", "ok"]
        moved = mounter.path.with_name("moved")
        mounter.path.rename(moved)
        made = mounter.instance
        if verb == "new":
            made.command.ok("new", made.path)
        else:
            made.path.mkdir()
            if mounter.user:
                mounter.user.own(made.path)
            made.command.ok("-C", made.path, "init")
        shutil.rmtree(made.path / "image")
        shutil.copytree(moved / "image", made.path / "image", symlinks=True)
        shutil.copy(moved / "Occlum.json", made.path / "Occlum.json")
        if mounter.user:
            mounter.user.own(made.path)
        made.command.ok("-C", made.path, "build")
        mounter.folder("s")
        reads = ("read", "/mnt/f", "read", "/root/f")
        assert mounter.calls(*words, *reads) == ["ok", "ENOENT", "ENOENT"]
        # Forgotten is not thrown away: what was moved is another place's volume.
        shutil.rmtree(made.path)
        moved.rename(made.path.with_name("elsewhere"))
        other = Mounter(replace(made, path=made.path.with_name("elsewhere")), mounter.user)
        assert other.calls(*words, *reads) == ["ok", "old", "old"]

    @pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
    def test_an_emptied_volume_is_refused_until_it_is_reset(self, mounter: Mounter) -> None:
        folder = mounter.folder("s")
        words = ("mount", "none", "/mnt", "sefs", "0", "dir=s")
        assert mounter.calls(*words, "write", "/mnt/f", "old") == ["ok", "ok"]
        shutil.rmtree(folder)
        folder.mkdir()
        assert "serdab reset --volume" in mounter.told(*words)
        assert mounter.calls(*words) == ["EIO"]
        assert not list(folder.iterdir())
        command = mounter.instance.command
        command.ok("-C", mounter.path, "reset", "--yes", "--volume", "s")
        assert mounter.calls(*words, "read", "/mnt/f") == ["ok", "ENOENT"]
        # And one that is still there is thrown away, with nothing else.
        mounter.calls(*words, "write", "/mnt/f", "again", "write", "/root/kept", "kept")
        command.ok("-C", mounter.path, "reset", "--yes", "--volume", "s")
        found = mounter.calls(*words, "read", "/mnt/f", "read", "/root/kept")
        assert found == ["ok", "ENOENT", "kept"]
        full = mounter.folder("full")
        (full / "mine").write_text("mine")
        done = command.run("-C", mounter.path, "reset", "--yes", "--volume", "full")
        assert done.returncode == 2
        assert (full / "mine").read_text() == "mine"

    @pytest.mark.parametrize("new_mounter", ["root"], indirect=True)
    def test_an_older_volume_is_accepted_when_asked(self, mounter: Mounter) -> None:
        folder = mounter.folder("s")
        words = ("mount", "none", "/mnt", "sefs", "0", "dir=s")
        mounter.calls(*words, "write", "/mnt/f", "old")
        shutil.copytree(folder, mounter.path / "kept")
        mounter.calls(*words, "write", "/mnt/f", "new")
        shutil.rmtree(folder)
        (mounter.path / "kept").rename(folder)
        assert mounter.calls(*words) == ["EIO"]
        done = mounter.instance.command.run(
            *("-C", mounter.path, "run", "--accept-rollback", "/bin/mounter"),
            *(*words, "read", "/mnt/f"),
        )
        assert done.stdout.decode().splitlines() == ["mount ok", "read old"]


class TestUnion:
    def test_an_upper_changes_and_a_lower_stays(self, mounter: Mounter) -> None:
        for name in ("l", "u1", "u2"):
            mounter.folder(name)
        lower = f"dir=l,key={KEY}"
        union = "lowerdir=l,upperdir={},key=" + KEY
        out = mounter.calls(
            *("mount", "none", "/mnt", "sefs", "0", lower, "write", "/mnt/f", "below"),
            *("umount", "/mnt", "0"),
            *("mount", "none", "/mnt", "unionfs", "0", union.format("u1"), "read", "/mnt/f"),
            *("write", "/mnt/f", "above"),
            *("mount", "none", "/mnt2", "unionfs", "0", union.format("u2"), "read", "/mnt2/f"),
        )
        assert out == ["ok", "ok", "ok", "ok", "below", "ok", "ok", "below"]
        out = mounter.calls(
            *("mount", "none", "/mnt", "unionfs", "0", union.format("u1"), "read", "/mnt/f")
        )
        assert out == ["ok", "above"]

    def test_empty_directories_become_layers(self, mounter: Mounter) -> None:
        mounter.folder("l")
        mounter.folder("u")
        options = "lowerdir=l,upperdir=u"
        out = mounter.calls(
            *("mount", "none", "/mnt", "unionfs", "0", options, "write", "/mnt/f", "x"),
            *("umount", "/mnt", "2"),
            *("mount", "none", "/mnt", "unionfs", "0", options, "read", "/mnt/f"),
        )
        assert out == ["ok", "ok", "ok", "ok", "x"]

    def test_an_upper_of_another_lower_is_refused(self, mounter: Mounter) -> None:
        for name in ("l1", "l2", "u"):
            mounter.folder(name)
        out = mounter.calls(
            *("mount", "none", "/mnt", "unionfs", "0", "lowerdir=l1,upperdir=u"),
            *("write", "/mnt/f", "x", "umount", "/mnt", "0"),
            *("mount", "none", "/mnt", "unionfs", "0", "lowerdir=l2,upperdir=u"),
        )
        assert out == ["ok", "ok", "ok", "EINVAL"]


class TestPlaces:
    def test_mounts_of_mounts_and_relative_paths(self, mounter: Mounter) -> None:
        out = mounter.calls(
            *("cd", "/mnt", "mount", "none", "inner", "ramfs", "0xC0ED0000", "NULL"),
            *("mkdir", "inner/deep", "cd", "inner"),
            *("mount", "none", "../inner/deep", "ramfs", "0", "NULL", "write", "deep/f", "deep"),
            *("read", "/mnt/inner/deep/f", "umount", "deep", "0", "cd", "/"),
            *("umount", "/link/inner", "0", "umount", "/mnt/inner", "0"),
        )
        assert out == ["ok", "ok", "ok", "ok", "ok", "ok", "deep", "ok", "ok", "ok", "EINVAL"]

    def test_the_callers_own_links_lead_where_it_is(self, mounter: Mounter) -> None:
        out = mounter.calls(
            *("cd", "/mnt", "mount", "none", "/proc/self/cwd/inner", "ramfs", "0", "NULL"),
            *("write", "inner/f", "x", "umount", "//proc/self/root/mnt/inner", "0"),
            *("open", "/mnt2", "mount", "none", "/proc/thread-self/fd/9", "ramfs", "0", "NULL"),
            *("write", "/mnt2/f", "x", "umount", "/mnt2", "0"),
            *("mount", "none", "/proc/self/fd/99", "ramfs", "0", "NULL"),
            *("mount", "none", "/proc/self/root", "ramfs", "0", "NULL"),
            *("mount", "none", "/proc/1/cwd", "ramfs", "0", "NULL"),
        )
        assert out[:8] == ["ok"] * 8
        assert out[8:] == ["ENOENT", "EPERM", "EACCES"]

    def test_flags_take_effect(self, mounter: Mounter) -> None:
        mounter.folder("d")
        out = mounter.calls(
            *("mount", "none", "/mnt", "ramfs", "1", "NULL", "write", "/mnt/f", "x"),
            *("mount", "none", "/mnt2", "hostfs", "1", "dir=d", "write", "/mnt2/f", "x"),
        )
        assert out == ["ok", "EROFS", "ok", "EROFS"]

    def test_a_mount_point_is_busy(self, mounter: Mounter) -> None:
        out = mounter.calls("mount", "none", "/mnt2", "ramfs", "0", "NULL", "rmdir", "/mnt2")
        assert out == ["ok", "EBUSY"]

    def test_of_mounts_over_each_other_the_one_on_top_is_taken_off(self, mounter: Mounter) -> None:
        (mounter.folder("d") / "f").write_text("on top")
        mounter.folder("s")
        out = mounter.calls(
            *("mount", "none", "/mnt", "sefs", "0", "dir=s", "write", "/mnt/f", "below"),
            *("open", "/mnt", "mount", "none", "/mnt", "hostfs", "0", "dir=d", "read", "/mnt/f"),
            # As by a path, though the descriptor is of what lies below.
            *("umount", "/proc/self/fd/9", "0", "read", "/mnt/f"),
            *("umount", "/proc/self/fd/9", "0", "read", "/mnt/f", "umount", "/mnt", "0"),
        )
        assert out == ["ok", "ok", "ok", "ok", "on top", "ok", "below", "ok", "ENOENT", "EINVAL"]

    def test_a_chrooted_caller_mounts_in_its_own_root(self, mounter: Mounter) -> None:
        out = mounter.calls(
            *("chroot", "/mnt", "cd", "/", "mount", "none", "/inner", "ramfs", "0", "NULL"),
            *("write", "/inner/f", "x", "mount", "none", "/..", "ramfs", "0", "NULL"),
            *("mount", "none", "/../bin", "ramfs", "0", "NULL"),
        )
        assert out == ["ok", "ok", "ok", "ok", "EPERM", "ENOENT"]

    def test_a_host_directory_is_shown(self, mounter: Mounter) -> None:
        (mounter.folder("d,e") / "f").write_text("from the host")
        out = mounter.calls("mount", "none", "/mnt", "hostfs", "0", r"dir=d\,e", "read", "/mnt/f")
        assert out == ["ok", "from the host"]


def test_busybox_mounts_and_unmounts(mounter: Mounter) -> None:
    mounter.folder("s")
    script = (
        f"mount -t sefs -o dir=s,key={KEY} none /mnt && echo hello > /mnt/f && grep /mnt "
        "/proc/mounts && umount /mnt && ! cat /mnt/f && mount -t sefs "
        f"-o dir=s,key={KEY} none /mnt && cat /mnt/f"
    )
    done = mounter.instance.run("/bin/sh", "-c", script)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().splitlines()[-1] == "hello"
