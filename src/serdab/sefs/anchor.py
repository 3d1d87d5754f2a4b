# SPDX-License-Identifier: Apache-2.0
"""The anchor of a writable volume: two slots, written in turn, that name the newest checkpoint.

Above: ``volume``. Below: ``crypto``, ``hostdir``.

On-disk format of ``anchor``: two slots of 16 KiB, slot = epoch mod 2 (integers little-endian)::

    0   magic       8   "SEFSVOL\\0"
    8   version     u32 1 or 2
    12  source_len  u16 at most 1024
    14  zero        u16
    16  uuid        16
    32  salt        32  fresh at every write: one key per write
    64  key_check   32  commits to the key: tells a wrong key from damage
    96  sealed_len  u32
    100 source          canonical JSON: where the key comes from, in clear and authenticated
    ..  sealed          AES-128-GCM of the state (a MessagePack array), AAD = all that precedes it
    ..  zero to the end of the slot, not looked at

The state of version 2 ends with one field more (``reserved_bytes``). A volume stays in the version
that it was made in.

Security:
    1. The key of a slot is derived from its salt, so no nonce repeats, whatever is rolled back.
    2. A slot that does not verify is not used; the other one then is (a torn write costs nothing),
       and that is reported, since an enemy could have made it so.
"""

from __future__ import annotations

import hmac
import os
import struct
from dataclasses import dataclass
from typing import Final

import msgspec

from serdab.crypto.aead import TAG_BYTES
from serdab.crypto.kdf import KeySchedule
from serdab.errors import AuthenticationError, FormatError, WrongKeyError
from serdab.keys import Key
from serdab.sefs import keyspace as ks
from serdab.sefs.hostdir import Dir, File, read_exact
from serdab.sefs.page import MAX_LEVEL
from serdab.sefs.segment import MAX_SEGMENT

ANCHOR_NAME: Final = "anchor"
SLOT_BYTES: Final = 16 << 10
MAGIC: Final = b"SEFSVOL\0"
VERSIONS: Final = (ks.V1, ks.V2)
_HEAD: Final = struct.Struct("<8sIHH16s32s32sI")
MAX_SOURCE: Final = 1024
"""Bytes of the key source."""
_KIND: Final = b"volume"
_V1_FIELDS: Final = 16
_MAX_COUNTER: Final = 1 << 63
_MIN_UNIT: Final = 512
_MAX_UNIT: Final = 1 << 20
_POINTER: Final = 32
_SALT: Final = 32
_MAC: Final = 32


