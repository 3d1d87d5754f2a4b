# SPDX-License-Identifier: Apache-2.0
"""Attach a FUSE file system to a path on the host, and detach it.

Root calls mount(2) itself. An ordinary user goes through ``fusermount3``, the set-id program that
every distribution ships for this (package fuse3): it is told the mount point and hands the
``/dev/fuse`` descriptor back over a socket whose number is in ``_FUSE_COMMFD``.

Above: the verbs that mount on the host. Below: ``linux.mounts``. (Mounts inside a sandbox are made
by the launcher with the new mount API.)
"""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Final

from serdab.errors import EnvironmentRefused
from serdab.fuse.operations import MAX_WRITE_BYTES
from serdab.linux.mounts import MountFlag, UmountFlag, mount, umount

SUBTYPE: Final = "serdab"
_READ_AHEAD_KB: Final = 1024
_DEVICE: Final = "/dev/fuse"
_HINT_OF_NAME: Final = (
    "it asks for the name of user id {}, which the password database (passwd(5)) does not have: "
    "give it one; `serdab run` and `start` need none"
)
_SETTINGS: Final = "/etc/fuse.conf"  # fusermount3's own, see mount.fuse(8)


def mount_options(fd: int, *, rootmode: int = 0o40000, uid: int = 0, gid: int = 0) -> str:
    """Return the option string of a FUSE mount (mount.fuse(8), fuse(4))."""
    return (
        f"fd={fd},rootmode={rootmode:o},user_id={uid},group_id={gid},"
        f"allow_other,default_permissions,max_read={MAX_WRITE_BYTES}"
    )


def check_available(*, allow_other: bool = False) -> None:
    """Say early what :func:`mount_host` would find missing.

    Raises:
        EnvironmentRefused: so it would.
    """
    os.close(open_device())
    if os.geteuid() != 0:
        _fusermount()
        if allow_other and not _may_allow_other():
            raise EnvironmentRefused(
                "the administrator lets no ordinary user share a mount",
                subject=_SETTINGS,
                expected="a line user_allow_other",
                found="none",
                hint="leave --allow-other out, or ask for that line",
            )


def _may_allow_other() -> bool:
    try:
        with open(_SETTINGS, encoding="utf-8", errors="replace") as file:
            return any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        return False


def _fusermount() -> str:
    program = shutil.which("fusermount3")
    if program is None:
        raise EnvironmentRefused(
            "an ordinary user mounts through fusermount3, which is missing",
            expected="fusermount3",
            found="no such program",
            hint="install the package fuse3",
        )
    return program


def mount_host(
    path: str | os.PathLike[str],
    *,
    fsname: str,
    read_only: bool = False,
    allow_other: bool = True,
) -> int:
    """Mount at ``path`` and return the ``/dev/fuse`` descriptor, which is the caller's to close.

    ``allow_other`` is what root gets in any case; for an ordinary user it needs
    ``user_allow_other`` in /etc/fuse.conf, so that without it only that user sees the files.

    Raises:
        EnvironmentRefused: no /dev/fuse, no right to it, or no fusermount3.
        OSError: the mount point is not usable.
    """
    target = os.fspath(path)
    if os.geteuid() != 0:
        return _mount_by_fusermount(
            target, fsname=fsname, read_only=read_only, allow_other=allow_other
        )
    fd = open_device()
    try:
        flags = MountFlag.NOSUID | MountFlag.NODEV
        if read_only:
            flags |= MountFlag.RDONLY
        mount(fsname, target, f"fuse.{SUBTYPE}", flags, mount_options(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_device() -> int:
    """Open ``/dev/fuse``."""
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise EnvironmentRefused(
            "FUSE is not available",
            expected=_DEVICE,
            found="no such file",
            hint="load the kernel module `fuse`; in a container pass --device /dev/fuse",
        ) from exc
    except OSError as exc:
        raise EnvironmentRefused(
            "FUSE cannot be used",
            expected=f"{_DEVICE} to open",
            found=exc.strerror or "an error",
            hint="/dev/fuse has mode 0666 on ordinary systems; ask the administrator",
        ) from exc


def _mount_by_fusermount(target: str, *, fsname: str, read_only: bool, allow_other: bool) -> int:
    program = _fusermount()
    # A comma or backslash in a name would start another option (fusermount3 unescapes them).
    name = fsname.replace("\\", "\\\\").replace(",", "\\,")
    options = [
        f"fsname={name}",
        f"subtype={SUBTYPE}",
        "default_permissions",
        "nosuid",
        "nodev",
        f"max_read={MAX_WRITE_BYTES}",
    ]
    if read_only:
        options.append("ro")
    if allow_other:
        options.append("allow_other")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        status, message = _run(
            [program, "-o", ",".join(options), "--", target], theirs, {"_FUSE_COMMFD": "%d"}
        )
        if status == 0:
            ours.settimeout(10)
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
            if fds:
                os.set_inheritable(fds[0], False)
                return fds[0]
            message = "it handed over no descriptor"
    raise EnvironmentRefused(
        "fusermount3 refused to mount",
        subject=target,
        expected="a mount",
        found=message,
        hint=_HINT_OF_NAME.format(os.geteuid())
        if "username" in message
        else "the mount point must be a directory of yours, and /dev/fuse open to you",
    )


def _run(
    argv: list[str], comm: socket.socket | None, environment: dict[str, str]
) -> tuple[int, str]:
    """Run fusermount3; return (exit status, what it said)."""
    import subprocess  # only an ordinary user pays for it

    fds: tuple[int, ...] = ()
    env = {**os.environ, "LC_ALL": "C"}
    if comm is not None:
        fds = (comm.fileno(),)
        env.update((key, value % fds) for key, value in environment.items())
    done = subprocess.run(
        argv,
        env=env,
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        start_new_session=True,  # a second Ctrl-C is not meant for it
    )
    said = (done.stderr or done.stdout).decode(errors="replace").strip()
    return done.returncode, said or f"exit status {done.returncode}"


def unmount(path: str | os.PathLike[str], *, lazy: bool = False) -> None:
    """Detach what is mounted at ``path``; ``lazy`` detaches now and ends when nobody is inside.

    Raises:
        OSError: busy (EBUSY), or not a mount (EINVAL).
    """
    target = os.fspath(path)
    flags = UmountFlag.NOFOLLOW | (UmountFlag.DETACH if lazy else UmountFlag(0))
    if os.geteuid() == 0:
        umount(target, flags)
        return
    program = shutil.which("fusermount3")
    if program is None:
        umount(target, flags)  # says EPERM, but for those who are root in their own namespace
        return
    argv = [program, "-u", *(["-z"] if lazy else []), "--", target]
    status, message = _run(argv, None, {})
    if status != 0:
        import errno

        busy = "busy" in message
        raise OSError(errno.EBUSY if busy else errno.EINVAL, message, target)


def raise_read_ahead(device: int) -> bool:
    """Let the kernel read a MiB ahead on the file system with this ``st_dev``; root only.

    Returns whether it could be done: it is a matter of speed alone (half as fast again).
    """
    knob = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        knob.write_text(str(_READ_AHEAD_KB))
    except OSError:
        return False
    return True
