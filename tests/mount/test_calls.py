# SPDX-License-Identifier: Apache-2.0
"""mount(2) and umount2(2) of programs: the table of errors, and what a mount is good for."""

from __future__ import annotations

import pytest

from tests.mount.conftest import KEY, OTHER_KEY, Mounter

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

MOUNTS = [
    # source, then target
    (("NULL", "NULL", "NULL", "512", "NULL"), "EINVAL"),
    (("BAD", "NULL", "sefs", "0", "dir=s"), "EFAULT"),
    (("KERNEL", "/mnt", "sefs", "0", "dir=s"), "EFAULT"),
    (("none", "NULL", "sefs", "0", "dir=s"), "EINVAL"),
    (("none", "BAD", "sefs", "0", "dir=s"), "EFAULT"),
    (("none", "", "nosuch", "512", "dir=s"), "ENOENT"),
    (("none", "long:4096", "nosuch", "512", "dir=s"), "ENAMETOOLONG"),
    # flags before type, type before options
    (("none", "/mnt", "ramfs", "512", "NULL"), "EINVAL"),
    (("none", "/mnt", "NULL", "0", "dir=s"), "EINVAL"),
    (("none", "/mnt", "BAD", "0", "dir=s"), "EFAULT"),
    (("none", "/mnt", "tmpfs", "0", ""), "EINVAL"),
    (("none", "/mnt", "long:100000", "0", ""), "EINVAL"),
    (("none", "/mnt", "procfs", "0", "NULL"), "EINVAL"),
    (("none", "/mnt", "devfs", "0", "NULL"), "EINVAL"),
    (("none", "/mnt", "ext2", "0", "NULL"), "EINVAL"),
    (("none", "/mnt", "sefs", "0", "NULL"), "EINVAL"),
    (("none", "/mnt", "unionfs", "0", "NULL"), "EINVAL"),
    (("none", "/mnt", "hostfs", "0", "NULL"), "EINVAL"),
    (("none", "/mnt", "sefs", "0", "BAD"), "EFAULT"),
    (("none", "/mnt", "sefs", "0", "long:1000000"), "EINVAL"),
    # options, before the target /
    (("none", "/", "sefs", "0", ""), "EINVAL"),
    (("none", "/mnt", "sefs", "0", "dir=s,dir=s"), "EINVAL"),
    (("none", "/mnt", "sefs", "0", "dir=s,what=1"), "EINVAL"),
    (("none", "/mnt", "sefs", "0", "dir=s,key=1-2"), "EINVAL"),
    (("none", "/mnt", "sefs", "0", "dir=s,key=" + "-".join(["zz"] * 16)), "EINVAL"),
    (("none", "/mnt", "sefs", "0", "dir=s,mac=1"), "EINVAL"),
    (("none", "/mnt", "sefs", "0", "dir=s,key=@nosuch"), "EINVAL"),
    (("none", "/mnt", "unionfs", "0", "lowerdir=s"), "EINVAL"),
    (("none", "/mnt", "unionfs", "0", "upperdir=s"), "EINVAL"),
    (("none", "/mnt", "hostfs", "0", f"dir=s,key={KEY}"), "EINVAL"),
    # the root, before flags that are no new mount
    (("none", "/", "ramfs", "4096", "NULL"), "EPERM"),
    (("none", "//", "ramfs", "0", "NULL"), "EPERM"),
    (("none", "/.", "ramfs", "0", "NULL"), "EPERM"),
    (("none", "/mnt/..", "ramfs", "0", "NULL"), "EPERM"),
    *(
        (("none", "/nosuch", "ramfs", str(flag), "NULL"), "EINVAL")
        for flag in (32, 4096, 8192, 1 << 17, 1 << 18, 1 << 19, 1 << 20)
    ),
    # the target, before the file system
    (("none", "/nosuch", "sefs", "0", "dir=nosuch"), "ENOENT"),
    (("none", "/file", "sefs", "0", "dir=nosuch"), "ENOTDIR"),
    (("none", "/loop", "sefs", "0", "dir=nosuch"), "ELOOP"),
    (("none", "/link", "ramfs", "256", "NULL"), "ENOTDIR"),
    # the host directory
    (("none", "/mnt", "sefs", "0", "dir=nosuch"), "EIO"),
    (("none", "/mnt", "sefs", "0", "dir=Occlum.json"), "EIO"),
    (("none", "/mnt", "sefs", "0", "dir=full"), "EIO"),
    (("none", "/mnt", "unionfs", "0", "lowerdir=nosuch,upperdir=s"), "EIO"),
    (("none", "/mnt", "hostfs", "0", "dir=nosuch"), "EINVAL"),
    (("none", "/mnt", "hostfs", "0", "dir=Occlum.json"), "EINVAL"),
    (("none", "/mnt", "hostfs", "0", "dir=/etc"), "EPERM"),
    (("none", "/mnt", "hostfs", "0", "dir=.."), "EPERM"),
    (("none", "/mnt", "hostfs", "0", "dir=out"), "EPERM"),
    (("none", "/mnt", "hostfs", "0", "dir=run"), "EPERM"),
    (("none", "/mnt", "sefs", "0", "dir=run/mount/__ROOT"), "EPERM"),
]
UMOUNTS = [
    (("NULL", "16"), "EINVAL"),
    (("BAD", "0"), "EFAULT"),
    (("", "0"), "ENOENT"),
    (("long:4096", "0"), "ENAMETOOLONG"),
    (("/mnt", "16"), "EINVAL"),
    (("/mnt", "5"), "EINVAL"),
    (("/mnt", "6"), "EINVAL"),
    (("/", "0"), "EPERM"),
    (("/mnt/..", "0"), "EPERM"),
    (("/nosuch", "0"), "ENOENT"),
    (("/file", "0"), "ENOTDIR"),
    (("/mnt", "0"), "EINVAL"),
    (("/proc", "0"), "EPERM"),
    (("/dev", "2"), "EPERM"),
    (("/host", "0"), "EPERM"),
]


def _every_refusal(mounter: Mounter, program: str) -> None:
    (mounter.folder("full") / "something").write_text("in the way")
    mounter.folder("s")
    (mounter.path / "out").symlink_to("/etc")
    words: list[str] = []
    for arguments, _ in MOUNTS:
        words += ["mount", *arguments]
    for target, _ in UMOUNTS:
        words += ["umount", *target]
    expected = [*MOUNTS, *UMOUNTS]
    found = mounter.calls(*words, program=program)
    wrong = [
        f"{arguments}: {code}, expected {wanted}"
        for (arguments, wanted), code in zip(expected, found, strict=True)
        if code != wanted
    ]
    assert not wrong, "\n".join(wrong)
    assert [path.name for path in (mounter.path / "full").iterdir()] == ["something"]
    assert not list((mounter.path / "s").iterdir())


def test_every_refusal_has_its_errno_and_changes_nothing(mounter: Mounter) -> None:
    _every_refusal(mounter, "/bin/mounter")


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
