# SPDX-License-Identifier: Apache-2.0
"""Locks of an instance: who holds one is a property of a process, never a word in a file.

Two locks, both flock(2) on a directory, gone with the last holder of the descriptor, however it
ended:

* ``run/``: exclusive for whoever uses the writable layer (run, start, mount, fsck, reset);
* the instance directory: exclusive for whoever replaces ``build/``.

``run/`` stays locked until the last byte of the writable layer is written, which may take longer
than the use itself: after a kill the fs server still closes its volume. So whoever uses it says
so by a second lock on the same directory, a shared one of fcntl(2) (F_OFD_SETLK). A directory that
is locked without it is being closed: that is waited for, not refused.

Whoever locks ``run/`` first brings a change of the key to its end that was cut off (``switch``):
nobody else would know that build and writable layer belong together again.

Lock order: instance directory before ``run/``.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable
from types import TracebackType

from serdab.errors import BusyError, UsageError
from serdab.instance.layout import REKEY_PATHS, RUN, Instance
from serdab.linux.dirfd import DirFd

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final, Self

_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock, fcntl(2)
_CLOSING_PATIENCE_S: Final = 60.0
_USED_PATIENCE_S: Final = 1.0  # a user hears of its kernel process's death a moment later
_QUIET_S: Final = 1.0
_POLL_S: Final = 0.02


class DirectoryLock:
    """An exclusive flock on a directory.

    ``fd`` may be handed to every process that must end before the next user begins, ``use_fd``
    (-1: none) to whoever decides when the use is over.
    """

    __slots__ = ("fd", "use_fd")

    def __init__(self, fd: int, use_fd: int = -1) -> None:
        self.fd = fd
        self.use_fd = use_fd

    def hand_use_on(self) -> int:
        """Return the descriptor that stands for the use, which is the caller's from here on."""
        fd, self.use_fd = self.use_fd, -1
        return fd

    def end_use(self) -> None:
        """Say that the use is over: from here on the next user waits for the lock itself."""
        if self.use_fd >= 0:
            os.close(self.use_fd)
        self.use_fd = -1

    def close(self) -> None:
        """Give the lock up, unless another process shares the descriptors."""
        for fd in (self.use_fd, self.fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.use_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def lock_run(
    instance: Instance,
    *,
    on_wait: Callable[[str], None] | None = None,
    is_wanted: Callable[[], bool] = lambda: True,
    resume_rekey: bool = False,
) -> DirectoryLock:
    """Lock the writable side of an instance; makes ``run/`` if it is missing.

    ``on_wait(line)`` hears of it when the last user takes long to close; that is waited for as long
    as it ``is_wanted``. ``resume_rekey`` leaves the work of an attempt to change the key that was
    cut off.

    Raises:
        BusyError: another process holds it; the message names it.
    """
    with _make_run(instance) as run:
        started = time.monotonic()
        while True:
            try:
                lock = _lock(run, "the instance is in use")
            except BusyError:
                waited = time.monotonic() - started
                if waited > (_USED_PATIENCE_S if _is_used(run) else _CLOSING_PATIENCE_S):
                    raise
                if not is_wanted():
                    raise
                if on_wait is not None and waited > _QUIET_S:
                    on_wait(f"{run.path}: waiting for the last run to finish writing")
                    on_wait = None
                time.sleep(_POLL_S)
            else:
                try:
                    lock.use_fd = _mark_used(run)
                    if is_switch_cut_off(instance):
                        from serdab.instance.switch import settle

                        settle(instance, keep_undecided=resume_rekey)
                except BaseException:
                    lock.close()
                    raise
                return lock


def _make_run(instance: Instance) -> DirFd:
    """Return ``run/``, made if it is missing: a directory, never a link to one."""
    instance.root.require_plain(RUN, "a directory")
    try:
        return instance.root.make(RUN, mode=0o700)
    except OSError as exc:
        if isinstance(exc, PermissionError) and instance.root.exists(RUN):
            raise _not_yours(instance.at(RUN), exc) from exc
        raise UsageError(
            "the directory of the writable layer cannot be made",
            subject=instance.at(RUN),
            expected="a directory that can be written",
            found=os.strerror(exc.errno or 0),
            hint="an instance must be writable by whoever runs it: unpack or copy it as that user, "
            f"or let root make {RUN}/ for them",
        ) from exc


def wait_until_closed(instance: Instance, *, on_wait: Callable[[str], None]) -> None:
    """Wait until whoever used ``run/`` has written its last byte; not for the next user.

    ``on_wait(line)`` hears of it when that takes long.

    Raises:
        BusyError: it takes too long.
    """
    try:
        lock_run(instance, on_wait=on_wait).close()
    except BusyError:
        with instance.root.directory(RUN) as run:
            if not _is_used(run):
                raise


def is_in_use(instance: Instance) -> bool:
    """Return whether somebody holds the lock of ``run/`` at this moment."""
    instance.root.require_plain(RUN, "a directory")
    try:
        with instance.root.directory(RUN) as run:
            _lock(run, "the instance is in use").close()
    except BusyError:
        return True
    except FileNotFoundError:
        pass  # whoever uses it makes it first
    except PermissionError as exc:
        raise _not_yours(instance.at(RUN), exc) from exc
    return False


def is_switch_cut_off(instance: Instance) -> bool:
    """Return whether something of a change of the key lies about.

    Raises:
        UsageError: this user may not look there.
    """
    try:
        return any(map(instance.root.exists, REKEY_PATHS))
    except PermissionError as exc:
        raise _not_yours(instance.at(RUN), exc) from exc


def settle_switch(instance: Instance) -> None:
    """Bring a change of the key that was cut off to its end, for who uses no lock of ``run/``.

    Raises:
        BusyError: it is at work.
    """
    if is_switch_cut_off(instance):
        with lock_run(instance):
            pass  # whoever holds it settled first


def _mark_used(run: DirFd) -> int:
    """Return a descriptor that says, as long as any process has it, that it is in use."""
    fd = _open_again(run)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
    except OSError:
        pass  # a host file system without such locks: the next user waits where it could refuse
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_used(run: DirFd) -> bool:
    fd = _open_again(run)
    try:
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted))[0]
    except OSError:
        return True  # no such locks here: nothing says that it is being closed
    finally:
        os.close(fd)
    return kind != fcntl.F_UNLCK


