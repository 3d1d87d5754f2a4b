# SPDX-License-Identifier: Apache-2.0
"""What a service manager is told: sd_notify(3), without its library.

Above: ``server``. One datagram to the socket that ``NOTIFY_SOCKET`` names, if it names one.
"""

from __future__ import annotations

import _socket
import os


def take_address() -> str | None:
    """Return where the manager listens, and forget it, so that no child speaks for us."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    return address if address[:1] in ("/", "@") else None


def notify(address: str | None, state: str) -> None:
    """Send lines such as ``READY=1``; a manager that is gone is no reason to fail."""
    if address is None:
        return
    # "@" stands for the NUL byte of an abstract name (sd_notify(3)).
    name = b"\0" + os.fsencode(address[1:]) if address.startswith("@") else os.fsencode(address)
    kind = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC
    end = _socket.socket(_socket.AF_UNIX, kind)
    try:
        end.sendto(state.encode(), name)
    except OSError:
        pass
    finally:
        end.close()
