# SPDX-License-Identifier: Apache-2.0
"""The tree of errors: what a user may see, and the exit code each kind has.

::

    Error                      exit 1   base; ``str()`` is complete for the user
     + UsageError              exit 2   flags, configuration, paths the caller named
     + ImageError              exit 3   cannot be read as our format
     |   - FormatError                  bad magic, version, length, field
     + VerificationError       exit 3   refused: fail closed
     |   - AuthenticationError          a tag did not verify: tampering
     |   - MeasurementMismatch          a measurement is not the expected one
     |      - LayerMismatch             a writable layer belongs to another lower layer
     |   - SignerMismatch               signed by another key than the pinned one
     |   - RollbackError                older than the state that was recorded
     |   - ChainOrderError              a boot stage was entered out of turn
     + WrongKeyError           exit 4   the key does not open the volume
     + BusyError               exit 5   in use by another process
     + EnvironmentRefused      exit 6   this machine lacks something
     + NotRunningError         exit 1   the instance has no service
     + NoRoomError             exit 1   so many are there already
     + NotAllowedError         exit 126 an entry point refused, or not executable
     + NotFoundError           exit 127 the program does not exist

``FsError`` is an ``OSError`` that carries an errno to a program; it is made in ``vfs``, ``sefs``
and turned into a reply at the edge only. ``InternalError`` stands outside the tree: our bug.

Every refusal is an object: ``stage`` (where in the chain or which verb), ``subject`` (the object
refused), ``expected``, ``found`` and ``hint`` (how to mend it). The command line prints it as one
message; ``--json`` prints its fields.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Mapping

from serdab.characters import is_seen

_SHOWN_PART = 200  # characters at either end


class Error(Exception):
    """Base of everything a user may be told.

    ``message`` is lower case and specific. The keyword fields may be empty strings.
    """

    exit_code = 1
    kind = "error"

    def __init__(
        self,
        message: str,
        *,
        stage: str = "",
        subject: str = "",
        expected: str = "",
        found: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.stage = stage
        self.subject = subject
        self.expected = expected
        self.found = found
        self.hint = hint

    def __str__(self) -> str:
        head = f"{self.stage}: {self.message}" if self.stage else self.message
        if self.subject and self.subject not in head:
            head = f"{head}: {_shortened(self.subject)}"
        if self.expected or self.found:
            expected, found = _shortened(self.expected), _shortened(self.found)
            head = f"{head} (expected {expected or 'nothing'}, found {found or 'nothing'})"
        return head

    def as_dict(self) -> dict[str, str | int]:
        """Return the fields as plain values, for ``--json`` and for passing between processes."""
        return {
            "error": self.kind,
            "exit_code": self.exit_code,
            "message": self.message,
            "stage": self.stage,
            "subject": self.subject,
            "expected": self.expected,
            "found": self.found,
            "hint": self.hint,
        }


class UsageError(Error):
    """The caller's fault: flags, configuration, a missing file that the caller named."""

    exit_code = 2
    kind = "usage"


class ImageError(Error):
    """The bytes cannot be read as our format."""

    exit_code = 3
    kind = "image"


class FormatError(ImageError):
    """Bad magic, version, length or field."""

    kind = "format"


class VerificationError(Error):
    """Refused; nothing of what was checked may be used."""

    exit_code = 3
    kind = "verification"


class AuthenticationError(VerificationError):
    """A tag or a hash did not verify."""

    kind = "authentication"


class MeasurementMismatch(VerificationError):
    """A measurement is not the expected one."""

    kind = "measurement"


class LayerMismatch(MeasurementMismatch):
    """A writable layer belongs to another lower layer than the one given."""

    kind = "layer"


class SignerMismatch(VerificationError):
    """Signed by another key than the one that was pinned."""

    kind = "signer"


class RollbackError(VerificationError):
    """The state is older than one that was recorded."""

    kind = "rollback"


class ChainOrderError(VerificationError):
    """A boot stage was entered out of turn."""

    kind = "chain-order"


class WrongKeyError(Error):
    """The key does not open the volume."""

    exit_code = 4
    kind = "wrong-key"


