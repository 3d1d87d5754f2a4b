# SPDX-License-Identifier: Apache-2.0
"""A file system mounted on the host and served by this process, from the mount to the last flush.

Above: ``cli.mount``. Below: ``fuse.session`` (the loop), ``fuse.mounting``.

It ends when the kernel lets go of the mount: after umount(8), or after SIGINT, SIGTERM or SIGHUP,
upon which this process unmounts itself::

    signal     unmount, in a thread: the kernel may ask for pages to be written before it returns
    busy       detach, so that nobody new comes; flush mappings and commit; those who are in have
               ``GRACE_S`` to finish
    again      a second signal does not wait for them

Whatever the way, the file system is closed at the end: everything it was given is durable then.

Threads: the session runs in the main thread and is the only one that calls the file system; the
thread that unmounts speaks to it through a pipe.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

from serdab.errors import Error
from serdab.fuse.insteps import InSteps
from serdab.fuse.mounting import SUBTYPE, mount_host, raise_read_ahead, unmount
from serdab.fuse.session import Session, SessionOptions, spare_collector
from serdab.linux.mounts import mounts_at, mounts_of, syncfs
from serdab.linux.ownlimits import lift_limits
from serdab.structs import frozen
from serdab.vfs.api import FileSystem
from serdab.vfs.steps import Steps

GRACE_S: Final = 10.0
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Two signals that come so close are one wish: timeout(1) sends to the process and to its group.
_SAME_S: Final = 1.0
#: What the unmounting thread sends; no signals have these numbers.
_COMMIT: Final = 0
_STOP: Final = 255

Log = Callable[[str, str], None]


@frozen
class Wanted:
    """Where and how to mount.

    ``target`` is a real path. ``fsname`` is what nothing else is mounted under until this has
    ended: by it a mount that is followed is known again.
    """

    target: str
    fsname: str
    read_only: bool = False
    allow_other: bool = False


class _Bell:
    """A pipe that wakes the session: signals ring it, by number, and so does the other thread."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in _ENDING:
            # nohup(1) has it ignored, and means it.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda _number, _frame: None)

    def ring(self, wish: int) -> None:
        """Ask for a commit, or for the end of the session."""
        os.write(self._writer, bytes((wish,)))

    def answer(self) -> bytes:
        """Return who has rung."""
        return os.read(self.reader, 64)

    def close(self) -> None:
        """Hear no more. Nothing is left to be ended but the process itself, in good order."""
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        os.close(self.reader)
        os.close(self._writer)


def serve_on_host(
    fs: FileSystem,
    wanted: Wanted,
    *,
    on_ready: Callable[[], None],
    on_unmounted: Callable[[], None],
    log: Log,
) -> None:
    """Mount ``fs``, call ``on_ready``, serve until it is over, close ``fs``.

    ``on_unmounted`` is called before ``fs`` is closed, which may take long after umount(8) has
    returned. ``log(level, line)`` gets what the user is to know. The signals that end it are
    ignored afterwards: the process is about to end.

    Raises:
        EnvironmentRefused: FUSE is not to be had.
        Error: it could not be unmounted, or not be closed as it should.
    """
    # From here on a signal ends the mount, never this process in the middle of something.
    bell = _Bell()
    try:
        try:
            lift_limits()
            fd = _mount(wanted)
            try:
                mount = _HostMount(fs, fd, wanted, bell, log)
            except BaseException:
                os.close(fd)
                _take_back(wanted.target, log)
                raise
            try:
                on_ready()
                mount.run()
            finally:
                # The only descriptor: whoever still uses the mount hears that it is gone.
                os.close(fd)
                mount.clear_away()
                on_unmounted()
        finally:
            _close(fs)
    finally:
        bell.close()
    if mount.failure is not None:
        raise mount.failure


def _mount(wanted: Wanted) -> int:
    try:
        return mount_host(
            wanted.target,
            fsname=wanted.fsname,
            read_only=wanted.read_only,
            allow_other=wanted.allow_other,
        )
    except OSError as exc:
        raise Error(
            "the file system cannot be mounted",
            subject=wanted.target,
            expected="a mount",
            found=_words(exc),
            hint="`serdab doctor` shows what this machine lacks",
        ) from exc


def _take_back(target: str, log: Log) -> None:
    """Take away a mount that was just made, and that nobody will serve."""
    try:
        mounted = mounts_at(target)
        if mounted and mounted[-1].fstype == f"fuse.{SUBTYPE}":
            unmount(target, lazy=True)
    except OSError as exc:
        log("error", f"{target}: what was mounted could not be unmounted: {_words(exc)}")


