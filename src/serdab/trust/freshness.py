# SPDX-License-Identifier: Apache-2.0
"""Freshness of the whole: whether a writable layer is the newest state that is known of it.

What the storage hands back may be authentic and old. Against that there are places it cannot reach:
the record in the state directory (``records``) and pins elsewhere (``pins``). Each is asked when a
volume is opened, and told as the volume goes on. Above: ``libos.storage`` (in fs servers).
Below: ``records``, ``pins``, ``sefs.volume``.

What is decided about a volume that was opened, per place::

    the place remembers              the volume is             decision
    -------------------              -------------             --------
    nothing of it                    any                       accepted, said once, remembered
    the same position                the same                  accepted
    an earlier position              later, of one history     accepted, remembered
    a later position                 older                     refused
    another history                  a fork                    refused
    another volume at this path      another                   refused
    that it was thrown away          back again                refused
    that it exists                   gone, or emptied          refused, never formatted anew
    a greater ``version_number``     any, under an older build refused

``open_watched`` is the way in: it opens a volume and decides before anybody reads from it.

1. ``accept_rollback`` turns a refusal into one line, and the state that was found into the one that
   is remembered. An emptied directory needs ``serdab reset``, a damaged record its file restored.
2. Told is what is durable already, never before. A crash in between leaves a place behind the
   volume, which is accepted; never in front of it.
3. RECORD: places are told of every checkpoint, the one that opens a session and the last one
   included. ENFORCE: of every commit too, before it is acknowledged; a place that fails takes the
   acknowledgement back. OFF: nobody is asked or told; the operator wanted it so, and signed it.
   Only the record's ``version_number`` is asked still: the OFF of an older build must not be what
   lets that build in.
4. After an older state was accepted, the next checkpoint gets a number above the history that was
   given up, so that this history is refused if it ever comes back.

Not covered: rolling back to a state of the same history that no place was told of yet (the commits
since the last checkpoint, unless ENFORCE); a fork that went on for more than one checkpoint on a
machine that shares no place with this one; whoever can write to the places themselves.
"""

from __future__ import annotations

import errno
import hmac
import logging
from typing import Final, Protocol, final

from serdab.errors import Error, FsError, MeasurementMismatch, RollbackError, UsageError
from serdab.keys import Key
from serdab.linux.dirfd import DirFd
from serdab.sefs.anchor import ANCHOR_NAME
from serdab.sefs.hostdir import Dir
from serdab.sefs.hostplace import open_place
from serdab.sefs.limits import DEFAULT_LIMITS, VolumeLimits
from serdab.sefs.position import Order, Position
from serdab.sefs.volume import Volume, open_volume_in
from serdab.structs import frozen
from serdab.trust import records
from serdab.trust.pins import Pin, PinCommand, PinFile
from serdab.vfs.layer import Layer

OFF: Final = "off"
RECORD: Final = "record"
ENFORCE: Final = "enforce"
ACCEPT_HINT: Final = (
    "bring the newer state back; if an old one was restored on purpose, `--accept-rollback` "
    "accepts it once"
)
OLDER_BUILD_HINT: Final = (
    "bring the newer build back, or build again with its version_number; if an older build was "
    "restored on purpose, `--accept-rollback` accepts it once"
)

log = logging.getLogger("serdab.freshness")


@frozen
class Watch:
    """How one volume is watched. ``expected_mac``: 16 or 32 bytes that its MAC starts with.

    ``version_number``: of the build that opens the volume. None: the volume is not bound to one
    product, so another build than the last one need not be an older one.
    """

    policy: str = OFF
    conf_mac: bytes = bytes(32)
    version_number: int | None = None
    accept_rollback: bool = False
    pin_file: str = ""
    pin_command: str = ""
    expected_mac: bytes = b""


@frozen
class Watched:
    """A volume that was admitted, and what the operator is to be told.

    ``guard`` is closed after the volume, whose last checkpoint it hears of.
    """

    volume: Volume
    guard: Guard
    notices: list[str]


