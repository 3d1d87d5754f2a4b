# SPDX-License-Identifier: Apache-2.0
"""The table of errors of mount(2) and umount2(2), as every kind of caller meets it.

One table, four callers: a static and a dynamically linked C program, Python through ctypes, and
busybox, which can make those calls that have only texts and the flags it knows.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from tests.harness.command import Command, describe
from tests.harness.instances import BuiltInstance
from tests.mount.conftest import KEY, Mounter, NewMounter, put_files, put_python

pytestmark = [pytest.mark.fuse, pytest.mark.userns]

MOUNTS = [
    # source, then target
    (("NULL", "NULL", "NULL", "512", "NULL"), "EINVAL"),
    (("BAD", "NULL", "sefs", "0", "dir=s"), "EFAULT"),
    (("KERNEL", "/mnt", "sefs", "0", "dir=s"), "EFAULT"),
    (("CLOSED", "/mnt", "sefs", "0", "dir=s"), "EFAULT"),
    (("none", "NULL", "sefs", "0", "dir=s"), "EINVAL"),
    (("none", "BAD", "sefs", "0", "dir=s"), "EFAULT"),
    (("none", "CLOSED", "ramfs", "0", "NULL"), "EFAULT"),
    (("none", "CUT", "ramfs", "0", "NULL"), "EFAULT"),
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
    (("none", "/mnt", "sefs", "0", "CUT"), "EFAULT"),
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
    (("none", "/proc/self/fd/" + "1" * 4081, "sefs", "0", "dir=nosuch"), "ENOENT"),
    (("none", "/file", "sefs", "0", "dir=nosuch"), "ENOTDIR"),
    (("none", "/loop", "sefs", "0", "dir=nosuch"), "ELOOP"),
    (("none", "/link", "ramfs", "256", "NULL"), "ENOTDIR"),
    # the host directory
    (("none", "/mnt", "sefs", "0", "dir=nosuch"), "EIO"),
    (("none", "/mnt", "sefs", "0", "dir=a-file"), "EIO"),
    (("none", "/mnt", "sefs", "0", "dir=Occlum.json"), "EPERM"),
    (("none", "/mnt", "sefs", "0", "dir=full"), "EIO"),
    (("none", "/mnt", "unionfs", "0", "lowerdir=nosuch,upperdir=s"), "EIO"),
    (("none", "/mnt", "hostfs", "0", "dir=nosuch"), "EINVAL"),
    (("none", "/mnt", "hostfs", "0", "dir=a-file"), "EINVAL"),
    (("none", "/mnt", "hostfs", "0", "dir=Occlum.json"), "EPERM"),
    (("none", "/mnt", "hostfs", "0", "dir=/etc"), "EPERM"),
    (("none", "/mnt", "hostfs", "0", "dir=.."), "EPERM"),
    (("none", "/mnt", "hostfs", "0", "dir=out"), "EPERM"),
    (("none", "/mnt", "hostfs", "0", "dir=run"), "EPERM"),
    (("none", "/mnt", "hostfs", "0", "dir=image"), "EPERM"),
    (("none", "/mnt", "hostfs", "0", "dir=initfs/bin"), "EPERM"),
    (("none", "/mnt", "sefs", "0", f"dir=image,key={KEY}"), "EPERM"),
    (("none", "/mnt", "sefs", "0", "dir=run/mount/__ROOT"), "EPERM"),
]
UMOUNTS = [
    (("NULL", "16"), "EINVAL"),
    (("BAD", "0"), "EFAULT"),
    (("CLOSED", "0"), "EFAULT"),
    (("MIDDLE", "0"), "EFAULT"),
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


#: What busybox says instead of a number.
SAYS: Final = {
    os.strerror(getattr(errno, name)): name
    for name in ("EINVAL", "EFAULT", "ENOENT", "ENAMETOOLONG", "EPERM", "ENOTDIR", "ELOOP", "EIO")
} | {"permission denied (are you root?)": "EPERM"}
POINTERS: Final = {"NULL", "BAD", "KERNEL", "MIDDLE", "CLOSED", "CUT", ""}
#: Flags that busybox has words for; others it cannot set.
WORDS: Final = {"0": "", "32": "remount,", "4096": "bind,", "8192": "move,"}
UMOUNT_WORDS: Final = {"0": "", "1": "-f", "2": "-l"}


@dataclass(frozen=True, slots=True)
class Caller:
    """Something inside that makes the calls. ``calls`` returns errno names, "" for none made."""

    calls: Callable[[Mounter], list[str]]
    fill: Callable[[Path], None]
    least: int


def by_words(mounter: Mounter, program: str) -> list[str]:
    """Make every call of the table through a program that takes them as words."""
    words: list[str] = []
    for arguments, _ in MOUNTS:
        words += ["mount", *arguments]
    for target, _ in UMOUNTS:
        words += ["umount", *target]
    works = ("mount", "none", "/mnt", "ramfs", "0", "NULL", "umount", "/mnt", "0")
    *found, mounted, unmounted = mounter.calls(*words, *works, program=program)
    assert (mounted, unmounted) == ("ok", "ok")
    return found


def busybox_line(arguments: tuple[str, ...]) -> str:
    """Return the command of busybox for a call, or nothing if it has none."""
    if POINTERS & set(arguments[:3]) or {"CUT", "long:1000000"} & set(arguments):
        return ""
    words = [re.sub(r"^long:(\d+)$", lambda m: "/" + "x" * (int(m[1]) - 1), w) for w in arguments]
    if len(words) == 2:
        flag = UMOUNT_WORDS.get(words[1])
        return "" if flag is None else f"umount {flag} {shlex.quote(words[0])}"
    source, target, fstype, flags, options = words
    if flags not in WORDS or "BAD" in arguments or (options == "NULL" and fstype != "ramfs"):
        return ""
    given = WORDS[flags] + ("" if options == "NULL" else options)
    return shlex.join(["mount", "-t", fstype, *(["-o", given] if given else []), source, target])


def by_busybox(mounter: Mounter) -> list[str]:
    """Make what busybox can make."""
    lines = [busybox_line(arguments) for arguments, _ in [*MOUNTS, *UMOUNTS]]
    script = "\n".join(
        f'echo "{number}: $({line} 2>&1)"' for number, line in enumerate(lines) if line
    )
    (mounter.path / "script").write_text(script)
    done = mounter.instance.run("/bin/sh", "/host/script")
    out = [""] * len(lines)
    for number, said in re.findall(r"^(\d+): .*?([^:\n]+)$", done.stdout.decode(), re.MULTILINE):
        out[int(number)] = SAYS.get(said.strip(), said)
    return out


@pytest.fixture(params=["static", "dynamic", "python", "busybox"])
def caller(
    request: pytest.FixtureRequest, dynamic_files: dict[str, bytes], serdab: Command
) -> Caller:
    everything = len(MOUNTS) + len(UMOUNTS)
    nothing: Callable[[Path], None] = lambda image: None  # noqa: E731
    return {
        "static": Caller(lambda m: by_words(m, "/bin/mounter"), nothing, everything),
        "dynamic": Caller(
            lambda m: by_words(m, "/bin/mounter-dynamic"),
            lambda image: put_files(image, dynamic_files),
            everything,
        ),
        "python": Caller(
            lambda m: by_words(m, "/bin/mounter.py"),
            lambda image: put_python(image, serdab),
            everything,
        ),
        "busybox": Caller(by_busybox, nothing, 40),
    }[request.param]


def test_every_refusal_has_its_errno_and_changes_nothing(
    new_mounter: NewMounter, caller: Caller
) -> None:
    mounter = new_mounter(caller.fill)
    (mounter.folder("full") / "something").write_text("in the way")
    mounter.folder("s")
    (mounter.path / "a-file").touch()
    (mounter.path / "out").symlink_to("/etc")
    found = caller.calls(mounter)
    assert sum(map(bool, found)) >= caller.least, found
    wrong = [
        f"{arguments}: {code}, expected {wanted}"
        for (arguments, wanted), code in zip([*MOUNTS, *UMOUNTS], found, strict=True)
        if code not in (wanted, "")
    ]
    assert not wrong, "\n".join(wrong)
    assert [path.name for path in (mounter.path / "full").iterdir()] == ["something"]
    assert not list((mounter.path / "s").iterdir())


def test_what_the_system_calls_wrong_is_told_to_the_operator(mounter: Mounter) -> None:
    calls = [("none", name, "ramfs", "0", "NULL") for name in ("/nosuch", "/file", "/loop")]
    calls.append(("none", "BAD", "ramfs", "0", "NULL"))
    said = mounter.told(*(word for call in calls for word in ("mount", *call)))
    assert "mount: '/nosuch': No such file or directory" in said
    assert "mount: '/file': Not a directory" in said
    assert "mount: '/loop': Too many levels of symbolic links" in said
    assert "mount: the arguments: Bad address" in said
    said = mounter.told("umount", "/nosuch", "0", "umount", "BAD", "0")
    assert "umount: '/nosuch': No such file or directory" in said
    assert "umount: the arguments: Bad address" in said


def test_a_target_outside_the_instance_s_tree_is_refused_before_anything_is_made(
    mounter: Mounter,
) -> None:
    folder = mounter.folder("s")
    words = ("mount", "none", "/proc/self/fd/9", "sefs", "0", "dir=s")
    assert mounter.calls("foreign", "/mnt", *words) == ["ok", "EINVAL"]
    assert not list(folder.iterdir())
    assert "the target lies outside the instance" in mounter.told("foreign", "/mnt", *words)


def test_a_target_that_was_removed_is_refused_before_anything_is_made(mounter: Mounter) -> None:
    folder = mounter.folder("s")
    made = ("mkdir", "/gone (deleted)", "open", "/gone (deleted)")
    there = (*made, "mount", "none", "/proc/self/fd/9", "ramfs", "0", "NULL")
    assert mounter.calls(*there) == ["ok", "ok", "ok"]
    words = ("mount", "none", "/proc/self/fd/9", "sefs", "0", "dir=s")
    assert mounter.calls("mkdir", "/x", "open", "/x", "rmdir", "/x", *words) == [
        *("ok", "ok", "ok"),
        "ENOENT",
    ]
    assert not list(folder.iterdir())


def hiding(mounter: Mounter) -> BuiltInstance:
    """Return the instance as run where /proc hides the processes of others (hidepid, proc(5))."""
    script = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'
    command = mounter.instance.command
    hidden = replace(command, prefix=("unshare", "-m", "sh", "-c", script, "sh", *command.prefix))
    return replace(mounter.instance, command=hidden)


@pytest.mark.root
def test_programs_mount_where_proc_hides_processes_of_others(mounter: Mounter) -> None:
    done = hiding(mounter).run(
        *("/bin/mounter", "mount", "none", "/mnt", "ramfs", "0", "NULL", "umount", "/mnt", "0")
    )
    assert done.stdout.split() == [b"mount", b"ok", b"umount", b"ok"], describe(done)


@pytest.mark.root
def test_a_target_outside_is_refused_first_where_proc_hides_processes_of_others(
    mounter: Mounter,
) -> None:
    folder = mounter.folder("s")
    words = ("mount", "none", "/proc/self/fd/9", "sefs", "0", "dir=s")
    done = hiding(mounter).run("/bin/mounter", "foreign", "/mnt", *words)
    assert done.stdout.split() == [b"foreign", b"ok", b"mount", b"EINVAL"], describe(done)
    assert not list(folder.iterdir())
