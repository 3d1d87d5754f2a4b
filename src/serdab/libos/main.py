# SPDX-License-Identifier: Apache-2.0
"""The kernel process from its first instruction on. Started by ``begin``; goes on in ``kernel``.

Above: nothing (it is executed). Below: ``early``, ``kernel``, which is imported after the launcher
was started: that makes its namespaces while it is read. Then the nursery is forked.
"""

from __future__ import annotations

import _socket
import gc
import os

from serdab.errors import EnvironmentRefused, shortage_of
from serdab.libos.channel import Channel
from serdab.libos.early import Early
from serdab.linux.process import hide_memory

#: Objects made between two looks for cycles: those of imports hold none, and a look at them all,
#: dozens of times, was a tenth of what starting took.
_COLLECT_EVERY = 50_000


def main(fd: int, _path: list[str]) -> None:
    """Run the kernel process, whose control channel is ``fd``."""
    gc.set_threshold(_COLLECT_EVERY, 20, 100)
    os.closerange(fd + 1, 65536)
    os.chdir("/")  # the caller's directory, and the mount it lies on, are not ours to hold
    os.set_inheritable(fd, False)
    early = _start(fd)

    from serdab.libos.kernel import run

    run(Channel(_socket.socket(fileno=fd)), early)


def _start(fd: int) -> Early | EnvironmentRefused:
    try:
        early = Early()
        # After the launcher was started, which must not wait for this; the first message, which
        # may hold a key, is read later.
        hide_memory()
        _import_all()
        early.start_nursery(fd)
    except EnvironmentRefused as exc:
        return exc
    except OSError as exc:
        refused = shortage_of(exc)
        if refused is None:
            raise
        return refused
    return early


def _import_all() -> None:
    """Import what the kernel process and the nursery need, which are one process until then."""
    import serdab.libos.kernel  # noqa: F401 - all of it is imported here
    from serdab.libos.fsserver import import_early

    import_early()
    gc.freeze()  # a look at them would copy their pages, in each process that is forked
