# SPDX-License-Identifier: Apache-2.0
"""The API to embed: boot an instance, run programs in it, take it down.

::

    with pal.init("instance", image_key=key) as instance:
        status = instance.exec(["/bin/echo", "hello"])

:func:`init` goes through the whole boot chain, the init stage included, in a process of its own,
the kernel process. Above: ``cli``, ``service`` and embedders. Below: ``instance.layout``,
``libos``. What counts is what is named here: ``booting``, ``running`` and ``foreground`` are how it
is done.

Threads: a ``Pal`` and its processes may be used from several threads. The one child process of this
package is the kernel process; an embedder that reaps all children must not reap it.
"""

from __future__ import annotations

from serdab.pal.booting import LEVELS, init, log_to_stderr
from serdab.pal.foreground import run_foreground
from serdab.pal.running import ExitStatus, Measured, Pal, Process
from serdab.version import VERSION

__all__ = [
    "LEVELS",
    "ExitStatus",
    "Measured",
    "Pal",
    "Process",
    "get_version",
    "init",
    "log_to_stderr",
    "run_foreground",
]


def get_version() -> str:
    """Return the version of Serdab."""
    return VERSION
