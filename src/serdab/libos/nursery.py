# SPDX-License-Identifier: Apache-2.0
"""The nursery: a process that has imported what fs servers need, and forks one when asked.

Above: ``early`` (forks it), nothing (``renewal`` has it executed). Below: ``fsserver``.

Importing takes ten times as long as everything else an fs server does before it serves. Here it is
done once, while the kernel process verifies; each file system, also one that a program mounts
later, then costs a fork.

Security: a server inherits nothing from it. The nursery never holds a key, a file of an instance
or a descriptor of ``/dev/fuse``; the only descriptors in it are its own channel and, for a moment,
the channel of the next server, which the server alone keeps. It is non-dumpable before the first
fork, and so are its children from their first instruction on.
"""

from __future__ import annotations

import _socket
import gc
import os
import signal
from typing import NoReturn

from serdab.libos.channel import Channel, close_all
from serdab.libos.fsserver import import_early, serve
from serdab.libos.limits import join
from serdab.linux.process import forbid_core, hide_memory, name_process


def begin(fd: int) -> NoReturn:
    """Be the nursery whose channel is ``fd``, in a fork, which has no other file of its own open.

    It has a session of its own: what kills the caller's process group must not keep its servers
    from writing the last pages and closing their volumes.
    """
    try:
        os.setsid()
        main(fd, [])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(1)  # whatever happens: what called us goes on in the kernel process alone


def main(fd: int, _path: list[str]) -> None:
    """Run the nursery whose channel is ``fd``; it does not return."""
    os.closerange(fd + 1, 65536)
    os.chdir("/")  # the caller's directory, and the mount it lies on, are not ours to hold
    os.set_inheritable(fd, False)
    os.umask(os.umask(0o077) & 0o077)  # what is written must be ours to open again
    hide_memory()
    forbid_core()
    name_process("serdab-nursery")
    channel = Channel(_socket.socket(fileno=fd))
    # Nobody waits for a server: its end is the end of its channel.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    import_early()
    gc.freeze()
    while (message := channel.receive()) is not None:
        record, fds = message
        if record.get("op") == "join":
            join(fds)
        elif len(fds) == 1 and os.fork() == 0:
            channel.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            serve(fds[0])
        close_all(fds)
    os._exit(0)
