# SPDX-License-Identifier: Apache-2.0
"""What a service, its starter and its clients say to each other. Pure.

Above: ``server``, ``starter``, ``client``. Below: ``libos.messages`` (how records travel). All
ends ship together, but a service may be older than its client: the first record names the version
of the conversation, and another one is refused.

The conversation, each line a record with descriptors in brackets::

    server: hello {version, state, pid, names}            names: what the environment may bring
    client: terminal {}                                   optional
    server: terminal {} [master side]                     or refused
    client: exec {argv, env, umask, terminal} [0, 1, 2]
    server: started {}                                    or refused
    client: signal {signal, group}                        any number
    server: stopped {signal}                              any number; only with a terminal
    server: exited {status}

    client: status {}            server: status {...}
    client: stop {patience_ms}   server: down {problems}, when everything is durable

A client that goes away hangs up on its program.
"""

from __future__ import annotations

from collections.abc import Mapping

from serdab.errors import Error, FormatError
from serdab.libos.fields import byte_strings, flag, many, number, optional_text, text
from serdab.libos.messages import Value
from serdab.libos.request import NOTHING_PINNED, Freshness
from serdab.structs import frozen

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final

VERSION: Final = 1

STARTING: Final = "starting"
RUNNING: Final = "running"
STOPPING: Final = "stopping"


@frozen
class StartRequest:
    """What ``start`` asks the new process for. ``instance`` is absolute.

    ``environment`` is init's, ``NAME=value``. ``private`` are paths that are never shown inside.
    The image key is not in it: ``has_key`` says that a pipe with it travels beside, for the kernel
    process to read, so that the service never has it in its memory.
    """

    instance: str
    environment: tuple[bytes, ...]
    umask: int
    has_key: bool = False
    private: tuple[str, ...] = ()
    expect_signer: str | None = None
    expect_root: str | None = None
    previous: bool = False
    freshness: Freshness = NOTHING_PINNED

    def dump(self) -> dict[str, Value]:
        """Return the record."""
        return {
            "op": "start",
            "instance": self.instance,
            "environment": list(self.environment),
            "umask": self.umask,
            "has_key": self.has_key,
            "private": list(self.private),
            "expect_signer": self.expect_signer,
            "expect_root": self.expect_root,
            "previous": self.previous,
            **self.freshness.dump(),
        }

    @classmethod
    def parse(cls, record: Mapping[str, Value]) -> StartRequest:
        """Return the request in a record.

        Raises:
            FormatError: it is not what :meth:`dump` makes.
        """
        return cls(
            instance=text(record, "instance"),
            environment=byte_strings(record, "environment"),
            umask=number(record, "umask"),
            has_key=flag(record, "has_key"),
            private=tuple(str(item) for item in many(record, "private")),
            expect_signer=optional_text(record, "expect_signer"),
            expect_root=optional_text(record, "expect_root"),
            previous=flag(record, "previous"),
            freshness=Freshness.parse(record),
        )


@frozen
class ExecRequest:
    """A program to start. ``terminal``: which of the three descriptors is it (-1: none)."""

    argv: tuple[bytes, ...]
    environment: tuple[bytes, ...]
    umask: int
    terminal: int = -1

    def dump(self) -> dict[str, Value]:
        """Return the record; the three descriptors travel beside it."""
        return {
            "op": "exec",
            "argv": list(self.argv),
            "env": list(self.environment),
            "umask": self.umask,
            "terminal": self.terminal,
        }

    @classmethod
    def parse(cls, record: Mapping[str, Value]) -> ExecRequest:
        """Return the request in a record.

        Raises:
            FormatError: it is not what :meth:`dump` makes.
        """
        request = cls(
            byte_strings(record, "argv"),
            byte_strings(record, "env"),
            number(record, "umask"),
            number(record, "terminal"),
        )
        if not request.argv or not -1 <= request.terminal <= 2 or not 0 <= request.umask <= 0o777:
            raise FormatError("a request to start a program is out of bounds")
        return request


@frozen
class Hello:
    """How a server greets: its state, and the names of the environment that may be sent."""

    state: str
    pid: int
    names: tuple[str, ...]

    def dump(self) -> dict[str, Value]:
        """Return the record."""
        return {
            "op": "hello",
            "version": VERSION,
            "state": self.state,
            "pid": self.pid,
            "names": list(self.names),
        }

    @classmethod
    def parse(cls, record: Mapping[str, Value]) -> Hello:
        """Return the greeting in a record.

        Raises:
            Error: the server speaks another version.
            FormatError: it is no greeting.
        """
        if record.get("op") != "hello":
            raise FormatError("a service did not greet")
        if record.get("version") != VERSION:
            raise Error(
                "the service is of another version of Serdab",
                expected=f"protocol {VERSION}",
                found=f"protocol {record.get('version')}",
                hint="stop it with the Serdab that started it, or send SIGTERM to process "
                f"{record.get('pid')}",
            )
        names = tuple(str(name) for name in many(record, "names"))
        return cls(text(record, "state"), number(record, "pid"), names)