class Home(Protocol):
    """The place of a volume: opened, or made, from a descriptor.

    ``path`` is the real one, by which it is remembered; nothing is opened by it.
    """

    path: str

    def find(self) -> Dir | None:
        """Open the directory; None if there is none."""
        ...

    def make(self) -> Dir:
        """Open the directory, made if it is missing."""
        ...


@final
class OpenedHome:
    """A place that is there, by its descriptor, which stays the caller's."""

    def __init__(self, directory: DirFd) -> None:
        self._directory = directory
        self.path = directory.real()

    def find(self) -> Dir:
        """See :class:`Home`."""
        return open_place(self._directory)

    make = find


def open_watched(
    home: Home,
    watch: Watch,
    *,
    key: Key,
    lower: Layer | None = None,
    source: bytes = b"{}",
    read_only: bool = False,
    limits: VolumeLimits = DEFAULT_LIMITS,
) -> Watched:
    """Open the volume in a host directory, or begin a new one, and watch over it.

    A volume that is refused is left as it was found.

    Raises:
        Error: as ``sefs.volume.open_volume`` and :meth:`Guard.admit` say.
    """
    guard = Guard(home.path, watch)
    directory = home.find()
    try:
        guard.check_existence(directory)
        if directory is None:
            if read_only:
                raise UsageError("no such host directory", subject=home.path)
            directory = home.make()
    except BaseException:
        if directory is not None:
            directory.close()
        raise
    volume = open_volume_in(
        directory,
        key=key,
        lower=lower,
        create=not read_only,
        read_only=read_only,
        source=source,
        limits=limits,
    )
    try:
        return Watched(volume, guard, guard.admit(volume))
    except BaseException:
        volume.abandon()
        guard.close()
        raise


def refusal_of(
    path: str, policy: str, volume: Volume | None, *, version_number: int | None = None
) -> RollbackError | None:
    """Return why a boot on this machine would refuse what lies in a host directory as rolled back.

    ``path`` is the real one. ``volume``: opened for reading; ``None`` where there is none.
    ``version_number``: of the build that would boot, None if that is nobody's in particular.
    Nothing is remembered. Pins are named at a boot only, so they are not asked.

    Raises:
        VerificationError: the record cannot be read.
    """
    guard = Guard(path, Watch(policy, version_number=version_number))
    try:
        if volume is None:
            guard.check_existence()
        else:
            guard.admit(volume)
    except RollbackError as exc:
        return exc
    return None