class AnchorState(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """What a checkpoint leaves behind. Pointers are those of ``segment``; empty for none."""

    epoch: int
    sequence: int
    """Number of the last commit that the tree contains."""
    chain: bytes
    """Tag of that commit's log record, or of the anchor that began the session."""
    root: bytes
    root_level: int
    table: bytes
    """Pointer to the segment table."""
    next_ino: int
    next_segment: int
    next_log: int
    log: int
    """Number of the log that continues this state; 0: none, the volume was closed."""
    log_salt: bytes
    lower: tuple[bytes, ...]
    """Root MACs of the lower layers that the tree refers to."""
    chunk_size: int
    page_size: int
    live_bytes: int
    previous: bytes
    """Tag of the anchor before this one."""
    reserved_bytes: int = 0
    """What extents that are reserved and not written will take. Not in version 1."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A verified slot."""

    version: int
    uuid: bytes
    source: bytes
    state: AnchorState
    tag: bytes


def volume_keys(key: Key, uuid: bytes, version: int) -> KeySchedule:
    """Return the key schedule of a volume."""
    return KeySchedule(key, kind=_KIND, uuid=uuid, version=version)


def _dump_state(state: AnchorState, version: int) -> bytes:
    if version == ks.V1:
        return msgspec.msgpack.encode(msgspec.structs.astuple(state)[:_V1_FIELDS])
    return msgspec.msgpack.encode(state)


def _parse_state(raw: bytes, version: int) -> AnchorState:
    try:
        state = msgspec.msgpack.decode(raw, type=AnchorState)
    except msgspec.DecodeError as exc:
        raise FormatError("anchor state cannot be read", found=str(exc)) from None
    if not _is_sensible(state) or _dump_state(state, version) != raw:
        raise FormatError("anchor state with an impossible field")
    return state


def check_slot(source: bytes, state: AnchorState) -> None:
    """Check what is about to be written as a reader will.

    Raises:
        FormatError: no reader would take it.
    """
    if len(source) > MAX_SOURCE:
        raise FormatError("key source longer than an anchor holds", found=f"{len(source)} bytes")
    if not _is_sensible(state):
        raise FormatError("anchor state with an impossible field")


def dump_slot(
    keys: KeySchedule, uuid: bytes, source: bytes, state: AnchorState, version: int
) -> tuple[bytes, bytes]:
    """Return the 16 KiB of a slot, and its tag; ``keys`` are those of the version."""
    plain = _dump_state(state, version)
    salt = os.urandom(32)
    head = _HEAD.pack(
        MAGIC,
        version,
        len(source),
        0,
        uuid,
        salt,
        keys.derive(b"key check"),
        len(plain) + TAG_BYTES,
    )
    aad = head + source
    sealed = keys.cipher(b"anchor", salt).seal(0, plain, aad)
    raw = aad + sealed
    if len(raw) > SLOT_BYTES:
        raise FormatError("anchor state does not fit its slot", found=str(len(raw)))
    return raw + bytes(SLOT_BYTES - len(raw)), sealed[-TAG_BYTES:]


@dataclass(frozen=True, slots=True)
class _Clear:
    """The part of a slot that needs no key."""

    version: int
    uuid: bytes
    salt: bytes
    check: bytes
    source: bytes
    aad: bytes
    sealed: bytes


def _parse_clear(raw: bytes) -> _Clear:
    if len(raw) != SLOT_BYTES or raw[:8] != MAGIC:
        raise FormatError("anchor slot without its magic")
    _, version, source_len, zero, uuid, salt, check, sealed_len = _HEAD.unpack_from(raw)
    if version not in VERSIONS:
        raise FormatError("unknown volume version", expected="1 or 2", found=str(version))
    start = _HEAD.size + source_len
    if zero or source_len > MAX_SOURCE or start + sealed_len > SLOT_BYTES:
        raise FormatError("anchor slot with impossible lengths")
    # What follows is not looked at. Were a slot refused for garbage there (a torn write), the next
    # write, torn too, could bring back the state that the session between them never saw.
    source, sealed = raw[_HEAD.size : start], raw[start : start + sealed_len]
    return _Clear(version, uuid, salt, check, source, raw[:start], sealed)


def read_source(directory: Dir) -> bytes | None:
    """Return where the volume says its key comes from (not authenticated yet), or None."""
    try:
        file = directory.open(ANCHOR_NAME)
    except FileNotFoundError:
        return None
    try:
        for slot in range(2):
            try:
                return _parse_clear(read_exact(file, SLOT_BYTES, slot * SLOT_BYTES)).source
            except FormatError:
                continue
    finally:
        file.close()
    return None


def check_unreplaced(file: File, epoch: int, tag: bytes) -> None:
    """Check that the slot of an epoch still is the one that was read or written there.

    Raises:
        AuthenticationError: something else is there: the volume was rolled back, or another
            session wrote to it, while this one had it open.
    """
    try:
        found = _parse_clear(read_exact(file, SLOT_BYTES, epoch % 2 * SLOT_BYTES)).sealed
    except FormatError:
        found = b""
    if not hmac.compare_digest(found[-TAG_BYTES:], tag):
        raise AuthenticationError(
            "the anchor was replaced while the volume was open",
            subject=ANCHOR_NAME,
            expected=f"the one of epoch {epoch}",
            found="another one",
            hint="the storage was rolled back, or two writers had it: restore it from a backup",
        )


def load_anchor(file: File, key: Key, label: str) -> tuple[Anchor, KeySchedule, list[str]]:
    """Return the newest slot that verifies, its keys, and what was wrong with the other one.

    Raises:
        FormatError: neither slot can be read as one of ours.
        WrongKeyError: the key opens neither.
        AuthenticationError: the key is right, but neither slot verifies.
    """
    best: tuple[Anchor, KeySchedule] | None = None
    problems: list[str] = []
    right_key = False
    readable = False
    empty = -1
    for slot in range(2):
        raw = read_exact(file, SLOT_BYTES, slot * SLOT_BYTES)
        if not any(raw):
            empty = slot
            continue
        try:
            clear = _parse_clear(raw)
            readable = True
            keys = volume_keys(key, clear.uuid, clear.version)
            if not hmac.compare_digest(keys.derive(b"key check"), clear.check):
                problems.append(f"slot {slot}: the key check does not match")
                continue
            right_key = True
            anchor = _open_slot(clear, keys, slot)
        except (FormatError, AuthenticationError) as exc:
            problems.append(f"slot {slot}: {exc.message}")
            continue
        if best is None or anchor.state.epoch > best[0].state.epoch:
            best = anchor, keys
    if best is not None:
        if empty >= 0 and best[0].state.epoch:
            problems.append(f"slot {empty}: emptied")  # only the first anchor leaves one unwritten
        return *best, problems
    subject = f"{label}/{ANCHOR_NAME}"
    if right_key:
        raise AuthenticationError(
            "neither anchor slot verifies",
            subject=subject,
            found="; ".join(problems),
            hint="the storage changed it; restore the volume from a backup",
        )
    if readable:
        raise WrongKeyError(
            "wrong key, or the anchor was damaged",
            subject=subject,
            expected="the key that the volume was made with",
            found="another key",
            hint="give the key of its first use, or of the last `serdab rekey`",
        )
    raise FormatError(
        "not a sealed volume",
        subject=subject,
        found="; ".join(problems) or "an empty anchor",
        hint="it is not formatted over: move it away, or restore it",
    )


def _is_sensible(state: AnchorState) -> bool:
    """Return whether an honest volume could be in this state (its key may be an enemy's too)."""
    counters = (
        state.epoch, state.sequence, state.next_ino, state.log, state.next_log,
        state.live_bytes, state.reserved_bytes,
    )  # fmt: skip
    units = (state.chunk_size, state.page_size)
    return (
        all(0 <= counter < _MAX_COUNTER for counter in counters)
        and 0 < state.next_segment < MAX_SEGMENT
        and 0 <= state.root_level <= MAX_LEVEL
        and all(_MIN_UNIT <= unit <= _MAX_UNIT and unit & (unit - 1) == 0 for unit in units)
        and len(state.root) in (0, _POINTER)
        and len(state.table) in (0, _POINTER)
        and len(state.log_salt) in (0, _SALT)
        and len(state.chain) == len(state.previous) == TAG_BYTES
        and all(len(mac) == _MAC for mac in state.lower)
    )


def _open_slot(clear: _Clear, keys: KeySchedule, slot: int) -> Anchor:
    plain = keys.cipher(b"anchor", clear.salt).open_(0, clear.sealed, clear.aad)
    state = _parse_state(plain, clear.version)
    if state.epoch % 2 != slot:
        raise FormatError("anchor in the wrong slot")
    return Anchor(clear.version, clear.uuid, clear.source, state, clear.sealed[-TAG_BYTES:])
