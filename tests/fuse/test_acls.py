# SPDX-License-Identifier: Apache-2.0
"""POSIX ACLs on a union answer as on the kernel's ext4: the same steps on both, compared.

What is compared after each step: errno, or mode, owners, attributes, and what another user may do.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from serdab.vfs.acl import (
    GROUP,
    GROUP_OBJ,
    MASK,
    NO_ID,
    OTHER,
    USER,
    USER_OBJ,
    AclEntry,
    dump_acl,
)
from tests.posix.places import MountedUnion, is_on_ext4

pytestmark = [pytest.mark.fuse, pytest.mark.root]

_ACCESS = "system.posix_acl_access"
_DEFAULT = "system.posix_acl_default"
_HEAD = (2).to_bytes(4, "little")
_MORE = 9
"""A user, and a group, that an ACL names."""


def _acl(owner: int, group: int, other: int, *more: AclEntry) -> bytes:
    return dump_acl(
        [AclEntry(USER_OBJ, owner), AclEntry(GROUP_OBJ, group), AclEntry(OTHER, other), *more]
    )


_NAMED = _acl(6, 4, 0, AclEntry(USER, 6, _MORE), AclEntry(GROUP, 4, 12), AclEntry(MASK, 6))
_NARROW = _acl(7, 5, 0, AclEntry(USER, 7, _MORE), AclEntry(MASK, 5))
_PLAIN = _acl(7, 5, 1)


def _entries(*entries: tuple[int, int, int]) -> bytes:
    return _HEAD + b"".join(
        tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + name.to_bytes(4, "little")
        for tag, perm, name in entries
    )


_WRONG = {
    "empty": b"",
    "no version": b"\2\0",
    "version 3": b"\3" + _NAMED[1:],
    "no mask": _entries((1, 6, NO_ID), (2, 6, 9), (4, 4, NO_ID), (32, 0, NO_ID)),
    "no others": _entries((1, 6, NO_ID), (4, 4, NO_ID)),
    "a bit too many": _entries((1, 8, NO_ID), (4, 4, NO_ID), (32, 0, NO_ID)),
    "cut": _NAMED[:-1],
}
#: The users stand in an order that the kernel takes.
_UNORDERED = _entries(
    (1, 6, NO_ID), (2, 4, 12), (2, 6, 9), (4, 0, NO_ID), (16, 6, NO_ID), (32, 0, NO_ID)
)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[MountedUnion, Path, Path]]:
    """A union, and a directory of ext4; its image was built from what also lies there."""
    if os.geteuid() != 0:
        pytest.skip("mounts as root")
    with tempfile.TemporaryDirectory(prefix="sa-") as name:
        base = Path(name)
        if not is_on_ext4(base):
            pytest.skip("needs a directory on ext4")
        os.chmod(base, 0o755)
        theirs = base / "theirs"
        theirs.mkdir()
        _fill(theirs)
        union = MountedUnion(base, _fill)
        try:
            yield union, union.path, theirs
        finally:
            union.close()


def _fill(top: Path) -> None:
    """Make what the lower layer has: a file, and a directory that hands down."""
    os.chmod(top, 0o755)
    (top / "low").write_bytes(b"low")
    os.setxattr(top / "low", _ACCESS, _UNORDERED)
    (top / "heirs").mkdir()
    os.setxattr(top / "heirs", _DEFAULT, _NARROW)
    (top / "plain").write_bytes(b"plain")
    os.setxattr(top / "plain", "user.a", b"1")


def _try(call: object, *arguments: object) -> object:
    assert callable(call)
    try:
        return call(*arguments)
    except OSError as exc:
        return exc.errno


def _seen(path: Path) -> dict[str, object]:
    """Return all that tells of the ACLs of a file, and what user 9 may do with it."""
    status = path.lstat()
    found: dict[str, object] = {"mode": oct(status.st_mode)}
    found["owner"] = status.st_uid, status.st_gid
    found["names"] = sorted(os.listxattr(path, follow_symlinks=False))
    for name in (_ACCESS, _DEFAULT):
        value = _try(lambda name=name: os.getxattr(path, name, follow_symlinks=False))
        # Those of one kind mean the same in any order.
        found[name] = sorted(value[i : i + 8] for i in range(4, len(value), 8)) if isinstance(
            value, bytes
        ) else value  # fmt: skip
    return found


def _may(top: Path) -> str:
    """Return what user 9, and group 12, may do with each file below a directory."""
    script = (
        "import os;print([(n,*(os.access(n,r) for r in (4,2,1))) for n in sorted(os.listdir())])"
    )
    out = ""
    for user, group in ((9, 99), (98, 12), (98, 99)):
        out += subprocess.run(
            ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--inh-caps=-all",
             "--bounding-set=-all", "--", "/usr/bin/python3", "-Ic", script],
            cwd=top, capture_output=True, check=True, text=True,
        ).stdout  # fmt: skip
    return out


def _same(ours: Path, theirs: Path) -> None:
    names = sorted(str(p.relative_to(theirs)) for p in theirs.rglob("*"))
    assert names == sorted(str(p.relative_to(ours)) for p in ours.rglob("*"))
    for name in ("", *names):
        assert _seen(ours / name) == _seen(theirs / name), name
    assert _may(ours) == _may(theirs)


def _steps(top: Path) -> list[object]:
    """Do the same to any directory; return what each step answered."""
    said: list[object] = []

    def do(call: object, *arguments: object) -> None:
        said.append(_try(call, *arguments))
        said.append({p.name: _seen(p) for p in sorted(top.iterdir())})

    work = top / "work"
    for path, acl in (
        (top / "low", _NAMED),
        (work, _NAMED),
        (work, _PLAIN),
        (top / "plain", _NARROW),
    ):
        work.touch()
        do(os.setxattr, path, _ACCESS, acl)
        for mode in (0o600, 0o755, 0o4070, 0o2640):
            do(os.chmod, path, mode)
    for value in _WRONG.values():
        do(os.setxattr, work, _ACCESS, value)
    do(os.setxattr, work, _ACCESS, _UNORDERED)
    do(os.setxattr, work, _DEFAULT, _NAMED)  # no directory
    do(os.setxattr, work, _ACCESS, _NAMED, os.XATTR_REPLACE)
    do(os.setxattr, work, _ACCESS, _NARROW, os.XATTR_CREATE)
    do(os.removexattr, work, _ACCESS)
    do(os.removexattr, work, _ACCESS)
    do(os.removexattr, top / "heirs", _ACCESS)
    do(os.setxattr, work, _ACCESS, _HEAD)
    os.symlink("work", top / "link")
    do(lambda: os.setxattr(top / "link", _ACCESS, _NAMED, follow_symlinks=False))
    return said


def _handed_down(top: Path) -> None:
    """Make one of each kind below directories that hand down, under several umasks."""
    (top / "made").mkdir()
    for number, default in enumerate((_NARROW, _NAMED, _PLAIN, None)):
        for umask in (0, 0o027, 0o777):
            folder = top / "made" / f"{number}-{umask:o}"
            folder.mkdir()
            if default is not None:
                os.setxattr(folder, _DEFAULT, default)
            old = os.umask(umask)
            try:
                os.close(os.open(folder / "file", os.O_CREAT | os.O_WRONLY, 0o666))
                os.close(os.open(folder / "private", os.O_CREAT | os.O_WRONLY, 0o600))
                os.mkdir(folder / "dir", 0o777)
                os.mkdir(folder / "dir/again", 0o2750)
                os.mkfifo(folder / "fifo", 0o666)
                os.mknod(folder / "device", stat.S_IFCHR | 0o640, os.makedev(1, 3))
                os.symlink("file", folder / "link")
                with os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o664), "wb") as hidden:
                    number_of = hidden.fileno()
                    # With a directory given it is linkat(2), which can follow.
                    os.link(f"/proc/self/fd/{number_of}", folder / "named", src_dir_fd=number_of)
            finally:
                os.umask(old)
    (top / "heirs" / "child").mkdir()
    (top / "heirs" / "child" / "file").touch()
    os.removexattr(top / "made/0-0", _DEFAULT)
    (top / "made/0-0/later").touch()


def test_what_an_image_was_built_from_comes_with_its_acls(
    pair: tuple[MountedUnion, Path, Path],
) -> None:
    _, ours, theirs = pair
    _same(ours, theirs)


def test_each_step_answers_as_ext4_does_and_lasts(pair: tuple[MountedUnion, Path, Path]) -> None:
    union, ours, theirs = pair
    for index, (mine, expected) in enumerate(zip(_steps(ours), _steps(theirs), strict=True)):
        assert mine == expected, index
    for top in (ours, theirs):
        _handed_down(top)
    _same(ours, theirs)
    for folder in ("heirs", "made/1-0", "made/2-27"):
        assert _may(ours / folder) == _may(theirs / folder), folder
    union.remount()
    _same(ours, theirs)


_AS_MEMBER = """
import os, sys
acl = bytes.fromhex(sys.argv[1])
os.setxattr("f", "system.posix_acl_access", acl)
"""


@pytest.mark.parametrize("group", [50, 60], ids=["member", "stranger"])
def test_set_group_id_goes_when_who_sets_an_acl_is_no_member(
    pair: tuple[MountedUnion, Path, Path], group: int
) -> None:
    _, ours, theirs = pair
    modes = []
    for top in (ours, theirs):
        folder = top / f"sgid{group}"
        folder.mkdir()
        os.chmod(folder, 0o777)
        (folder / "f").touch()
        os.chown(folder / "f", 9, 50)
        os.chmod(folder / "f", 0o2775)
        subprocess.run(
            ["setpriv", "--reuid=9", f"--regid={group}", "--clear-groups", "--inh-caps=-all",
             "--bounding-set=-all", "--", "/usr/bin/python3", "-Ic", _AS_MEMBER, _NARROW.hex()],
            cwd=folder, check=True,
        )  # fmt: skip
        modes.append(oct((folder / "f").stat().st_mode))
    assert modes[0] == modes[1]