@final
class Guard:
    """Watches over one volume from before it is opened until the process ends, or ``close``.

    ``path`` is the real one (:class:`Home`).
    """

    def __init__(self, path: str, watch: Watch) -> None:
        self._path = path
        self._watch = watch
        self._pins: list[Pin] = []
        if watch.policy != OFF:
            if watch.pin_file:
                self._pins.append(PinFile(watch.pin_file))
            if watch.pin_command:
                self._pins.append(PinCommand(watch.pin_command))
        self._lock: records.RecordLock | None = None
        self._volume: Volume | None = None
        self._floor = 0
        self._version_number = 0 if watch.version_number is None else watch.version_number
        self._told_epoch = -1
        self._path_is_noted = False

    def check_existence(self, directory: Dir | None = None) -> None:
        """Refuse a directory without a volume where one was before.

        ``directory``: what is there, open; None where there is no volume.

        Raises:
            RollbackError: refused.
            VerificationError: the record cannot be read.
        """
        if self._watch.policy == OFF:
            return
        if directory is not None and ANCHOR_NAME in directory.names():
            return
        uuid = records.volume_at(self._path)
        if uuid is None:
            return
        record = records.load_record(uuid)
        known = f", {record.position}" if record else ""
        raise RollbackError(
            "an emptied writable layer is not a new one",
            subject=self._path,
            expected=f"volume {uuid.hex()}{known}",
            found="no volume",
            hint="restore it, or give up what was written, so that a new one may begin: `serdab "
            "reset`, or for a volume that programs mount `serdab reset --volume DIR`; if the path "
            "is another place, as in each container, give each its own XDG_STATE_HOME",
        )

    def admit(self, volume: Volume) -> list[str]:
        """Decide about a volume that was just opened; return lines for the operator.

        From here on the places hear of what becomes durable.

        Raises:
            RollbackError: a place remembers a newer state, or another one.
            MeasurementMismatch: it is not in the expected state.
            BusyError: a copy of it is in use.
            Error: a place cannot be read or written.
        """
        self._check_expected(volume)
        position = volume.position
        if self._watch.policy == OFF:
            if position is None or self._watch.version_number is None:
                return []
            record = records.load_record(position.uuid)
            return [] if record is None else self._check_build(record)
        self._volume = volume
        lines = self._admit_new() if position is None else self._admit_known(volume, position)
        if not volume.read_only:
            if position is not None and self._told_epoch < 0:
                self._remember_found(volume)
            volume.history.on_durable = self._tell
        return lines

    def close(self) -> None:
        """Let others watch over the volume."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _remember_found(self, volume: Volume) -> None:
        """Tell the places of a state that is new to one of them.

        What was found may be in the host's memory only: the session that wrote it was killed before
        its flush, and a power cut would take it away. So it is made durable before it is told.
        """
        try:
            volume.commit()
        except FsError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            return  # no room for a checkpoint: it is told with the first one that succeeds
        position = volume.position
        if position is not None:
            self._put(position)

    # Deciding -------------------------------------------------------------------------------

    def _check_expected(self, volume: Volume) -> None:
        expected = self._watch.expected_mac
        if not expected:
            return
        is_new = volume.position is None
        found = volume.durable_mac
        if is_new or not hmac.compare_digest(expected, found[: len(expected)]):
            raise MeasurementMismatch(
                "the writable layer is not in the expected state",
                subject=self._path,
                expected=f"MAC {expected.hex()}",
                found="an empty writable layer" if is_new else f"MAC {found.hex()}",
                hint="an older or a newer state than the one that was noted down",
            )

    def _admit_new(self) -> list[str]:
        lines = []
        for pin in self._pins:
            pinned = pin.get_any()
            if pinned is None:
                continue
            lines.append(
                self._object(
                    "an emptied writable layer is not a new one",
                    subject=pin.label,
                    expected=f"volume {pinned.uuid.hex()}, {pinned}",
                    found="no volume",
                )
            )
        return lines

    def _admit_known(self, volume: Volume, position: Position) -> list[str]:
        # First of all: the lock leaves a directory, also of a volume that is refused here.
        lines = self._check_path(position)
        if not volume.read_only:
            # Readers share a volume: many writable layers over one lower layer, at the same time.
            self._lock = records.RecordLock(position.uuid)
        is_news = bool(lines)
        record = records.load_record(position.uuid)
        if record is None:
            lines.append(_unchecked("record on this machine", volume, position))
            is_news = True
        else:
            found = self._check_build(record) + self._check_record(volume, position, record)
            lines += found
            is_news |= bool(found) or record.position != position
            is_news |= record.version_number != self._version_number
        for pin in self._pins:
            found, pinned = self._check_pin(volume, position, pin)
            lines += found
            is_news |= bool(found) or pinned != position
        if not is_news:
            self._told_epoch = position.epoch
        return lines

    def _check_path(self, position: Position) -> list[str]:
        known = records.volume_at(self._path)
        if known is None or known == position.uuid:
            return []
        return [
            self._object(
                "another volume lies where one is remembered",
                subject=self._path,
                expected=f"volume {known.hex()}",
                found=f"volume {position.uuid.hex()}",
            )
        ]

    def _check_build(self, record: records.Record) -> list[str]:
        ours, known = self._watch.version_number, record.version_number
        if ours is None:
            self._version_number = known
        elif ours < known:
            return [
                self._object(
                    "an older build than the newest that used this writable layer",
                    subject=self._path,
                    expected=f"version_number {known} or greater",
                    found=f"version_number {ours}",
                    hint=OLDER_BUILD_HINT,
                )
            ]
        return []

    def _check_record(
        self, volume: Volume, position: Position, record: records.Record
    ) -> list[str]:
        self._floor = record.floor
        lines = []
        if record.discarded:
            lines.append(
                self._object(
                    "a writable layer that was thrown away is back",
                    subject=self._path,
                    expected="a new volume, after `serdab reset`",
                    found=f"volume {position.uuid.hex()}, {position}",
                )
            )
        elif record.position.epoch < position.epoch <= record.floor:
            lines.append(
                self._object(
                    "a history that was given up for an older one is back",
                    subject=self._path,
                    expected=str(record.position),
                    found=str(position),
                )
            )
        else:
            lines += self._compare(volume, position, record.position, "record")
        if lines:
            self._floor = max(self._floor, record.position.epoch)
        elif record.conf_mac != self._watch.conf_mac:
            lines.append(
                f"the writable layer is used under another configuration than before: conf-mac "
                f"{self._watch.conf_mac.hex()}, before {record.conf_mac.hex()}"
            )
        volume.history.begin_above(self._floor)
        return lines

    def _check_pin(
        self, volume: Volume, position: Position, pin: Pin
    ) -> tuple[list[str], Position | None]:
        try:
            pinned = pin.get(position.uuid)
        except RollbackError as exc:
            if not self._watch.accept_rollback:
                exc.hint = exc.hint or ACCEPT_HINT
                raise
            return [_accepted(exc)], None
        if pinned is None:
            return [_unchecked(pin.label, volume, position)], None
        lines = self._compare(volume, position, pinned, pin.label)
        if lines:
            self._floor = max(self._floor, pinned.epoch)
            volume.history.begin_above(self._floor)
        return lines, pinned

    def _compare(
        self, volume: Volume, position: Position, trusted: Position, label: str
    ) -> list[str]:
        order = position.order(trusted)
        if order is Order.NEWER and volume.contradicts(trusted):
            order = Order.FORK
        if order in (Order.SAME, Order.NEWER):
            return []
        return [
            self._object(
                f"the writable layer is in {order.value} than the {label} names",
                subject=self._path,
                expected=str(trusted),
                found=str(position),
            )
        ]

    def _object(
        self, message: str, *, subject: str, expected: str, found: str, hint: str = ACCEPT_HINT
    ) -> str:
        """Refuse, or return the line that says what was accepted."""
        error = RollbackError(message, subject=subject, expected=expected, found=found, hint=hint)
        if not self._watch.accept_rollback:
            raise error
        return _accepted(error)

    # Telling --------------------------------------------------------------------------------

    def _tell(self, position: Position) -> None:
        enforced = self._watch.policy == ENFORCE
        if position.epoch == self._told_epoch and not enforced:
            return
        try:
            self._put(position)
        except (OSError, Error) as exc:
            if enforced:
                raise
            # What was told before is still true; the next checkpoint tries again.
            log.error("the state of the writable layer was not recorded: %s", exc)  # noqa: TRY400

    def _put(self, position: Position) -> None:
        volume = self._volume
        if volume is None:
            return
        if self._lock is None:
            self._lock = records.RecordLock(position.uuid)
        if position.epoch > self._floor:
            self._floor = 0
        records.store_record(
            records.Record(
                position,
                root_mac=volume.durable_mac,
                conf_mac=self._watch.conf_mac,
                path=records.shown(self._path),
                floor=self._floor,
                version_number=self._version_number,
            )
        )
        if not self._path_is_noted:
            if records.volume_at(self._path) != position.uuid:
                records.remember_path(self._path, position.uuid)
            self._path_is_noted = True
        for pin in self._pins:
            pin.put(position)
        self._told_epoch = position.epoch
        log.info("remembered: %s, MAC %s", position, volume.durable_mac.hex())


def _accepted(error: RollbackError) -> str:
    return f"accepted as asked (--accept-rollback): {error}"


def _unchecked(place: str, volume: Volume, position: Position) -> str:
    line = (
        f"no {place} of this writable layer yet: whether it is the newest state ({position}) is "
        "unchecked this time"
    )
    return line if volume.read_only else f"{line}; it is remembered from now on"
