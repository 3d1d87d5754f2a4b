# SPDX-License-Identifier: Apache-2.0
"""What this user's state directory remembers of each volume: that it exists, and how far it came.

A record lies where the storage of an instance cannot reach. It is found by the uuid of the volume,
and that by the host path, so that an emptied directory is not taken for a new one. A record that
cannot be read is a refusal, never "no record". Above: ``freshness``, ``instance.reset``.
Below: ``sefs.position``, ``config``.

Paths of volumes are real ones here, as the kernel gave them for an open directory, and are names:
nothing is looked up by them, since something else may lie there by now.

On-disk format (below ``volumes/`` in the state directory, canonical JSON, 0600)::

    <uuid>/record.json                  format 2, uuid, epoch, sequence, chain, root_mac, conf_mac,
                                        serdab (version), path, floor, discarded, version_number
    at-<SHA-256 of the real path>.json  format 1, path, uuid

``floor`` is the greatest epoch of a history that was given up for an older one: states up to there
that are newer than the record belong to it. ``discarded``: thrown away by ``reset``, must not come
back. ``version_number``: the greatest one of the builds that used it, or that of an older build
that was accepted since; format 1 had none, which is 0. Each file is replaced whole; ``<uuid>/`` is
locked while a session writes to the volume.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from typing import Final

from serdab.config.dirs import make_private, state_dir
from serdab.config.strict import Section, load_object
from serdab.errors import BusyError, Error, NoRoomError, VerificationError
from serdab.linux.durable import sync_directory, write_durably
from serdab.sefs.position import CHAIN_BYTES, UUID_BYTES, Position
from serdab.structs import frozen, replace
from serdab.version import VERSION

FORMAT: Final = 2
_NOTE_FORMAT: Final = 1
_MAX_VERSION_NUMBER: Final = (1 << 32) - 1
_RECORD: Final = "record.json"
_MAX_BYTES: Final = 1 << 16
_LOCK_PATIENCE_S: Final = 5.0
_LOCK_STEP_S: Final = 0.05
_HINT: Final = (
    "restore it from a backup; removing it gives up the memory of how far the volume came"
)


@frozen
class Record:
    """The newest state that this user's sessions made durable, and under which configuration."""

    position: Position
    root_mac: bytes
    conf_mac: bytes
    path: str
    floor: int = 0
    discarded: bool = False
    version_number: int = 0
    version: str = VERSION

    def dump(self) -> bytes:
        """Return the bytes of the file."""
        position = self.position
        return _dump(
            {
                "format": FORMAT,
                "uuid": position.uuid.hex(),
                "epoch": position.epoch,
                "sequence": position.sequence,
                "chain": position.chain.hex(),
                "root_mac": self.root_mac.hex(),
                "conf_mac": self.conf_mac.hex(),
                "serdab": self.version,
                "path": self.path,
                "floor": self.floor,
                "discarded": self.discarded,
                "version_number": self.version_number,
            }
        )


