# SPDX-License-Identifier: Apache-2.0
"""The kernel process's side of the worker: one small static process for one mount or umount.

Above: ``mounts``. Below: ``launcher`` (the program, in its second mode), ``loop``, ``channel``. The
layouts are those of ``init/src/protocol.h``, the work is ``init/src/worker.c``.

The worker is executed, never forked, so it inherits its channel and nothing else. It may have to
wait for an fs server on its way to the target; the kernel process does not wait with it.
"""

from __future__ import annotations

import os
import signal
from typing import Any, Final

from serdab.errors import Error
from serdab.libos.channel import close_all, receive_raw, send_raw, socket_pair
from serdab.libos.interpreter import CHANNEL_FD, PYTHON_IGNORES
from serdab.libos.launcher import HEADER
from serdab.libos.loop import Future, Loop
from serdab.structs import frozen

_RESOLVE, _MOUNT, _UNDO, _WRITE_BACK, _DETACH = range(16, 21)
_NOFOLLOW, _FUSE, _DROP_GROUPS = 1, 2, 4
_IS_ROOT, _IS_MOUNT, _NO_LINKS, _IN_TREE = 1, 2, 4, 8
_AT_ENTER: Final = 1


@frozen
class Place:
    """Where a call happens: descriptors of the caller, which stay the owner's to close."""

    user_ns: int
    mount_ns: int
    root: int
    cwd: int


@frozen
class Target:
    """What a path of the caller leads to: a directory, maybe the root of a mount.

    ``inode``: the directory's, in the mount. ``in_tree``: it lies in a mount of the instance, not
    in one that was detached or is another mount namespace's. ``is_removed``: it is open somewhere
    and has no name any more.
    ``owner``: the user inside it belongs to.
    """

    mount_id: int
    inode: int
    is_root: bool
    is_mount: bool
    in_tree: bool
    is_removed: bool
    owner: int


@frozen
class Mounted:
    """A mount that was made. ``fd``, the caller's to close: of /dev/fuse, else of its root."""

    mount_id: int
    device: int
    fd: int


class Refused(Exception):
    """The system refused a step of the worker; ``at_target``: on the way to the target."""

    def __init__(self, code: int, *, at_target: bool) -> None:
        super().__init__(os.strerror(code))
        self.code = code
        self.at_target = at_target


class Worker:
    """One worker process, from start to end."""

    def __init__(self, loop: Loop, program: int) -> None:
        self._loop = loop
        self._waiting: Future[Any] | None = None
        self._end, inner = socket_pair()
        try:
            self.pid = os.posix_spawn(
                f"/proc/self/fd/{program}",
                ["serdab-mount", "attach"],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, inner.fileno(), CHANNEL_FD),
                ],
                setsigmask=[],
                setsigdef=PYTHON_IGNORES,
            )
        except BaseException:
            self._end.close()
            raise
        finally:
            inner.close()
        loop.watch(self._end.fileno(), self._readable)

    def _readable(self) -> None:
        payload, fds = receive_raw(self._end, HEADER.size)
        waiting, self._waiting = self._waiting, None
        if len(payload) != HEADER.size:
            close_all(fds)
            self._loop.unwatch(self._end.fileno())
            if waiting is not None:
                waiting.set_error(Error("a mount worker ended unexpectedly", stage="mount"))
        elif waiting is not None:
            waiting.set_result((*HEADER.unpack(payload), fds))
        else:
            close_all(fds)

    async def _ask(
        self, op: int, *, value: int = 0, body: bytes = b"", fds: tuple[int, ...] = ()
    ) -> tuple[int, int, int, int, list[int]]:
        self._waiting = self._loop.future()
        waiting = self._waiting
        try:
            send_raw(self._end, HEADER.pack(op, 0, 0, 0, value) + body, fds)
        except (BrokenPipeError, ConnectionResetError):
            raise Error("a mount worker ended unexpectedly", stage="mount") from None
        _, flags, serial, result, value, received = await waiting
        return flags, serial, result, value, received

    async def resolve(
        self,
        place: Place,
        path: bytes,
        *,
        nofollow: bool,
        fuse: bool,
        drop_groups: bool,
    ) -> Target:
        """Find the directory that ``path`` names for the caller.

        ``fuse``: a FUSE file system will be mounted there.

        Raises:
            Refused: there is none, or the worker may not enter.
        """
        flags = _NOFOLLOW * nofollow | _FUSE * fuse | _DROP_GROUPS * drop_groups
        fds = (place.user_ns, place.mount_ns, place.root, place.cwd)
        from serdab.linux.mounts import inode_of

        what, serial, result, owner, received = await self._ask(
            _RESOLVE, value=flags, body=path + b"\0", fds=fds
        )
        try:
            if result < 0:
                raise Refused(-result, at_target=serial != _AT_ENTER)
            return Target(
                serial,
                inode_of(received[0]),
                is_root=bool(what & _IS_ROOT),
                is_mount=bool(what & _IS_MOUNT),
                in_tree=bool(what & _IN_TREE),
                # Some file systems count no links of directories at all.
                is_removed=bool(what & _NO_LINKS) and _is_unlinked(received[0]),
                owner=owner,
            )
        finally:
            close_all(received)

    async def mount(self, fstype: str, options: str, attributes: int) -> Mounted:
        """Mount at the target.

        Raises:
            Refused: the system does not.
        """
        body = f"{fstype}\0{options}\0".encode()
        _, serial, result, value, fds = await self._ask(_MOUNT, value=attributes, body=body)
        if result < 0:
            close_all(fds)
            raise Refused(-result, at_target=True)
        return Mounted(serial, value, fds[0] if fds else -1)

    async def undo(self) -> None:
        """Take off what :meth:`mount` mounted, as long as nothing was mounted over it."""
        await self._simple(_UNDO)

    async def write_back(self) -> None:
        """Let dirty pages of mappings go to the target's server.

        Raises:
            Refused: what syncfs(2) said.
        """
        await self._simple(_WRITE_BACK)

    async def detach(self) -> None:
        """Take off what is on top at the target; who is inside stays inside.

        Raises:
            Refused: the system does not.
        """
        await self._simple(_DETACH)

    async def _simple(self, op: int) -> None:
        _, _, result, _, fds = await self._ask(op)
        close_all(fds)
        if result < 0:
            raise Refused(-result, at_target=True)

    def kill(self) -> None:
        """End it now: the instance is gone, and it may wait for what does not come."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Let it end, and reap it."""
        self._loop.unwatch(self._end.fileno())
        self._end.close()
        pid, self.pid = self.pid, 0
        if pid == 0:
            return
        # It ends at the end of file; no loop of ours waits in waitpid(2) for that.
        pidfd = os.pidfd_open(pid)
        ended: Future[None] = self._loop.future()
        self._loop.watch(pidfd, lambda: ended.set_result(None))
        try:
            await ended
        finally:
            self._loop.unwatch(pidfd)
            os.close(pidfd)
        os.waitpid(pid, 0)


def _is_unlinked(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}").endswith(" (deleted)")  # proc_pid_fd(5)
