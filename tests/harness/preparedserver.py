# SPDX-License-Identifier: Apache-2.0
"""An interpreter that has imported Serdab and forks for each command: run as ``python -c``.

It stands alone: the interpreter of an ordinary user may be unable to read the tests. Argument 1 is
the number of a SOCK_SEQPACKET socket (unix(7)). A request is JSON (``argv``, ``cwd``, ``env``,
``umask``) with four descriptors: the standard streams of the command, and a socket to answer on:
its process id at once, and its wait status when it has ended. The socket's end is the end of the
server, and not of the commands.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import socket
import sys
import threading
from typing import Any

_REQUEST_BYTES = 1 << 20


def _import_everything() -> None:
    """Import what any verb may import; what is a program when imported is left out."""
    import serdab

    for found in pkgutil.walk_packages(serdab.__path__, "serdab."):
        if not found.name.endswith(("__main__", ".main")):
            importlib.import_module(found.name)
    importlib.import_module("serdab.cli.main")


def _begin(request: dict[str, Any], fds: list[int]) -> None:
    """In the child: become what ``python -m serdab`` is when its first line runs."""
    for target, fd in enumerate(fds[:3]):
        os.dup2(fd, target)
    os.closerange(3, 1 << 20)
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["env"])
    package = sys.modules["serdab"].__path__[0]
    sys.argv = [os.path.join(package, "__main__.py"), *request["argv"]]
    sys.orig_argv = [sys.executable, "-m", "serdab", *request["argv"]]
    sys.path.insert(0, request["cwd"])


def _run() -> int:
    try:
        code: int = sys.modules["serdab.cli.main"].main()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 0 if ending.code is None else 1
    return code


def _end(code: int) -> None:
    """End as an interpreter does that returns ``code``, but for taking every module apart."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120  # what the interpreter makes of it
    os._exit(code)


def _serve(requests: socket.socket) -> bool:
    """Serve until the socket ends; True: this is a child, which runs its command now."""
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready, _ in poll.poll():
            if ready in running:
                poll.unregister(ready)
                os.close(ready)
                pid, answers = running.pop(ready)
                _, status = os.waitpid(pid, 0)
                with answers, contextlib.suppress(BrokenPipeError):  # nobody waits any longer
                    answers.send(b"%d" % status, socket.MSG_NOSIGNAL)
                continue
            raw, fds, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 4)
            if not raw:
                return False
            pid = os.fork()
            if pid == 0:
                _begin(json.loads(raw), fds)
                return True
            for fd in fds[:3]:
                os.close(fd)
            answers = socket.socket(fileno=fds[3])
            with contextlib.suppress(BrokenPipeError):
                answers.send(b"%d" % pid, socket.MSG_NOSIGNAL)
            ended = os.pidfd_open(pid)
            running[ended] = pid, answers
            poll.register(ended, select.POLLIN)


if __name__ == "__main__":
    sys.path[:] = [place for place in sys.path if place]
    _import_everything()
    gc.freeze()  # what is never collected is never copied for a child
    if _serve(socket.socket(fileno=int(sys.argv[1]))):
        _end(_run())
