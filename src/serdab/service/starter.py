# SPDX-License-Identifier: Apache-2.0
"""Brings a service up and returns when it is ready.

Above: ``cli.start``. Below: ``background`` (the process it executes), ``server`` (what it becomes
in the foreground).

The new process is executed, not forked: it inherits nothing but its end of a channel, so no pipe
of the caller stays open. It is a child only until this process has ended.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from serdab.config.boot import parse_boot_config
from serdab.errors import BusyError, Error, InternalError, from_dict
from serdab.instance.layout import PROTECTED_CONFIG, Instance
from serdab.keys import Key
from serdab.libos.bytecode import byte_code_cache
from serdab.libos.caller import current_umask
from serdab.libos.channel import Channel, socket_pair
from serdab.libos.interpreter import become_python, import_path, start_python
from serdab.libos.messages import Value
from serdab.libos.request import Freshness, pipe_with_key
from serdab.service import place
from serdab.service.client import ask_status
from serdab.service.protocol import StartRequest

Say = Callable[[str, str], None]


def refuse_second(instance: str, *, on_wait: Callable[[str], None]) -> None:
    """Check that the instance has no service yet; ``on_wait(line)`` hears if that takes long.

    Raises:
        BusyError: it has; the message names it.
    """
    status = ask_status(instance, on_wait=on_wait)
    if status is None:
        return
    raise BusyError(
        "the instance runs as a service already",
        stage="start",
        subject=os.path.realpath(instance),
        expected="no service",
        found=f"process {status.pid}, {status.state} since {status.since()}",
        hint="`serdab exec PROGRAM` runs a program in it, `serdab stop` ends it",
    )


def request_for(
    instance: str,
    *,
    has_key: bool,
    private: tuple[str, ...],
    expect_signer: str | None,
    expect_root: str | None,
    freshness: Freshness,
    previous: bool,
) -> StartRequest:
    """Return the request for an instance, with what init is to get of this process."""
    return StartRequest(
        os.path.realpath(instance),
        _environment(instance),
        current_umask(),
        has_key=has_key,
        private=private,
        expect_signer=expect_signer,
        expect_root=expect_root,
        previous=previous,
        freshness=freshness,
    )


def _environment(instance: str) -> tuple[bytes, ...]:
    """Return what the configuration asks of our environment.

    It is not verified yet, so it may ask for too much; but whoever it names the variables to is
    the kernel process, which passes on only what the verified one lists.
    """
    with Instance(instance) as place:
        config = parse_boot_config(place.read(PROTECTED_CONFIG))
    names = set(map(os.fsencode, config.env_untrusted))
    return tuple(name + b"=" + value for name, value in os.environb.items() if name in names)


def become(request: StartRequest, key: Key | None, *, level: str, as_json: bool) -> NoReturn:
    """Turn this process into the service, in the foreground: what it knew, the key, is gone."""
    ours, theirs = socket_pair()
    _ask(Channel(ours), {**request.dump(), "level": level, "json": as_json}, key)
    become_python(
        "serdab.cli.foreground",
        theirs.fileno(),
        path=import_path(),
        cache=byte_code_cache(),
        keep=("NOTIFY_SOCKET",),
    )


def _ask(channel: Channel, record: dict[str, Value], key: Key | None) -> None:
    if key is None:
        channel.send(record)
        return
    pipe = pipe_with_key(key)
    try:
        channel.send(record, (pipe,))
    finally:
        os.close(pipe)


def start(request: StartRequest, key: Key | None, say: Say) -> int:
    """Boot an instance in a process of its own; return its id when it is ready.

    ``say(level, line)`` hears what the operator is to know.

    Raises:
        Error: refused, as by ``run``.
    """
    refuse_second(request.instance, on_wait=lambda line: say("notice", line))
    ours, theirs = socket_pair()
    try:
        pid = start_python(
            "serdab.service.background",
            theirs.fileno(),
            path=import_path(),
            cache=byte_code_cache(),
            new_session=True,
        )
    finally:
        theirs.close()
    channel = Channel(ours)
    try:
        _ask(channel, request.dump(), key)
        while (message := channel.receive()) is not None:
            record, _ = message
            match record.get("op"):
                case "log":
                    say(str(record.get("level")), str(record.get("line")))
                case "output":
                    written = record.get("bytes")
                    sys.stderr.buffer.write(written if isinstance(written, bytes) else b"")
                    sys.stderr.buffer.flush()
                case "ready":
                    return pid
                case "failed":
                    _wait(pid)
                    raise from_dict(record)
                case "defect":
                    _wait(pid)
                    raise InternalError(str(record.get("trace")))
    finally:
        channel.close()
    _wait(pid)
    raise Error(
        "the service ended before it was ready",
        stage="start",
        subject=request.instance,
        hint=f"its log is {place.Place.of(request.instance).log}",
    )


def _wait(pid: int) -> None:
    """Wait until the process that failed has let go of everything."""
    os.waitpid(pid, 0)
