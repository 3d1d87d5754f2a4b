# SPDX-License-Identifier: Apache-2.0
"""What the kernel process is asked to boot: one value, dumped by ``pal``, parsed by ``kernel``.

The bytes of descriptor and configuration are as they were read: nothing about them is checked yet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from serdab.errors import FormatError, UsageError
from serdab.keys import KEY_BYTES, Key
from serdab.libos.fields import (
    byte_strings,
    flag,
    many,
    number,
    optional_raw,
    optional_text,
    raw,
    text,
)
from serdab.libos.messages import Value
from serdab.structs import frozen, replace

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported yet
if TYPE_CHECKING:
    from typing import Final


@frozen
class Freshness:
    """What the caller wants of the writable layer's freshness, beside the measured policy.

    ``accept_rollback``: another state than the remembered one is accepted, once. ``pin_file`` and
    ``pin_command`` are paths of pins elsewhere (``trust.pins``). ``expect_upper`` is the
    MAC that the writable layer must have, as text.
    """

    accept_rollback: bool = False
    pin_file: str | None = None
    pin_command: str | None = None
    expect_upper: str | None = None

    def dump(self) -> dict[str, Value]:
        """Return its fields, as part of a request."""
        return {
            "accept_rollback": self.accept_rollback,
            "pin_file": self.pin_file,
            "pin_command": self.pin_command,
            "expect_upper": self.expect_upper,
        }

    @classmethod
    def parse(cls, record: Mapping[str, Value]) -> Freshness:
        """Return what is part of a request.

        Raises:
            FormatError: it is not what :meth:`dump` makes.
        """
        return cls(
            accept_rollback=flag(record, "accept_rollback"),
            pin_file=optional_text(record, "pin_file"),
            pin_command=optional_text(record, "pin_command"),
            expect_upper=optional_text(record, "expect_upper"),
        )

    def placed_outside(self, instance: str) -> Freshness:
        """Return it with absolute paths, all of them out of the reach of the instance's storage.

        Raises:
            UsageError: a pin would lie in the instance, or there is no such command.
        """
        file, command = self.pin_file, self.pin_command
        if file is not None:
            file = os.path.abspath(file)
        if command is not None:
            import shutil

            found = shutil.which(command)
            if found is None:
                raise UsageError(
                    "the pin command cannot be run",
                    subject="--pin-command",
                    expected="a program",
                    found=command,
                    hint="it is run as CMD get UUID and as CMD put UUID POSITION",
                )
            command = os.path.abspath(found)
        if file is None and command is None:
            return self
        from serdab.libos.pinplace import placed_outside

        return replace(
            self,
            pin_file=placed_outside(file, "--pin-file", instance),
            pin_command=placed_outside(command, "--pin-command", instance),
        )


#: No pin beside the record, and nothing older accepted.
NOTHING_PINNED: Final = Freshness()


def pipe_with_key(key: Key) -> int:
    """Return the reading end of a pipe with a key in it: to be read once, by whoever needs it."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.write(writer, key.raw())
    os.close(writer)
    return reader


def take_key(fd: int) -> bytes:
    """Return the key in the pipe, and close it.

    Raises:
        FormatError: there is none.
    """
    try:
        out = os.read(fd, KEY_BYTES + 1)
    finally:
        os.close(fd)
    if len(out) != KEY_BYTES:
        raise FormatError("a key did not arrive")
    return out


@frozen
class BootRequest:
    """One boot. Paths of the instance are relative to it; its descriptor travels beside this.

    ``previous`` holds images by their root MAC: the root FS is the one that the writable layer
    belongs to. ``private`` are paths that are never shown inside. ``terminal`` is the path of
    the caller's terminal, if it has one. ``lends_terminal`` and ``stands_for_program``: see
    ``jobs``.
    """

    instance: str
    descriptor: bytes
    config: bytes
    initfs: str
    rootfs: str
    private: tuple[str, ...]
    environment: tuple[bytes, ...]
    umask: int
    image_key: bytes | None = None
    expect_signer: str | None = None
    expect_root: str | None = None
    terminal: str | None = None
    previous: str | None = None
    freshness: Freshness = NOTHING_PINNED
    lends_terminal: bool = False
    stands_for_program: bool = False

    def __repr__(self) -> str:
        return f"BootRequest(instance={self.instance!r})"

    def dump(self) -> dict[str, Value]:
        """Return the record that travels to the kernel process."""
        return {
            "op": "boot",
            "instance": self.instance,
            "descriptor": self.descriptor,
            "config": self.config,
            "initfs": self.initfs,
            "rootfs": self.rootfs,
            "private": list(self.private),
            "environment": list(self.environment),
            "umask": self.umask,
            "image_key": self.image_key,
            "expect_signer": self.expect_signer,
            "expect_root": self.expect_root,
            "terminal": self.terminal,
            "previous": self.previous,
            "lends_terminal": self.lends_terminal,
            "stands_for_program": self.stands_for_program,
            **self.freshness.dump(),
        }

    @classmethod
    def parse(cls, record: Mapping[str, Value]) -> BootRequest:
        """Return the request in a record.

        Raises:
            FormatError: it is not what :meth:`dump` makes.
        """
        return cls(
            instance=text(record, "instance"),
            descriptor=raw(record, "descriptor"),
            config=raw(record, "config"),
            initfs=text(record, "initfs"),
            rootfs=text(record, "rootfs"),
            private=tuple(str(item) for item in many(record, "private")),
            environment=byte_strings(record, "environment"),
            umask=number(record, "umask"),
            image_key=optional_raw(record, "image_key"),
            expect_signer=optional_text(record, "expect_signer"),
            expect_root=optional_text(record, "expect_root"),
            terminal=optional_text(record, "terminal"),
            previous=optional_text(record, "previous"),
            freshness=Freshness.parse(record),
            lends_terminal=flag(record, "lends_terminal"),
            stands_for_program=flag(record, "stands_for_program"),
        )


def parse_mac(given: str | None, option: str) -> bytes:
    """Return 32 bytes, or the 16 of a hyphened prefix; nothing if none was given.

    Raises:
        UsageError: it is neither.
    """
    if given is None:
        return b""
    from serdab.keys import parse_hyphened
    from serdab.trust.measurement import Digest

    given = given.strip()
    try:
        return Digest.parse(given).value if "-" not in given else parse_hyphened(given, 16)
    except ValueError:
        raise UsageError(
            "not a MAC",
            stage="config",
            subject=option,
            expected="64 hexadecimal digits, or sixteen hyphened bytes as a prefix",
            found=f"{len(given)} characters",
            hint="copy the whole value, as `serdab print root-mac` shows one",
        ) from None
