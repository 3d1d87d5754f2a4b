# SPDX-License-Identifier: Apache-2.0
"""What the kernel process has before it reads its first message: launcher and nursery.

Above: ``main``, ``kernel``. Below: ``interpreter``, ``channel``, ``nursery``. The launcher takes
its time to make namespaces, so it is started before the kernel process imports the rest of itself.
Neither holds a secret or acts before it is told to. Nothing here imports what it does not need.

The nursery is a fork of the kernel process at a moment when that has imported what both need, and
nothing was read from the control channel, which the nursery lets go. Modules are thus read once:
two thirds of what the two of them cost a processor.
"""

from __future__ import annotations

import _socket
import os
import signal

from serdab.errors import EnvironmentRefused
from serdab.libos.channel import Channel, socket_pair
from serdab.libos.interpreter import CHANNEL_FD, PYTHON_IGNORES, ignored_by_caller
from serdab.linux.autogroup import Autogroup
from serdab.linux.process import sealed_file

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from collections.abc import Callable


class Nursery:
    """The kernel process's end of the nursery, which makes fs servers.

    ``pid`` is its process id, a child of ours. ``renew`` is asked for another one, its channel and
    process id, where it has died.
    """

    __slots__ = ("_channel", "_pid", "renew")

    def __init__(self, channel: Channel, pid: int) -> None:
        self._channel = channel
        self._pid = pid
        self.renew: Callable[[], tuple[Channel, int] | None] = lambda: None

    def new_server(self) -> _socket.socket:
        """Return our end of a new server's channel."""
        ours, theirs = socket_pair()
        try:
            if not self._fork(theirs.fileno()) and self._replace():
                self._fork(theirs.fileno())
        finally:
            # Where nobody took it: the end of the channel, which nobody holds, will say so.
            theirs.close()
        return ours

    def join(self, group: list[int]) -> None:
        """Let it move to a control group, with the servers that it makes from now on."""
        if not group:
            return
        try:
            self._channel.send({"op": "join"}, tuple(group))
        except OSError:
            pass  # it has died: the next one is told

    def _fork(self, fd: int) -> bool:
        """Ask for a server; return False if the nursery has died."""
        try:
            self._channel.send({"op": "fork"}, (fd,))
        except (BrokenPipeError, ConnectionResetError):
            return False
        except OSError:
            pass  # no more descriptors can be sent: told by the end of the channel, too
        return True

    def _replace(self) -> bool:
        made = self.renew()
        if made is None:
            return False
        self.close()
        self._channel, self._pid = made
        return True

    def close(self) -> None:
        """Let it go; its servers live on."""
        self._channel.close()
        if self._pid:
            os.waitpid(self._pid, 0)  # it has nothing left to do, but for its own end
            self._pid = 0


def _fork_nursery(control_fd: int, launcher: Started, autogroup: Autogroup) -> Nursery:
    """Fork the nursery; in the new process this never returns.

    Raises:
        OSError: the system has no room for it.
    """
    ours, theirs = socket_pair()
    pid = os.fork()
    if pid == 0:
        # Of what it got it keeps its own end alone, at the number of the control channel.
        for end in (ours, launcher.end, autogroup):
            end.close()
        os.dup2(theirs.fileno(), control_fd, inheritable=False)
        theirs.close()

        from serdab.libos import nursery

        nursery.begin(control_fd)
    theirs.close()
    return Nursery(Channel(ours), pid)


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
                # Programs are stopped for want of the terminal, whoever ignores that: see ``jobs``.
                setsigdef={*PYTHON_IGNORES, signal.SIGTTIN, signal.SIGTTOU} - ignored_by_caller(),
                # It ends at once and pid 1 stays: in a group of its own, without a leader.
                setpgroup=0,
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
    """What the kernel process has before its first message; ``start_nursery`` completes it."""

    __slots__ = ("autogroup", "launcher", "nursery")

    def __init__(self) -> None:
        self.launcher = Started()
        self.autogroup = Autogroup()  # before our memory is hidden

    def start_nursery(self, control_fd: int) -> None:
        """Fork the nursery, where this never returns. Everything is to be imported by now.

        Raises:
            OSError: the system has no room for it.
        """
        self.nursery = _fork_nursery(control_fd, self.launcher, self.autogroup)
