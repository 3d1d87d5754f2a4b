# SPDX-License-Identifier: Apache-2.0
"""Starts a nursery where the one that the instance was booted with has died.

Above: ``kernel``. Below: ``interpreter``, ``trust.measurement``. Without it an instance runs on,
but gets no new fs server, and so no new mount.

Security: what is on disk by now may be another Serdab than the one that was measured at the boot,
after an upgrade for one. It would get keys, so the code is measured again, and no other is started.
"""

from __future__ import annotations

import _socket

from serdab.errors import MeasurementMismatch
from serdab.libos.bytecode import byte_code_cache
from serdab.libos.channel import Channel, socket_pair
from serdab.libos.interpreter import import_path, start_python
from serdab.trust.measurement import Digest, code_digest


def start_nursery(measured: Digest) -> tuple[Channel, int]:
    """Start a nursery, a child of this process; return its channel and process id.

    Raises:
        MeasurementMismatch: the code on disk is not the one that was ``measured``.
        OSError: the system has no room for it.
    """
    found = code_digest()
    if not found.matches(measured):
        raise MeasurementMismatch(
            "the code of Serdab has changed since the boot",
            subject="code of Serdab",
            expected=str(measured),
            found=str(found),
            hint="stop the instance, `serdab build` if its descriptor names the old code, start it",
        )
    ours, theirs = socket_pair()
    try:
        pid = _start(theirs)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Channel(ours), pid


def _start(channel: _socket.socket) -> int:
    return start_python(
        "serdab.libos.nursery",
        channel.fileno(),
        path=import_path(),
        cache=byte_code_cache(),
        new_session=True,
    )