class BusyError(Error):
    """In use by another process."""

    exit_code = 5
    kind = "busy"


class EnvironmentRefused(Error):
    """This machine lacks something that is needed."""

    exit_code = 6
    kind = "environment"


_SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.EFBIG))


def shortage_of(exc: BaseException) -> EnvironmentRefused | None:
    """Return what to say if ``exc`` is a limit that was met, None if it is something else."""
    if isinstance(exc, OSError):
        found = os.strerror(exc.errno) if exc.errno in _SHORTAGES else ""
    elif isinstance(exc, MemoryError):
        found = os.strerror(errno.ENOMEM)
    else:  # all that threading says of the EAGAIN it got
        found = str(exc) if str(exc) == "can't start new thread" else ""
    if not found:
        return None
    return EnvironmentRefused(
        "a limit was met",
        expected="files, processes and memory enough for an instance",
        found=found,
        hint="`ulimit -a` shows the limits of this shell",
    )


def fullness_of(exc: OSError, stage: str) -> EnvironmentRefused | None:
    """Return what to say if ``exc`` is a full disk or quota, None if it is something else."""
    if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    where = exc.filename2 or exc.filename or ""  # of a copy it is the target that has no room
    return EnvironmentRefused(
        "the host has no room",
        stage=stage,
        subject=os.fsdecode(where) if isinstance(where, str | bytes) else "",
        expected="room for what is written",
        found=os.strerror(exc.errno),
        hint="make room and do it again",
    )


def swap_of(exc: OSError) -> UsageError | None:
    """Return what to say if ``exc`` is a link or a file on a way, None if it is something else.

    What stood there before was judged, and its refusal has its own words: this came in between.
    """
    if exc.errno not in (errno.ELOOP, errno.ENOTDIR):
        return None
    return UsageError(
        "something was put in the way while this ran",
        subject=os.fsdecode(exc.filename) if isinstance(exc.filename, str | bytes) else "",
        expected="the directories and files of the instance to stay what they are",
        found=os.strerror(exc.errno),
        hint="no link is followed below an instance: see who writes there, and do it again",
    )


class NotRunningError(Error):
    """The instance is not running as a service."""

    kind = "not-running"


class NoRoomError(Error):
    """So many are there already as there may be."""

    kind = "no-room"


class NotAllowedError(Error):
    """A program that is not an entry point, or is not executable."""

    exit_code = 126
    kind = "not-allowed"


class NotFoundError(Error):
    """A program that does not exist in the root FS."""

    exit_code = 127
    kind = "not-found"


_strerror = functools.cache(os.strerror)


class FsError(OSError):
    """An errno on its way to a program."""

    def __init__(self, errno_: int, subject: str = "") -> None:
        # Raised for each absent name: strerror(3) would cost more than the rest.
        super().__init__(errno_, _strerror(errno_), subject or None)


class InternalError(Exception):
    """A defect in Serdab itself: printed with a request to report it."""


_BY_KIND: dict[str, type[Error]] = {}


def _index(cls: type[Error]) -> None:
    _BY_KIND[cls.kind] = cls
    for sub in cls.__subclasses__():
        _index(sub)


_index(Error)


def _shortened(text: str) -> str:
    """Return what a line has room for: a path may be as long as somebody likes."""
    if len(text) <= 2 * _SHOWN_PART + 100:
        return text
    return f"{text[:_SHOWN_PART]}[... {len(text)} characters ...]{text[-_SHOWN_PART:]}"


def printable(line: str) -> str:
    """Return a line with escapes for what could forge a second one, or speak to the terminal."""
    return "".join(
        character if is_seen(character) else character.encode("unicode_escape").decode()
        for character in line
    )


def from_dict(fields: Mapping[str, object]) -> Error:
    """Return the error that ``as_dict`` described (used between our own processes)."""
    cls = _BY_KIND.get(str(fields.get("error")), Error)
    text = {
        name: str(fields.get(name, ""))
        for name in ("stage", "subject", "expected", "found", "hint")
    }
    return cls(str(fields.get("message", "unknown error")), **text)
