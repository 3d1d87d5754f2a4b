# SPDX-License-Identifier: Apache-2.0
"""What the kernel process starts before it imports the rest of itself.

Above: ``kernel``. Below: ``interpreter``, ``channel``. The nursery of fs servers and the launcher
take their time to get ready; neither holds a secret, and neither acts before it is told to. So they
are started first of all, and get ready while the kernel process does. Nothing here imports what it
does not need.
"""

from __future__ import annotations

import _socket
import os
import sys

from serdab.errors import EnvironmentRefused
from serdab.libos.channel import Channel, socket_pair
from serdab.libos.interpreter import CHANNEL_FD, PYTHON_IGNORES, start_python
from serdab.linux.process import sealed_file


class Nursery:
    """Makes fs servers. Runs in a session of its own: what kills the caller's process group must
    not keep a server from writing the last pages and closing its volume."""

    __slots__ = ("_channel", "_pid")

    def __init__(self, path: list[str]) -> None:
        ours, theirs = socket_pair()
        try:
            self._pid = start_python(
                "serdab.libos.nursery",
                theirs.fileno(),
                path=path,
                cache=sys.pycache_prefix or "",
                new_session=True,
            )
        finally:
            theirs.close()
        self._channel = Channel(ours)

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
        os.waitpid(self._pid, 0)


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


class Early:
    """Both of them, and the time to come."""

    __slots__ = ("launcher", "nursery")

    def __init__(self, path: list[str]) -> None:
        self.nursery = Nursery(path)
        self.launcher = Started()


def main(fd: int, path: list[str]) -> None:
    """Run the kernel process whose control channel is ``fd``; code comes from ``path``."""
    os.closerange(fd + 1, 65536)
    os.chdir("/")  # the caller's directory, and the mount it lies on, are not ours to hold
    os.set_inheritable(fd, False)
    channel = Channel(_socket.socket(fileno=fd))
    early: Early | EnvironmentRefused
    try:
        early = Early(path)
    except EnvironmentRefused as exc:
        early = exc
    from serdab.libos.kernel import run

    run(channel, early)
