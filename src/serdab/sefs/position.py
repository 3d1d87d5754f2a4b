# SPDX-License-Identifier: Apache-2.0
"""Where in its history a volume stands, and which of two positions came first. No I/O.

Above: ``volume``, ``trust.freshness``. Below: ``anchor``.

A position names one durable state. ``epoch`` counts checkpoints, ``sequence`` counts commits; along
one history neither ever decreases. ``chain`` is the tag of the newest thing written: the log record
of the last commit, or the anchor if no commit followed it. Both are sealed under a fresh key, so
two states that were written apart never share it, even at the same epoch and sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, final

from serdab.errors import FormatError
from serdab.sefs import keyspace as ks
from serdab.sefs.anchor import AnchorState

UUID_BYTES: Final = 16
CHAIN_BYTES: Final = 16
_MOST: Final = (1 << 63) - 1
_MAC_LABEL_V1: Final = b"serdab sefs volume v1\0"
_MAC_LABEL: Final = b"serdab sefs v2 volume root\0"
_LOGGED_LABELS: Final = {
    ks.V1: b"serdab sefs volume v1 with log\0",
    ks.V2: b"serdab sefs v2 volume with log\0",
}


class Order(Enum):
    """How a position relates to one that is trusted."""

    SAME = "the same state"
    NEWER = "a later state"
    OLDER = "an older state"
    FORK = "a state of another history"


@dataclass(frozen=True, slots=True)
class Position:
    """One durable state of one volume."""

    uuid: bytes
    epoch: int
    sequence: int
    chain: bytes

    def __str__(self) -> str:
        return f"epoch {self.epoch}, commit {self.sequence}, chain {self.chain.hex()}"

    def dump(self) -> str:
        """Return one line without the uuid."""
        return f"{self.epoch} {self.sequence} {self.chain.hex()}"

    @classmethod
    def parse(cls, uuid: bytes, line: str) -> Position:
        """Return the position in a line of :meth:`dump`.

        Raises:
            FormatError: it is not one, or not in that spelling.
        """
        words = line.split(" ")
        try:
            position = cls(uuid, int(words[0]), int(words[1]), bytes.fromhex(words[2]))
        except (ValueError, IndexError):
            position = None
        if position is None or position.dump() != line or not position.is_sane():
            raise FormatError(
                "not a position of a volume",
                expected="epoch, commit and 32 hexadecimal digits",
                found=repr(line[:80]),
            )
        return position

    def is_sane(self) -> bool:
        """Return whether every part is in its range."""
        numbers = 0 <= self.epoch <= _MOST and 0 <= self.sequence <= _MOST
        return numbers and len(self.uuid) == UUID_BYTES and len(self.chain) == CHAIN_BYTES

    def order(self, trusted: Position) -> Order:
        """Return how this position relates to one of the same volume that is trusted.

        NEWER says no more than that the numbers allow it: ``Volume.contradicts`` knows more.
        """
        if self == trusted:
            return Order.SAME
        ours, theirs = (self.epoch, self.sequence), (trusted.epoch, trusted.sequence)
        if self.uuid != trusted.uuid or ours == theirs:
            return Order.FORK
        if ours[0] >= theirs[0] and ours[1] >= theirs[1]:
            return Order.NEWER
        if ours[0] <= theirs[0] and ours[1] <= theirs[1]:
            return Order.OLDER
        return Order.FORK


@final
class History:
    """What an open volume knows of its own history: its newest anchor, and the log that it read.

    ``on_durable`` hears of each new durable state before it is acknowledged; what it raises takes
    the acknowledgement back and turns the volume read-only.
    """

    __slots__ = ("_announced", "_floor", "_replayed", "on_durable")

    def __init__(self) -> None:
        self._replayed: dict[int, bytes] = {}
        self._floor = 0
        self._announced: Position | None = None
        self.on_durable: Callable[[Position], None] | None = None

    def replayed(self, sequence: int, chain: bytes) -> None:
        """Note a commit that was read back from the log."""
        self._replayed[sequence] = chain

    def contradicts(self, earlier: Position, uuid: bytes, state: AnchorState, tag: bytes) -> bool:
        """Return whether this history shows another state at an earlier position.

        ``state`` and ``tag`` are those of the newest anchor. False says only that nothing of what
        is known speaks against it: anchors before the last two are not kept.
        """
        if earlier.uuid != uuid:
            return True
        if earlier.epoch == state.epoch:
            if earlier.sequence == state.sequence:
                return earlier.chain != tag
            return self._replayed.get(earlier.sequence) != earlier.chain
        if earlier.epoch == state.epoch - 1 and earlier.sequence == state.sequence:
            # It was recorded at that anchor itself, or at the last commit of its log.
            return earlier.chain not in (state.previous, state.chain)
        return earlier.sequence > state.sequence

    def begin_above(self, epoch: int) -> None:
        """Let the next checkpoint have a greater number than ``epoch``: a history that was given
        up must never look like a later state of this one."""
        self._floor = max(self._floor, epoch)

    def next_epoch(self, epoch: int) -> int:
        """Return the number of the checkpoint after ``epoch``.

        The two slots are written in turn, so the number keeps its parity when it jumps.
        """
        following = epoch + 1
        if following > self._floor:
            return following
        return self._floor + 1 + (self._floor + 1 - following) % 2

    def announce(self, position: Position | None) -> None:
        """Tell of a durable state, once."""
        if self.on_durable is None or position is None or position == self._announced:
            return
        self.on_durable(position)
        self._announced = position


def checkpoint_mac(version: int, uuid: bytes, state: AnchorState) -> bytes:
    """Return the root MAC of a volume: it stands for the whole tree of a checkpoint.

    In version 2 no two states have one encoding, whatever their parts hold, and the chunk size is
    among them: it says which bytes of a file a record is. In version 1 a root pointer and the MAC
    of a lower layer are not told apart, nor is no root from one.
    """
    level = bytes((state.root_level,))
    if version == ks.V1:
        raw = _MAC_LABEL_V1 + uuid + level + state.root + b"".join(state.lower)
        return hashlib.sha256(raw).digest()
    parts = [_MAC_LABEL, _sized(uuid), _u32(state.chunk_size), level, _sized(state.root)]
    parts += [_u32(len(state.lower)), *(_sized(mac) for mac in state.lower)]
    return hashlib.sha256(b"".join(parts)).digest()


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _sized(part: bytes) -> bytes:
    return _u32(len(part)) + part


def logged_mac(version: int, root_mac: bytes, position: Position) -> bytes:
    """Return the MAC of a state that is a checkpoint and the commits after it."""
    number = position.sequence.to_bytes(8, "little")
    raw = _LOGGED_LABELS[version] + root_mac + number + position.chain
    return hashlib.sha256(raw).digest()
