# SPDX-License-Identifier: Apache-2.0
"""What is started before everything else: the processes of an instance, and its launcher.

Above: ``pal``, ``kernel``. Below: ``interpreter``, ``channel``. The kernel process and the nursery
of fs servers take their time to import themselves, the launcher its time to make namespaces. None
of them holds a secret, and none acts before it is told to. So they are started first of all, and
get ready while their callers do. Nothing here imports what it does not need.
"""

from __future__ import annotations

import _socket
import os

from serdab.config.dirs import cache_dir, make_private
from serdab.errors import EnvironmentRefused
from serdab.libos.channel import Channel, socket_pair
from serdab.libos.interpreter import CHANNEL_FD, PYTHON_IGNORES, import_path, start_python
from serdab.linux.process import hide_memory, sealed_file
from serdab.trust.codetree import code_hash


class Nursery:
    """The kernel process's end of the nursery, which makes fs servers."""

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def new_server(self) -> _socket.socket:
        """Return our end of a new server's channel."""
        ours, theirs = socket_pair()
        try:
            self._channel.send({"op": "fork"}, (theirs.fileno(),))
        except OSError:
            pass  # it is gone: the end of the new channel, which nobody holds, will say so
        finally:
            theirs.close()
        return ours

    def close(self) -> None:
        """Let it go; its servers live on."""
        self._channel.close()


class Started:
    """A launcher on its way; ``starter`` is to be waited for after its first message."""

    __slots__ = ("end", "starter")

    def __init__(self) -> None:
        self.end, inner = socket_pair()
        file = launcher_file()
        try:
            self.starter = os.posix_spawn(
                f"/proc/self/fd/{file}",
                ["serdab-launcher"],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, inner.fileno(), CHANNEL_FD),
                ],
                setsigmask=[],
                setsigdef=PYTHON_IGNORES,
            )
        finally:
            os.close(file)
            inner.close()


def launcher_file() -> int:
    """Return the launcher as a sealed file in memory.

    Raises:
        EnvironmentRefused: there is none for this processor.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    machine = os.uname().machine
    path = os.path.join(root, "init", "bin", machine, "launcher")
    try:
        with open(path, "rb", buffering=0) as file:
            return sealed_file("launcher", file.read(), executable=True)
    except FileNotFoundError:
        raise EnvironmentRefused(
            "there is no launcher for this processor",
            stage="sandbox",
            expected="x86_64",
            found=machine,
        ) from None


class Begun:
    """The processes of an instance that is about to boot: children of the caller.

    ``end`` is the caller's end of the kernel process's control channel. The nursery has a session
    of its own: what kills the caller's process group must not keep its servers from writing the
    last pages and closing their volumes.
    """

    __slots__ = ("_pids", "end")

    def __init__(self) -> None:
        _fill_standard_streams()
        path, cache = import_path(), byte_code_cache()
        pids: list[int] = []
        ours, theirs = socket_pair()
        kernel_end, nursery_end = socket_pair()
        try:
            # The nursery first: it has the longest way to go.
            pids.append(
                start_python(
                    "serdab.libos.nursery",
                    nursery_end.fileno(),
                    path=path,
                    cache=cache,
                    new_session=True,
                )
            )
            pids.append(
                start_python(
                    "serdab.libos.early",
                    theirs.fileno(),
                    path=path,
                    cache=cache,
                    second=kernel_end.fileno(),
                )
            )
        finally:
            for end in (theirs, kernel_end, nursery_end):
                end.close()
            self._pids = pids
        self.end = ours

    def wait(self) -> None:
        """Wait until both processes have ended; they do when the channel is closed, or before."""
        for pid in self._pids:
            os.waitpid(pid, 0)
        self._pids = []

    def abandon(self) -> None:
        """End them before anything was booted; harmless afterwards."""
        self.end.close()
        self.wait()


def _fill_standard_streams() -> None:
    """Open /dev/null where a standard stream is closed, or a socket of ours would become one."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)  # takes the lowest number that is free


def byte_code_cache() -> str:
    """Return where our own processes keep byte code: a directory that is this code's alone."""
    base = make_private(os.path.join(cache_dir(), "pyc"))
    mine = os.path.join(base, code_hash().hex()[:32])
    if not os.path.isdir(mine):
        import shutil

        # What older code left is of no use any more.
        for entry in os.scandir(base):
            shutil.rmtree(entry.path, ignore_errors=True)
        make_private(mine)
    return mine


class Early:
    """What the kernel process has before it imports the rest of itself."""

    __slots__ = ("launcher", "nursery")

    def __init__(self, nursery_fd: int) -> None:
        self.nursery = Nursery(Channel(_socket.socket(fileno=nursery_fd)))
        self.launcher = Started()


def main(fd: int, _path: list[str]) -> None:
    """Run the kernel process: its control channel is ``fd``, the nursery's the one after it."""
    os.closerange(fd + 2, 65536)
    os.chdir("/")  # the caller's directory, and the mount it lies on, are not ours to hold
    for inherited in (fd, fd + 1):
        os.set_inheritable(inherited, False)
    channel = Channel(_socket.socket(fileno=fd))
    early: Early | EnvironmentRefused
    try:
        early = Early(fd + 1)
    except EnvironmentRefused as exc:
        early = exc
    # After the launcher was started, which must not wait for this; the first message, which may
    # hold a key, is read later.
    hide_memory()
    from serdab.libos.kernel import run

    run(channel, early)