def lock_build(instance: Instance) -> DirectoryLock:
    """Lock the sealed side of an instance against other builds."""
    return _lock(instance.root, "another build is at work")


def _open_again(directory: DirFd) -> int:
    """Return a descriptor of its own: locks belong to what open(2) made, not to the directory."""
    return directory.open("", os.O_RDONLY | os.O_DIRECTORY)


def _lock(directory: DirFd, message: str) -> DirectoryLock:
    fd = _open_again(directory)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        status = os.fstat(fd)
        os.close(fd)
        raise BusyError(
            message,
            subject=directory.path,
            expected="no other user",
            found=_holder(status),
            hint="wait for it, or end it; a killed holder leaves no lock behind",
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return DirectoryLock(fd)


def _not_yours(path: str, exc: OSError) -> UsageError:
    return UsageError(
        "the instance is another user's",
        subject=path,
        expected=f"a directory that user id {os.geteuid()} may use",
        found=os.strerror(exc.errno or 0),
        hint="be the user who made it, or make an instance of your own",
    )


def run_holder(instance: str) -> str | None:
    """Return who holds the writable side of an instance, None if nobody is known to."""
    try:
        with DirFd.at(instance) as root:
            status = root.status(RUN)
    except OSError:
        return None
    return None if status is None else _find_holder(status)


def _holder(status: os.stat_result) -> str:
    # Some file systems (btrfs, overlayfs) show another device number there than stat(2) does.
    return _find_holder(status) or "another process"


def _find_holder(status: os.stat_result) -> str | None:
    """Return the process that holds a flock on the inode, as /proc/locks tells (proc(5))."""
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            lines = file.readlines()
    except OSError:
        lines = []
    for line in lines:
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == wanted:
            return _describe(fields[4])
    return None


def _describe(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).split(b"\0")
    except OSError:
        return f"process {pid}"
    command = " ".join(word.decode("utf-8", "replace") for word in words if word)
    return f"process {pid}: {command[:120]}" if command else f"process {pid}"
