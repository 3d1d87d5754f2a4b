# SPDX-License-Identifier: Apache-2.0
"""Pins elsewhere: a trusted file, or a command, that remembers how far a volume came.

For a machine that is not always the same one, or whose state directory is not trusted enough.
Above: ``freshness``. Below: ``sefs.position``.

On-disk format of a pin file: one line, ``uuid epoch commit chain`` (uuid and chain in hexadecimal).
It is replaced whole and durable, with its name, when ``put`` returns.

A pin command is run as ``CMD get UUID`` and prints ``epoch commit chain`` or, when it knows nothing
of the volume, nothing; and as ``CMD put UUID "epoch commit chain"``, after which it must have
stored that for good. Exit status 0 says that it did; everything else is a refusal. Its environment
holds HOME, PATH, XDG_* and SERDAB_*; it may take 30 seconds.
"""

from __future__ import annotations

import os
import stat
from typing import Final, Protocol, final

from serdab.errors import (
    EnvironmentRefused,
    Error,
    FormatError,
    RollbackError,
    VerificationError,
)
from serdab.linux.durable import write_durably
from serdab.sefs.position import UUID_BYTES, Position

_MAX_BYTES: Final = 4096
_PATIENCE_S: Final = 30.0


class Pin(Protocol):
    """A place that remembers positions."""

    label: str

    def get(self, uuid: bytes) -> Position | None:
        """Return the position that was stored last, or None.

        Raises:
            RollbackError: it remembers another volume.
            Error: the place cannot be asked, or holds something else.
        """
        ...

    def get_any(self) -> Position | None:
        """Return what the place holds of whatever volume, if it can tell; for a new volume."""
        ...

    def put(self, position: Position) -> None:
        """Store a position; durable on return.

        Raises:
            Error, OSError: it is not stored.
        """
        ...


@final
class PinFile:
    """One volume's pin in a file."""

    def __init__(self, path: str) -> None:
        # Links were followed when the path was judged (libos.pinplace), and never again.
        self._path = path
        self.label = f"pin file {path}"

    def get(self, uuid: bytes) -> Position | None:
        """See :class:`Pin`."""
        position = self.get_any()
        if position is not None and position.uuid != uuid:
            raise RollbackError(
                "the pin is that of another writable layer",
                subject=self.label,
                expected=f"volume {position.uuid.hex()}",
                found=f"volume {uuid.hex()}",
            )
        return position

    def get_any(self) -> Position | None:
        """See :class:`Pin`."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            with open(os.open(self._path, flags), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise _unreadable(self.label, "something else than a file")
                raw = file.read(_MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise _unreadable(self.label, os.strerror(exc.errno or 0)) from exc
        text = raw.decode("ascii", "replace")
        uuid, _, line = text.removesuffix("\n").partition(" ")
        try:
            if len(uuid) != 2 * UUID_BYTES or not text.endswith("\n"):
                raise FormatError("no uuid")
            return Position.parse(bytes.fromhex(uuid), line)
        except (FormatError, ValueError):
            raise _unreadable(self.label, repr(text[:80]) if text else "an empty file") from None

    def put(self, position: Position) -> None:
        """See :class:`Pin`."""
        write_durably(self._path, f"{position.uuid.hex()} {position.dump()}\n".encode("ascii"))


@final
class PinCommand:
    """A program of the operator's that keeps pins: a TPM, a key service, another machine."""

    def __init__(self, program: str) -> None:
        self._program = program
        self.label = f"pin command {program}"

    def get(self, uuid: bytes) -> Position | None:
        """See :class:`Pin`."""
        said = self._run("get", uuid.hex())
        line = said.removesuffix("\n")
        if not line:
            return None
        try:
            return Position.parse(uuid, line)
        except FormatError:
            raise _unreadable(self.label, repr(said[:80])) from None

    def get_any(self) -> Position | None:
        """Nothing: it can be asked for a known volume only."""
        return None

    def put(self, position: Position) -> None:
        """See :class:`Pin`."""
        self._run("put", position.uuid.hex(), position.dump())

    def _run(self, *arguments: str) -> str:
        import subprocess

        try:
            done = subprocess.run(
                [self._program, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PATIENCE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise self._failed(f"no answer within {_PATIENCE_S:.0f} s") from None
        except OSError as exc:
            raise self._failed(os.strerror(exc.errno or 0).lower()) from exc
        if done.returncode != 0:
            last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or [""])[-1]
            raise self._failed(f"exit status {done.returncode} {last[:200]}".strip())
        return done.stdout[:_MAX_BYTES].decode("ascii", "replace")

    def _failed(self, found: str) -> Error:
        return EnvironmentRefused(
            "the pin command failed",
            subject=self.label,
            expected="exit status 0",
            found=found,
            hint="it is run as CMD get UUID and as CMD put UUID POSITION",
        )


def _unreadable(label: str, found: str) -> Error:
    return VerificationError(
        "the pin cannot be read",
        subject=label,
        expected="one line with a position",
        found=found,
        hint="restore it; removing it gives up the memory of how far the volume came",
    )