def _close(fs: FileSystem) -> None:
    try:
        fs.close()
    except OSError as exc:
        raise Error(
            "the writable layer could not be closed as it should",
            expected="everything durable",
            found=_words(exc),
            hint="what was synced is safe; the lines above say what failed",
        ) from exc


def _words(exc: OSError) -> str:
    return (exc.strerror or str(exc)).lower()


class _HostMount:
    """One mount that is there, and how it ends."""

    def __init__(self, fs: FileSystem, fd: int, wanted: Wanted, bell: _Bell, log: Log) -> None:
        self._fs = fs
        self._target = wanted.target
        self._bell = bell
        self._log = log
        self._mine = _on_top(wanted.target)
        self._session = Session(
            fd,
            fs,
            options=SessionOptions(wake_fd=bell.reader, on_wake=self._answer),
            log=lambda line: log("error", line),
        )
        self._over = threading.Event()
        self._unmounting: threading.Thread | None = None
        self._asked_at = 0.0
        self.failure: Error | None = None
        if self._mine is not None:
            raise_read_ahead(self._mine[0])

    def run(self) -> None:
        """Serve until the mount is gone, or the wait for those who use it is over."""
        spare_collector()
        try:
            self._session.run()
        finally:
            self._over.set()
            if self._unmounting is not None:
                self._unmounting.join()

    def clear_away(self) -> None:
        """Take away what a session that ended before the mount leaves: umount -f, a second signal.

        The connection is closed by now, so nobody is asked and nothing is waited for.
        """
        self._follow()
        if self._mine is None or _on_top(self._target) != self._mine:
            return
        try:
            unmount(self._target, lazy=True)
        except OSError as exc:
            self.failure = self.failure or self._not_unmounted(_words(exc))

    def _answer(self) -> bool | Steps[None]:
        answer: bool | Steps[None] = True
        for number in self._bell.answer():
            if number == _COMMIT:
                answer = self._commit()
            elif number == _STOP:
                self._session.stop()
            elif self._unmounting is None:
                self._asked_at = time.monotonic()
                self._unmounting = threading.Thread(target=self._unmount)
                self._unmounting.start()
            elif time.monotonic() - self._asked_at > _SAME_S:
                self._session.stop()
        return answer

    def _commit(self) -> Steps[None]:
        try:
            yield from InSteps(self._fs).syncfs()
        except (OSError, Error) as exc:
            self._log("error", str(exc))

    # In a thread of its own ------------------------------------------------------------------

    def _unmount(self) -> None:
        try:
            detached = self._leave_tree()
        except OSError as exc:
            self.failure = self._not_unmounted(_words(exc))
            self._bell.ring(_STOP)
            return
        # Unmounted here is not gone while another mount namespace has a copy (mount_namespaces(7)).
        if not detached and self._over.wait(_SAME_S):
            return
        self._log(
            "notice",
            f"{self._target} is in use: it is detached, and what was written is made durable; "
            f"programs that use it have {GRACE_S:.0f} s, a second signal does not wait for them",
        )
        if not self._over.wait(GRACE_S):
            self._bell.ring(_STOP)

    def _leave_tree(self) -> bool:
        """Take the mount off the directory tree; return whether it is in use there."""
        self._follow()
        if self._mine not in [item.identity for item in mounts_at(self._target)]:
            return True  # somebody was here before
        if _on_top(self._target) != self._mine:
            raise OSError(errno.EBUSY, "something else is mounted over it")
        if self._try_unmount():
            return False
        self._detach()
        return True

    def _follow(self) -> None:
        """Go where the mount is now: a directory on the way to it may have been renamed."""
        if self._mine is None:
            return
        places = [item.target for item in mounts_of(self._mine)]
        if len(places) == 1:
            self._target = places[0]

    def _try_unmount(self) -> bool:
        try:
            unmount(self._target)
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            return False
        return True

    def _detach(self) -> None:
        try:
            fd = os.open(self._target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            unmount(self._target, lazy=True)  # its root lets nobody in, not even us
            return
        try:
            unmount(self._target, lazy=True)
            syncfs(fd)  # what programs stored through mappings comes to the session now
        finally:
            os.close(fd)
        self._bell.ring(_COMMIT)

    def _not_unmounted(self, why: str) -> Error:
        return Error(
            "the mount point could not be unmounted",
            subject=self._target,
            expected="an unmounted directory",
            found=why,
            hint="everything is durable and nobody serves it: `umount -l` or `fusermount3 -uz`",
        )


def _on_top(target: str) -> tuple[int, str] | None:
    mounted = mounts_at(target)
    return mounted[-1].identity if mounted else None
