# SPDX-License-Identifier: Apache-2.0
"""Commands forked from an interpreter that is ready: ``run_prepared``.

Starting an interpreter and importing is most of what a short command takes, and the suite runs
thousands. A prepared command is a process of its own, with the arguments, environment, directory,
streams, umask and user that it is given; what it does not have is a start of its own. So nothing
here is for tests about the start: whoever calls ``popen`` or has a prefix of their own starts an
interpreter, and with ``SERDAB_TEST_FRESH=1`` all do (``make soak``).
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Final

import pytest

_SERVER: Final = (Path(__file__).parent / "preparedserver.py").read_text()
_STATUS: Final = Path("/proc/self/status")
_FRESH: Final = os.environ.get("SERDAB_TEST_FRESH") == "1"
#: What the interpreter and the C library read when they start. Servers differ by it.
_READ_AT_START: Final = ("PYTHON", "LC_", "LANG", "TZ", "LD_", "MALLOC_", "GLIBC_", "SSL_")
#: A pipe takes so much with nobody reading (pipe(7): 65 536).
_STDIN_BYTES: Final = 65_536
#: How often a surrounding is seen before a server is worth its start.
_WORTH_IT: Final = 3

_Surrounding = tuple[str, ...]


class PreparedServers:
    """The servers of a session, by who runs them and what an interpreter reads at its start."""

    def __init__(self) -> None:
        self._servers: dict[_Surrounding, tuple[subprocess.Popen[bytes], socket.socket]] = {}
        self._seen: Counter[_Surrounding] = Counter()
        self.is_open = False

    def run(
        self,
        prefix: Sequence[str],
        args: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        stdin: bytes,
        timeout_s: float,
    ) -> subprocess.CompletedProcess[bytes] | None:
        """Return the finished process, or None where it needs an interpreter of its own.

        ``prefix`` is ``PYTHON -m serdab``, with setpriv(1) before it for another user. Raises
        ``subprocess.TimeoutExpired`` with the process killed, as ``subprocess.run`` does.
        """
        if _FRESH or not self.is_open or len(stdin) > _STDIN_BYTES:
            return None
        if tuple(prefix[-2:]) != ("-m", "serdab") or (prefix[:-3] and prefix[0] != "setpriv"):
            return None  # not the plain command: it begins with what it is about
        kept = sorted(f"{n}={v}" for n, v in env.items() if n.startswith(_READ_AT_START))
        surrounding = (*prefix, *kept)
        self._seen[surrounding] += 1
        if self._seen[surrounding] < _WORTH_IT:
            return None
        requests = self._server(surrounding, prefix, env)
        with ExitStack() as stack:
            ours, theirs = zip(*(_pipe(stack, write=n > 0) for n in range(3)), strict=True)
            answers, theirs_answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(answers)
            request = {"argv": list(args), "cwd": cwd, "env": dict(env), "umask": _umask()}
            with theirs_answers:
                socket.send_fds(
                    requests,
                    [json.dumps(request).encode()],
                    [*(stream.fileno() for stream in theirs), theirs_answers.fileno()],
                )
            for stream in theirs:
                stream.close()
            pid = int(answers.recv(64))
            with suppress(BrokenPipeError):  # it may have ended without reading
                ours[0].write(stdin)
            ours[0].close()
            argv = [*prefix, *args]
            out, err = _read_both(pid, ours[1], ours[2], argv, timeout_s)
            status = int(answers.recv(64))
        return subprocess.CompletedProcess(argv, os.waitstatus_to_exitcode(status), out, err)

    def _server(
        self, surrounding: _Surrounding, prefix: Sequence[str], env: Mapping[str, str]
    ) -> socket.socket:
        known = self._servers.get(surrounding)
        if known is not None and known[0].poll() is None:
            return known[1]
        if known is not None:
            known[1].close()  # ended with what a test that failed left behind
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [*prefix[:-2], "-c", _SERVER, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                cwd="/",
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._servers[surrounding] = process, ours
        return ours

    def close(self) -> None:
        """End every server; a command that still runs goes on."""
        self.is_open = False
        while self._servers:
            process, requests = self._servers.popitem()[1]
            requests.close()
            process.wait()


PREPARED: Final = PreparedServers()


def _umask() -> int:
    """Return ours without changing it, as umask(2) would, under other threads: proc(5)."""
    return int(_STATUS.read_text().partition("\nUmask:")[2].split(maxsplit=1)[0], 8)


def _pipe(stack: ExitStack, *, write: bool) -> tuple[IO[bytes], IO[bytes]]:
    """(our end, theirs); ``write``: they write."""
    reading, writing = os.pipe()
    reads = stack.enter_context(os.fdopen(reading, "rb", 0))
    writes = stack.enter_context(os.fdopen(writing, "wb", 0))
    return (reads, writes) if write else (writes, reads)


def _read_both(
    pid: int, out: IO[bytes], err: IO[bytes], argv: Sequence[str], timeout_s: float
) -> tuple[bytes, bytes]:
    said_out, said_err = bytearray(), bytearray()
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(out, selectors.EVENT_READ, said_out)
        selector.register(err, selectors.EVENT_READ, said_err)
        while selector.get_map():
            ready = selector.select(deadline - time.monotonic())
            if not ready and time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(argv, timeout_s, bytes(said_out), bytes(said_err))
            for key, _ in ready:
                part = os.read(key.fd, 1 << 16)
                key.data.extend(part)
                if not part:
                    selector.unregister(key.fileobj)
    return bytes(said_out), bytes(said_err)


@pytest.fixture(scope="session", autouse=True)
def _commands_are_prepared(_nothing_left_behind: None, _nonces_are_audited: None) -> Iterator[None]:
    """Have servers while tests run: they end before anybody looks for what was left behind."""
    PREPARED.is_open = True
    yield
    PREPARED.close()
