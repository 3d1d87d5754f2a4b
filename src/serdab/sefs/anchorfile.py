# SPDX-License-Identifier: Apache-2.0
"""The anchor file of a volume that is open: made whole, replaced slot by slot, checked in between.

Above: ``journal``. Below: ``anchor`` (the format), ``hostdir``.

Each state goes into the slot that the one before it does not lie in, so a torn write costs nothing.
"""

from __future__ import annotations

from typing import Final, final

from msgspec import structs

from serdab.crypto.aead import TAG_BYTES
from serdab.crypto.kdf import KeySchedule
from serdab.sefs.anchor import (
    ANCHOR_NAME,
    SLOT_BYTES,
    AnchorState,
    check_slot,
    check_unreplaced,
    dump_slot,
)
from serdab.sefs.hostdir import Dir

NEW_ANCHOR: Final = "anchor.new"


@final
class AnchorFile:
    """The newest durable state and the file that holds it."""

    __slots__ = ("_dir", "_keys", "_source", "exists", "state", "tag", "uuid", "version")

    def __init__(
        self,
        directory: Dir,
        keys: KeySchedule,
        state: AnchorState,
        *,
        version: int,
        uuid: bytes,
        source: bytes,
        tag: bytes | None,
    ) -> None:
        """``keys`` are those of ``version``. ``tag`` is that of the anchor on the host; None: there
        is none yet."""
        self._dir = directory
        self._keys = keys
        self._source = source
        self.version = version
        self.uuid = uuid
        self.exists = tag is not None
        self.tag = tag if tag is not None else bytes(TAG_BYTES)
        self.state = state

    def ensure(self) -> None:
        """Make the file before anything else exists: it appears whole, by rename."""
        if self.exists:
            return
        check_slot(self._source, self.state)
        if NEW_ANCHOR in self._dir.names():
            # What an attempt left that was cut off. No host may keep the rename below without this
            # and what follows: it would give the old, half file the name.
            self._dir.unlink(NEW_ANCHOR)
            self._dir.sync()
        raw, tag = dump_slot(self._keys, self.uuid, self._source, self.state, self.version)
        file = self._dir.open(NEW_ANCHOR, create=True)
        try:
            file.pwrite(raw + bytes(SLOT_BYTES), 0)
            file.sync()
        finally:
            file.close()
        self._dir.rename(NEW_ANCHOR, ANCHOR_NAME)
        self._dir.sync()
        self.tag = tag
        self.exists = True

    def name_lower(self, root_mac: bytes) -> None:
        """Let the next anchor name another lower layer."""
        self.state = structs.replace(self.state, lower=(root_mac,))

    def replace(self, state: AnchorState) -> None:
        """Make a newer state durable.

        Raises:
            AuthenticationError: the file is not what this session left there.
            FormatError: no reader would take the newer state; the older one still stands.
            OSError: the host refused; the older state still stands.
        """
        check_slot(self._source, state)
        raw, tag = dump_slot(self._keys, self.uuid, self._source, state, self.version)
        file = self._dir.open(ANCHOR_NAME, write=True)
        try:
            # A volume that was rolled back under us must not go on from two states at once.
            check_unreplaced(file, self.state.epoch, self.tag)
            file.pwrite(raw, state.epoch % 2 * SLOT_BYTES)
            file.sync()
        finally:
            file.close()
        self.state, self.tag = state, tag