def shown(path: str) -> str:
    """Return a path as text that JSON can hold; for people, not for opening."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def load_record(uuid: bytes) -> Record | None:
    """Return the record of a volume, or None if this user never wrote to it.

    Raises:
        VerificationError: it is there and cannot be read.
    """
    file = os.path.join(_volume_dir(uuid), _RECORD)
    top = _load(file)
    if top is None:
        return None
    form = top.integer("format", low=1, high=FORMAT)
    record = Record(
        Position(
            top.hex_bytes("uuid", UUID_BYTES),
            top.integer("epoch"),
            top.integer("sequence"),
            top.hex_bytes("chain", CHAIN_BYTES),
        ),
        root_mac=top.hex_bytes("root_mac", 32),
        conf_mac=top.hex_bytes("conf_mac", 32),
        path=top.text("path"),
        floor=top.integer("floor"),
        discarded=top.flag("discarded"),
        version_number=top.integer("version_number", high=_MAX_VERSION_NUMBER) if form > 1 else 0,
        version=top.text("serdab"),
    )
    top.close()
    if record.position.uuid != uuid:
        raise top.refuse("uuid", uuid.hex(), record.position.uuid.hex())
    return record


def store_record(record: Record) -> None:
    """Replace the record of a volume; durable on return."""
    directory = make_private(_volume_dir(record.position.uuid))
    file = os.path.join(directory, _RECORD)
    if not os.path.lexists(file):
        sync_directory(os.path.dirname(directory))
    write_durably(file, record.dump())


def volume_at(path: str) -> bytes | None:
    """Return the uuid of the volume that was last used at a host path, or None.

    Raises:
        VerificationError: the note is there and cannot be read.
    """
    top = _load(_note(path))
    if top is None:
        return None
    top.integer("format", low=_NOTE_FORMAT, high=_NOTE_FORMAT)
    top.text("path")
    uuid = top.hex_bytes("uuid", UUID_BYTES)
    top.close()
    return uuid


def remember_path(path: str, uuid: bytes) -> None:
    """Note which volume lies at a host path; durable on return."""
    note = _note(path)
    make_private(os.path.dirname(note))
    value = {"format": _NOTE_FORMAT, "path": shown(path), "uuid": uuid.hex()}
    write_durably(note, _dump(value))


def forget_path(path: str) -> None:
    """Let the next volume at a host path be a new one; what lay there stays known by its uuid."""
    note = _note(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(note)
        sync_directory(os.path.dirname(note))


def forget_below(directory: str) -> None:
    """Forget the paths at and below a real directory, as ``forget_path`` does each.

    A note holds text, in which a name of raw bytes may read like another. What is in doubt stays
    remembered: a volume too many is a refusal, one too few would let an emptied one pass.
    """
    forget_path(directory)
    inside = os.path.join(directory, "")
    for path, note in _notes():
        if path.startswith(shown(inside)):
            rest = path.removeprefix(shown(inside))
            for below in {rest, _raw(rest)}:
                if note == _note(inside + below):
                    forget_path(inside + below)


def discard(path: str) -> bool:
    """Note that the volume at a host path was thrown away; return whether one was known.

    A copy of it that comes back later is refused: that would be a rollback too.
    """
    try:
        uuid = volume_at(path)
        record = load_record(uuid) if uuid is not None else None
    except VerificationError:
        # What cannot be read names no volume; the user gives it up.
        uuid, record = None, None
    if record is not None and record.path == shown(path):
        store_record(replace(record, discarded=True))
    known = os.path.lexists(_note(path))
    forget_path(path)
    return known


def known_below(directory: str) -> list[str]:
    """Return the paths below a directory where volumes are remembered."""
    inside = os.path.join(directory, "")
    return sorted(path for path, _note in _notes() if path.startswith(inside))


def check_room(path: str, roots: tuple[str, ...], most: int) -> None:
    """Refuse a host path where no volume is remembered, below roots where enough are.

    A recorded volume is never formatted again, so no record makes room for another. Mounts of one
    moment may exceed the number by as many as they are.

    Raises:
        NoRoomError: refused.
        VerificationError: the note of this path cannot be read.
    """
    if volume_at(path) is not None:
        return
    known = set().union(*map(known_below, roots))
    if len(known) >= most:
        raise NoRoomError(
            "there are as many volumes as this instance may have",
            subject=path,
            expected=f"at most {most} (serdab.runtime_mounts.max_volumes)",
            found=f"{len(known)} that are remembered",
            hint="`serdab reset --volume DIR` gives one up",
        )


class RecordLock:
    """Keeps other sessions off the record of one volume, such as one that writes to a copy."""

    def __init__(self, uuid: bytes) -> None:
        """Take the lock, waiting a moment for a session that is closing.

        Raises:
            BusyError: another session writes to this volume, or to a copy of it.
        """
        directory = make_private(_volume_dir(uuid))
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(_LOCK_STEP_S)
                    continue
                self.close()
                raise BusyError(
                    "a copy of this volume is in use by another process",
                    subject=f"volume {uuid.hex()}",
                    hint="two copies that are both written to become two histories, of which one "
                    "is refused afterwards; stop the other program first",
                ) from None
            return

    def close(self) -> None:
        """Let go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _volumes() -> str:
    return os.path.join(state_dir(), "volumes")


def _volume_dir(uuid: bytes) -> str:
    return os.path.join(_volumes(), uuid.hex())


def _note(real_path: str) -> str:
    name = hashlib.sha256(os.fsencode(real_path)).hexdigest()
    return os.path.join(_volumes(), f"at-{name}.json")


def _notes() -> Iterator[tuple[str, str]]:
    """Yield each path that is noted, as its note shows it, and the file; not what is unreadable."""
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(_volumes()):
            if not entry.name.startswith("at-"):
                continue
            with contextlib.suppress(VerificationError):
                top = _load(entry.path)
                if top is None:
                    continue
                top.integer("format", low=_NOTE_FORMAT, high=_NOTE_FORMAT)
                yield top.text("path"), entry.path


def _raw(text: str) -> str:
    """Return the name that ``shown`` gave, if each escape in it stands for a byte."""
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes.fromhex(m[1].decode()), text.encode())
    return os.fsdecode(raw)


def _dump(value: dict[str, object]) -> bytes:
    return json.dumps(value, sort_keys=True).encode("ascii") + b"\n"


def _load(file: str) -> Section | None:
    def fail(field: str, expected: str, found: str, hint: str) -> Error:
        return VerificationError(
            "the record of a writable layer is damaged",
            subject=file,
            expected=f"{field}: {expected}" if field else expected,
            found=found,
            hint=hint or _HINT,
        )

    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as stream:
            raw = stream.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise fail("", "a readable file", os.strerror(exc.errno or 0), "") from exc
    return load_object(raw, fail)
